import math

import numpy as np
import pytest

from rankloom.data.transforms import (
    Moments,
    NumericTransform,
    QuantileBins,
    Sample,
    criteo_ln2,
    criteo_log2,
    fit_numeric,
    fit_quantiles,
)


def moments_of(values: np.ndarray, chunk: int) -> Moments:
    moments = Moments()
    for start in range(0, len(values), chunk):
        moments.update(values[start : start + chunk])
    moments.close()
    return moments


def sample_of(values: np.ndarray, chunk: int, size: int) -> Sample:
    sample = Sample(size)
    for start in range(0, len(values), chunk):
        sample.update(values[start : start + chunk])
    return sample


def test_moments_equal_numpy_and_do_not_depend_on_chunks():
    values = np.random.default_rng(0).normal(1e6, 3, 200_000)
    moments = moments_of(values, 70_001)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.deviation == pytest.approx(values.std(), rel=1e-9)
    assert (moments.least, moments.largest) == (values.min(), values.max())
    other = moments_of(values, 999)
    assert (other.mean, other.squares) == (moments.mean, moments.squares)  # the same bits


def test_moments_of_two_streams_merge():
    values = np.random.default_rng(1).exponential(5, 5000)
    left, right = moments_of(values[:1234], 100), moments_of(values[1234:], 100)
    left.merge(right)
    assert left.count == 5000
    assert left.mean == pytest.approx(values.mean(), rel=1e-12)
    assert left.deviation == pytest.approx(values.std(), rel=1e-12)


def test_sample_is_everything_while_it_fits():
    values = np.random.default_rng(2).normal(size=1000)
    assert np.array_equal(sample_of(values, 64, 1000).values(), np.sort(values))


def test_sample_is_bounded_uniform_and_free_of_chunks():
    values = np.arange(100_000, dtype=np.float64)
    sample = sample_of(values, 1000, 2000).values()
    assert len(sample) == 2000
    assert np.array_equal(sample, sample_of(values, 7777, 2000).values())
    # Mean of 2000 uniform draws: deviation 100000 / sqrt(12 * 2000) = 645.
    assert abs(sample.mean() - 50_000) < 4 * 645


def test_samples_of_two_streams_merge():
    values = np.arange(10_000, dtype=np.float64)
    left, right = Sample(500), Sample(500, position=6000)
    left.update(values[:6000])
    right.update(values[6000:])
    left.merge(right)
    assert np.array_equal(left.values(), sample_of(values, 100, 500).values())


@pytest.mark.parametrize(
    ("transform", "fill", "expected"),
    [
        ("none", 7.0, [1, 3, 8, 7]),
        ("none", "mean", [1, 3, 8, 4]),
        ("none", "median", [1, 3, 8, 3]),
        ("standardise", "mean", [-3 / math.sqrt(26 / 3), -1 / math.sqrt(26 / 3), 1.3587, 0]),
        ("log", 0.0, [math.log(2), math.log(4), math.log(9), 0]),
        ("min_max", 99.0, [0, 2 / 7, 1, 1]),
    ],
)
def test_numeric_transforms_by_hand(transform, fill, expected):
    values = np.array([1.0, 3.0, 8.0])
    fitted = fit_numeric(transform, fill, moments_of(values, 2), sample_of(values, 2, 10))
    found = fitted.apply(np.array([1.0, 3.0, 8.0, math.nan]))
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-4)


def test_log_keeps_the_sign():
    found = NumericTransform(transform="log").apply(np.array([-3.0, 0.0, 3.0]))
    assert found == pytest.approx([-math.log(4), 0, math.log(4)])


@pytest.mark.parametrize("transform", ["standardise", "min_max"])
def test_a_constant_column_becomes_zeros(transform):
    values = np.full(5, 4.0)
    fitted = fit_numeric(transform, "mean", moments_of(values, 2))
    assert fitted.apply(values).tolist() == [0] * 5


def test_no_value_at_all_is_filled():
    assert fit_numeric("standardise", "mean", Moments()).apply(np.array([math.nan])) == [0]


def test_quantile_bins_have_equal_counts():
    values = np.random.default_rng(3).exponential(1, 1000)
    bins = fit_quantiles(sample_of(values, 100, 1000), 8)
    assert bins.bins == 8
    counts = np.bincount(bins.apply(values), minlength=10)
    assert counts[:2].tolist() == [0, 0]
    assert set(counts[2:].tolist()) <= {124, 125, 126}


def test_repeated_values_give_fewer_bins_and_none_is_empty():
    values = np.array([0.0] * 90 + [1.0] * 5 + [2.0] * 5)
    bins = fit_quantiles(sample_of(values, 100, 100), 10)
    assert set(bins.apply(values).tolist()) == set(range(2, bins.bins + 2))


def test_quantile_bins_of_missing_and_outer_values():
    bins = QuantileBins(edges=(1.0, 5.0))
    assert bins.apply(np.array([math.nan, -9.0, 1.0, 4.9, 5.0, 1e9])).tolist() == [0, 2, 3, 3, 4, 4]
    empty = fit_quantiles(Sample(10), 4)
    assert empty.apply(np.array([math.nan, 3.0])).tolist() == [0, 2]


def test_criteo_ln2_by_hand():
    values = np.array([-2.0, -0.5, 0, 1, 2, 2.5, 3, 100])
    # ln(2.5)^2 = .84, ln(3)^2 = 1.21, ln(100)^2 = 21.2
    assert criteo_ln2(values).tolist() == [-2, 0, 0, 1, 2, 0, 1, 21]


def test_criteo_log2_is_exact_at_powers_of_two():
    powers = 2.0 ** np.arange(2, 60)
    assert criteo_log2(powers).tolist() == list(range(2, 60))
    assert criteo_log2(powers - 0.5)[:5].tolist() == [1, 2, 3, 4, 5]
    assert criteo_log2(np.array([-5.0, 0, 1, 2, 3])).tolist() == [1, 1, 1, 1, 1]
