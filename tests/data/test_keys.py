import numpy as np
import polars as pl
import pytest

from rankloom.data.keys import KeyCollector, KeyColumn, as_times, require_values


def collect(values: list[object], dtype: pl.DataType, size: int) -> KeyColumn:
    collector = KeyCollector(dtype)
    for start in range(0, len(values), size):
        collector.add(pl.Series("key", values[start : start + size], dtype=dtype))
    return collector.finish()


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["b", None, "a", "b", "", "c"], pl.String()),
        ([2**53 + 1, None, -5, 2**53, 2**62, -5], pl.Int64()),
        ([0.5, None, -1.5, 0.5], pl.Float64()),
        ([], pl.Int64()),
        ([], pl.String()),
    ],
)
def test_codes_give_the_values_back(values: list[object], dtype: pl.DataType, size: int) -> None:
    key = collect(values, dtype, size)
    assert key.codes.dtype == np.int32
    assert key.values.dtype == dtype
    assert key.take(key.codes).to_list() == values
    assert key.values.n_unique() == len(key.values) == len({v for v in values if v is not None})
    assert key.codes.tolist() == collect(values, dtype, 3).codes.tolist()


def test_lists_are_no_keys() -> None:
    with pytest.raises(ValueError, match="column key holds lists, which cannot be a key"):
        collect([[1]], pl.List(pl.Int64), 1)


def test_times_need_numbers_in_every_row() -> None:
    times = as_times(collect([7, 3, 7], pl.Int64(), 2), "t")
    assert times.dtype == np.int64
    assert times.tolist() == [7, 3, 7]
    with pytest.raises(ValueError, match="row 2 of the table: column t has no value"):
        as_times(collect([7, None, None], pl.Int64(), 2), "t")
    with pytest.raises(ValueError, match="column t orders rows and must hold numbers"):
        as_times(collect(["2014"], pl.String(), 2), "t")
    with pytest.raises(ValueError, match="row 1 of the table: column u has no value"):
        require_values(collect([None, "a"], pl.String(), 2), "u")


def test_rows_are_counted_in_their_file() -> None:
    collector = KeyCollector(pl.Int64())
    collector.add(pl.Series("t", [7, 8, 9, None], dtype=pl.Int64))
    key = collector.finish([("one.csv", 0), ("two.csv", 2)])
    assert [key.place(row) for row in (0, 1, 2)] == [
        "one.csv: row 1",
        "one.csv: row 2",
        "two.csv: row 1",
    ]
    with pytest.raises(ValueError, match="^two.csv: row 2: column t has no value"):
        as_times(key, "t")


def test_text_among_times_is_named() -> None:
    with pytest.raises(ValueError, match="row 2 of the table: column t .* got 'noon'; correct it"):
        as_times(collect(["12", "noon", "13"], pl.String(), 2), "t")
