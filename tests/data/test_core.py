from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data.core import core_rows, filtered_rows, sampled_rows
from rankloom.data.keys import KeyColumn


def slow_core(rows: list[tuple[int, int]], least: tuple[int, int]) -> list[bool]:
    keep = [min(row) >= 0 for row in rows]
    changed = True
    while changed:
        changed = False
        for column in (0, 1):
            counts = Counter(row[column] for row, kept in zip(rows, keep, strict=True) if kept)
            for index, row in enumerate(rows):
                if keep[index] and counts[row[column]] < least[column]:
                    keep[index] = False
                    changed = True
    return keep


@given(
    st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), min_size=1, max_size=60),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_core_is_the_fixpoint(rows: list[tuple[int, int]], least: tuple[int, int]) -> None:
    columns = np.array(rows, dtype=np.int32).T
    codes = {"user": columns[0], "item": columns[1]}
    reference = slow_core(rows, least)
    counts = {"user": least[0], "item": least[1]}
    if not any(reference):
        with pytest.raises(ValueError, match=r"the core filter \(user \d, item \d\) leaves no row"):
            core_rows(codes, counts)
        return
    assert core_rows(codes, counts).tolist() == reference
    # The order of the columns does not matter.
    assert core_rows(codes, dict(reversed(counts.items()))).tolist() == reference


def test_dropping_an_item_can_drop_a_user() -> None:
    users = np.array([0, 0, 1, 1, 2, 2], dtype=np.int32)
    items = np.array([0, 1, 0, 1, 0, 2], dtype=np.int32)
    kept = core_rows({"u": users, "i": items}, {"u": 2, "i": 2})
    assert kept.tolist() == [True] * 4 + [False] * 2


def test_a_filter_keeps_rows_that_have_a_wanted_value_in_every_column() -> None:
    tab = KeyColumn(np.array([0, 1, 2, -1, 1, 0], dtype=np.int32), pl.Series([1, 4, 9]))
    kind = KeyColumn(np.array([0, 0, 1, 0, 1, -1], dtype=np.int32), pl.Series(["1", "x"]))
    keys = {"tab": tab, "kind": kind}
    for wanted in ([1, 4], ["1", "4", "8"]):
        kept = filtered_rows(keys, {"tab": wanted})
        assert kept.tolist() == [True, True, False, False, True, True]
    both = filtered_rows(keys, {"tab": [1, 4], "kind": [1]})
    assert both.tolist() == [True, True, False, False, False, False]
    whole = KeyColumn(np.array([0, 1], dtype=np.int32), pl.Series([2.0, 2.5]))
    assert filtered_rows({"n": whole}, {"n": [2]}).tolist() == [True, False]
    message = r"the filter \(tab 1; kind y, z\) leaves no rows; correct its values"
    with pytest.raises(ValueError, match=message):
        filtered_rows(keys, {"tab": [1], "kind": ["y", "z"]})


def column_of(values: pl.Series) -> KeyColumn:
    """Every value once, then a row without a value, then every value again."""
    codes = np.arange(len(values), dtype=np.int32)
    return KeyColumn(np.concatenate([codes, [-1], codes]).astype(np.int32), values)


def test_a_sample_keeps_about_its_share_of_the_values_with_all_their_rows() -> None:
    key = column_of(pl.Series(range(20_000)))
    kept = sampled_rows(key, 0.2, seed=0)
    assert kept[:20_000].sum() == pytest.approx(4_000, abs=4 * (20_000 * 0.2 * 0.8) ** 0.5)
    assert kept[:20_000].tolist() == kept[20_001:].tolist()
    assert not kept[20_000]  # the row without a value


def test_a_sample_depends_on_value_share_and_seed_alone() -> None:
    numbers = pl.Series(range(1_000))
    small = sampled_rows(column_of(numbers), 0.1, seed=3)
    large = sampled_rows(column_of(numbers), 0.5, seed=3)
    assert (small <= large).all()
    # Other values beside them and another type change nothing.
    tail = sampled_rows(column_of(numbers.tail(300).cast(pl.String)), 0.1, seed=3)
    assert tail[:300].tolist() == small[700:1_000].tolist()
    other = sampled_rows(column_of(numbers), 0.1, seed=4)
    assert 0 < (other & small).sum() < small.sum() / 2


def test_an_empty_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the sample \(a share of 1e-09 of 5 values\) is empty"):
        sampled_rows(column_of(pl.Series(range(5))), 1e-9, seed=0)


def test_the_core_starts_from_the_sample() -> None:
    codes = {"user": np.array([0, 0, 1, 1, 2, 2]), "item": np.array([0, 1, 0, 1, 0, 2])}
    keep = np.array([True, True, True, True, False, False])
    assert core_rows(codes, {"item": 2}, keep).tolist() == keep.tolist()
    assert core_rows(codes, {"item": 3}).tolist() == [True, False, True, False, True, False]
    with pytest.raises(ValueError, match="leaves no rows"):
        core_rows(codes, {"item": 3}, keep)
