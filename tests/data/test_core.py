from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data.core import core_rows


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
