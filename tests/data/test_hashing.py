import hypothesis.strategies as st
import numpy as np
import polars as pl
from hypothesis import given, settings

from rankloom.data.hashing import bucket_ids, finish, hash_values

MASK = 2**64 - 1


def slow_finish(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def slow_hash(text: str) -> int:
    data = text.encode()
    hashed = slow_finish(len(data))
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        hashed = slow_finish((hashed ^ word) * 0x9E3779B97F4A7C15 & MASK)
    return hashed


def test_splitmix64_matches_its_published_first_output():
    # SplitMix64 with seed 0: the first state is the golden gamma.
    assert int(finish(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_hash_equals_a_byte_by_byte_reference(texts: list[str]):
    hashed = hash_values(pl.Series(texts, dtype=pl.String))
    assert hashed.tolist() == [slow_hash(text) for text in texts]


def test_hashes_never_change_between_versions():
    found = hash_values(pl.Series(["", "a", "12345678", "123456789"])).tolist()
    assert found == [0, 16848218541991794876, 7739130950927278667, 13548438181600764478]


def test_integers_hash_as_their_decimal_text():
    numbers = pl.Series([5, -3, 2**62])
    assert np.array_equal(hash_values(numbers), hash_values(numbers.cast(pl.String)))


def test_a_slice_hashes_as_the_whole():
    texts = pl.Series([f"value {index}" for index in range(50)])
    assert np.array_equal(hash_values(texts[17:40]), hash_values(texts)[17:40])


def test_trailing_zero_bytes_are_told_apart():
    assert len(set(hash_values(pl.Series(["a", "a\0", "a\0\0"])).tolist())) == 3


def test_buckets_start_at_two_and_null_is_padding():
    texts = pl.Series([*(str(value) for value in range(5000)), None])
    ids = bucket_ids(texts, 7)
    assert ids.dtype == np.int32
    assert ids[-1] == 0
    counts = np.bincount(ids[:-1], minlength=9)
    assert counts[:2].tolist() == [0, 0]
    assert counts[2:].min() > 5000 / 7 * 0.85  # even: 5 deviations below the mean is .83
