import numpy as np

from rankloom.data.planted import mix, planted_normal, power_law


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # First outputs of splitmix64 from state 0: the states are multiples of the golden ratio.
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * step % 2**64 for step in (1, 2, 3)], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(states).tolist() == expected


def test_planted_numbers_are_normal_and_belong_to_value_and_stream() -> None:
    values = np.arange(200_000)
    numbers = planted_normal(values, 1, 2)
    # Deviations of mean and variance at this size: 0.0022 and 0.0032; five of them.
    assert abs(numbers.mean()) < 0.011
    assert abs(numbers.var() - 1) < 0.016
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.011
    assert np.array_equal(planted_normal(values[::-1], 1, 2), numbers[::-1])
    for stream in [(1, 3), (2, 1), (2, 2), (1,), (1, 2, 0)]:
        other = planted_normal(values, *stream)
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.011


def test_power_law_falls_as_its_exponent_says() -> None:
    generator = np.random.default_rng(0)
    for exponent in (0.0, 1.0, 1.3):
        ids = power_law(generator, 200_000, 50, exponent)
        assert ids.min() == 0
        assert ids.max() == 49
        edges = np.arange(1, 52, dtype=np.float64)
        area = np.log(edges) if exponent == 1.0 else edges ** (1 - exponent)
        expected = np.diff(area) / (area[-1] - area[0])
        share = np.bincount(ids, minlength=50) / len(ids)
        assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected / len(ids)))
