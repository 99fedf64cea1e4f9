"""Each row's earlier events of the same user, found once for the whole log by sorting."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from rankloom.data.keys import Codes, KeyColumn, Times


@dataclass(frozen=True)
class HistoryIndex:
    """Where each row's events stand in the list of all events (8 bytes per row)."""

    start: NDArray[np.int32]
    """[rows]; first event, as an index into `events`."""
    length: NDArray[np.int32]
    """[rows]; number of events."""
    events: NDArray[np.int32]
    """[events]; rows of the log, by user and time; events at one time stand in input order."""

    def lists(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Offsets [len(rows) + 1] and log rows [offsets[-1]] of the events of these rows."""
        length = self.length[rows].astype(np.int64)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(length, out=offsets[1:])
        shift = np.repeat(self.start[rows] - offsets[:-1], length)
        return offsets, self.events[shift + np.arange(offsets[-1])]


def index_history(
    users: Codes, times: Times, enters: NDArray[np.bool_], max_length: int
) -> HistoryIndex:
    """Find every row's newest events strictly before its time.

    Rows of every split are events: what counts is the time alone, so that a test row sees the
    user's training and validation events and the test events before it.

    Args:
        users: [rows] codes; a row without user (-1) has no history and enters none.
        times: [rows].
        enters: [rows]; which rows are events.
        max_length: newest events kept.
    """
    rows = len(users)
    order = np.lexsort((times, users)).astype(np.int32)
    user, time = users[order], times[order]
    is_event = enters[order] & (user >= 0)
    # before[k]: number of events among the first k rows in sorted order.
    before = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(is_event, out=before[1:])
    new_user = np.ones(rows, dtype=np.bool_)
    new_user[1:] = user[1:] != user[:-1]
    new_time = new_user.copy()
    new_time[1:] |= time[1:] != time[:-1]
    end = before[:-1][_run_starts(new_time)]
    start = np.maximum(before[:-1][_run_starts(new_user)], end - max_length)
    length = np.where(user < 0, 0, end - start).astype(np.int32)
    index = HistoryIndex(
        np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.int32), order[is_event]
    )
    index.start[order] = start
    index.length[order] = length
    return index


def history_column(
    offsets: NDArray[np.int64], events: NDArray[np.int32], member: KeyColumn, name: str
) -> pl.Series:
    """List column of a member's values for the events that `HistoryIndex.lists` gave."""
    values = member.take(member.codes[events]).to_arrow()
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pl.Series(name, lists, dtype=pl.List(member.values.dtype))


def _run_starts(first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position the position where its run began."""
    return np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
