import itertools

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data.history import history_column, index_history
from rankloom.data.keys import KeyCollector

Row = tuple[int, int, bool]


def slow_histories(rows: list[Row], max_length: int) -> list[list[int]]:
    """Log rows of each row's events, by a loop over all pairs."""
    found = []
    for user, time, _ in rows:
        earlier = [
            (other_time, other)
            for other, (other_user, other_time, enters) in enumerate(rows)
            if enters and user >= 0 and other_user == user and other_time < time
        ]
        found.append([other for _, other in sorted(earlier)][-max_length:])
    return found


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-4, 4), st.booleans()), max_size=40),
    st.integers(1, 6),
    st.data(),
)
def test_histories_agree_with_the_slow_reference(
    rows: list[Row], max_length: int, data: st.DataObject
) -> None:
    users = np.array([row[0] for row in rows], dtype=np.int32)
    times = np.array([row[1] for row in rows], dtype=np.int64)
    enters = np.array([row[2] for row in rows], dtype=np.bool_)
    index = index_history(users, times, enters, max_length)
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)) if rows else []
    reference = slow_histories(rows, max_length)
    for wanted in (list(range(len(rows))), picked):
        offsets, events = index.lists(np.array(wanted, dtype=np.int64))
        lists = [events[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert lists == [reference[row] for row in wanted]


def test_column_holds_the_events_values() -> None:
    collector = KeyCollector(pl.String())
    collector.add(pl.Series("item", ["a", "b", None, "c"]))
    item = collector.finish()
    offsets = np.array([0, 0, 2, 4], dtype=np.int64)
    events = np.array([0, 2, 3, 1], dtype=np.int32)
    column = history_column(offsets, events, item, "past.item")
    assert column.name == "past.item"
    assert column.dtype == pl.List(pl.String)
    assert column.to_list() == [[], ["a", None], ["c", "b"]]
