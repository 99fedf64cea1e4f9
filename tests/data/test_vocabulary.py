from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.vocabulary import (
    NOT_A_NUMBER,
    IntegerCounter,
    TextCounter,
    Vocabulary,
    select_values,
)


def count_texts(values: list[str | None], chunk: int) -> TextCounter:
    counter = TextCounter()
    for start in range(0, len(values), chunk):
        frame = pl.DataFrame({"v": pl.Series(values[start : start + chunk], dtype=pl.String)})
        counter.count(frame.select(counter.codes(pl.col("v")))["v"].to_numpy())
    return counter


def count_integers(values: np.ndarray, chunk: int) -> IntegerCounter:
    counter = IntegerCounter()
    for start in range(0, len(values), chunk):
        counter.count(values[start : start + chunk])
    return counter


def test_order_is_by_count_then_value():
    vocabulary, ids = count_texts(["b", "a", "c", "c", None, "b", "d"], 3).fit(1, None)
    assert vocabulary.values.to_list() == ["b", "c", "a", "d"]
    assert vocabulary.counts.tolist() == [2, 2, 1, 1]
    assert ids[0] == 0
    assert sorted(ids.tolist()) == [0, 2, 3, 4, 5]


def test_min_count_and_max_values_cut_the_tail():
    counter = count_texts(["a"] * 3 + ["b"] * 3 + ["c"] * 2 + ["d"], 2)
    assert counter.fit(2, None)[0].values.to_list() == ["a", "b", "c"]
    assert counter.fit(2, 1)[0].values.to_list() == ["a"]
    assert counter.fit(9, None)[0].values.to_list() == []


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_text_and_integers_do_not_depend_on_chunks(chunk: int):
    numbers = np.random.default_rng(0).zipf(1.4, 900) % 5000
    texts = [f"t{value}" for value in numbers]
    whole = count_texts(texts, 900).fit(2, 50)[0]
    assert count_texts(texts, chunk).fit(2, 50)[0].values.to_list() == whole.values.to_list()
    found = count_integers(numbers, chunk).fit(2, 50)
    expected = count_integers(numbers, 900).fit(2, 50)
    assert found.values.to_list() == expected.values.to_list()
    assert found.counts.tolist() == expected.counts.tolist()


def test_integers_far_apart_are_exact():
    values = np.array([2**53, 2**53 + 1, 2**53 + 1, -(2**62), 7, 2**31 - 1, 2**24 + 1, 2**24])
    vocabulary = count_integers(values, 3).fit(1, None)
    assert vocabulary.values[0] == 2**53 + 1
    assert sorted(vocabulary.values.to_list()) == sorted(set(values.tolist()))
    ids = vocabulary.lookup(pl.Series(values))
    assert [vocabulary.values[int(place) - 2] for place in ids] == values.tolist()
    assert vocabulary.lookup(pl.Series([2**53 + 2, 8, -(2**63) + 1])).tolist() == [1, 1, 1]


def test_dense_counting_grows_both_ways():
    values = np.array([10, 11, 3, 3, -5, 400, 10])
    counts = dict(zip(*np.unique(values, return_counts=True), strict=True))
    vocabulary = count_integers(values, 1).fit(1, None)
    found = dict(zip(vocabulary.values.to_list(), vocabulary.counts.tolist(), strict=True))
    assert found == counts


def test_runs_of_sparse_integers_are_merged():
    values = np.random.default_rng(1).integers(0, 2**40, 3000)
    values = np.concatenate([values, values[:500]])
    vocabulary = count_integers(values, 100).fit(2, None)
    assert sorted(vocabulary.values.to_list()) == sorted(set(values[:500].tolist()))


def test_what_is_no_number_is_not_counted():
    counter = IntegerCounter()
    counter.count(np.array([NOT_A_NUMBER, 4, 4]))
    vocabulary = counter.fit(1, None)
    assert vocabulary.values.to_list() == [4]
    assert vocabulary.lookup(pl.Series([NOT_A_NUMBER, 4, None])).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "values", [pl.Series("value", ["x", "y"]), pl.Series("value", [10**12, 3])]
)
def test_lookup_and_reload(values: pl.Series, tmp_path: Path):
    vocabulary = Vocabulary(values, np.array([5, 2]))
    vocabulary.save(tmp_path / "v.parquet")
    again = Vocabulary.load(tmp_path / "v.parquet")
    assert again.values.to_list() == values.to_list()
    assert again.counts.tolist() == [5, 2]
    assert again.rows == 4
    asked = pl.Series([values[1], None, values[0]], dtype=values.dtype)
    assert again.lookup(asked).tolist() == [3, 0, 2]
    table = pl.read_parquet(tmp_path / "v.parquet")
    assert table.columns == ["index", "value", "count"]
    assert table["index"].to_list() == [2, 3]


@pytest.mark.parametrize("dtype", [pl.String, pl.Int64])
def test_an_empty_vocabulary_works(dtype: type[pl.DataType], tmp_path: Path):
    chosen, _ = select_values(pl.Series([], dtype=dtype), np.empty(0, np.int64), 1, None)
    chosen.save(tmp_path / "v.parquet")
    again = Vocabulary.load(tmp_path / "v.parquet")
    assert again.rows == 2
    asked = pl.Series([None, 1], dtype=pl.Int64).cast(dtype)
    assert again.lookup(asked).tolist() == [0, 1]


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "v.parquet"
    with pytest.raises(FileNotFoundError, match="no such vocabulary"):
        Vocabulary.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="v.parquet is damaged"):
        Vocabulary.load(path)


def test_thousands_of_texts_keep_their_own_codes():
    texts = [f"{value:08x}" for value in range(20_000)]
    counter = count_texts(texts, 4096)
    vocabulary, ids = counter.fit(1, None)
    assert vocabulary.values.to_list() == texts  # equal counts: by value
    frame = pl.DataFrame({"v": texts})
    codes = frame.select(counter.codes(pl.col("v")))["v"].to_numpy()
    assert ids[codes].tolist() == list(range(2, 20_002))
    assert np.array_equal(vocabulary.lookup(frame["v"]), ids[codes])


def test_few_and_many_texts_are_looked_up_alike():
    known = [f"Ä{value}" for value in np.random.default_rng(0).permutation(5000)]
    vocabulary = Vocabulary(pl.Series("value", known), np.ones(5000, np.int64))
    asked = pl.Series([known[7], "", None, "zzz", "Ä", known[-1], known[0]])
    expected = [9, 1, 0, 1, 1, 5001, 2]
    assert vocabulary.lookup(asked).tolist() == expected  # few rows: searched
    many = vocabulary.lookup(pl.concat([asked] * 100))  # many rows: hashed
    assert many.tolist() == expected * 100
