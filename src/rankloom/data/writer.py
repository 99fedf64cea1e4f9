"""Writing encoded rows: shards of a split, and entity tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rankloom.data.columns import Columns, SequenceColumns
from rankloom.data.layout import Layout, check_columns, entity_layout, row_layout
from rankloom.data.manifest import FileInfo, SplitInfo
from rankloom.data.shards import write_rows
from rankloom.schema import Schema

ROWS_PER_SHARD = 2**20
"""Rows of every shard of a split but the last."""


class SplitWriter:
    """Writes the rows of one split as shards of equal length, however they arrive.

    Memory: the rows of one shard. Call `close` to write the last shard; used as a context manager,
    it closes itself unless an error passes through.
    """

    files: dict[str, FileInfo]
    """Shards written so far, by path relative to the folder."""

    def __init__(
        self, folder: Path, split: str, schema: Schema, rows_per_shard: int = ROWS_PER_SHARD
    ) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be positive; got {rows_per_shard}")
        self.files = {}
        self._folder = folder
        self._split = split
        self._layout = row_layout(schema)
        self._rows_per_shard = rows_per_shard
        self._pending: list[Columns] = []
        self._pending_rows = 0
        self._rows = 0
        self._known = np.zeros(schema.num_tasks, dtype=np.int64)
        self._positive = np.zeros(schema.num_tasks, dtype=np.int64)
        (folder / split).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is None:
            self.close()

    def append(self, columns: Columns) -> None:
        """Add rows after those added before.

        Raises:
            ValueError: the columns are not those that the schema stores in rows.
            OSError: a shard cannot be written.
        """
        check_columns(columns, self._layout)
        if columns.labels is None:
            raise ValueError("labels: got none; a split needs labels (NaN where missing)")
        self._known += np.sum(~np.isnan(columns.labels), axis=0)
        self._positive += np.sum(columns.labels > 0, axis=0)
        self._rows += columns.rows
        start = 0
        while start < columns.rows:
            stop = min(columns.rows, start + self._rows_per_shard - self._pending_rows)
            # Copied: a slice would keep the whole chunk alive, and the caller may fill it again.
            self._pending.append(_slice(columns, start, stop))
            self._pending_rows += stop - start
            start = stop
            if self._pending_rows == self._rows_per_shard:
                self._write_shard()

    def close(self) -> SplitInfo:
        """Write what is left; an empty split gets one empty shard."""
        if self._pending_rows or not self.files:
            self._write_shard()
        return SplitInfo(
            rows=self._rows,
            rows_per_shard=self._rows_per_shard,
            shards=tuple(self.files),
            known_labels=tuple(self._known.tolist()),
            positive_labels=tuple(self._positive.tolist()),
        )

    def _write_shard(self) -> None:
        name = f"{self._split}/{len(self.files):05d}.arrow"
        shard = _join(self._pending, self._layout)
        self._pending, self._pending_rows = [], 0
        self.files[name] = write_rows(self._folder / name, shard, self._layout)


def write_entity(folder: Path, name: str, schema: Schema, columns: Columns) -> FileInfo:
    """Write the table of one entity, `entities/<name>.arrow`.

    Args:
        folder: the data set folder.
        name: the entity.
        schema: the fitted schema; its columns that have this entity are stored.
        columns: the rows; row i belongs to id i of the key field's table (rows 0 and 1, padding
            and out-of-vocabulary, hold padding).

    Raises:
        ValueError: the columns are not those of the entity.
        OSError: the file cannot be written.
    """
    layout = entity_layout(schema, name)
    check_columns(columns, layout)
    (folder / "entities").mkdir(parents=True, exist_ok=True)
    return write_rows(folder / "entities" / f"{name}.arrow", columns, layout)


def _slice(columns: Columns, start: int, stop: int) -> Columns:
    def rows(array: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if array is None else array[start:stop].copy()

    return Columns(
        categorical=columns.categorical[start:stop].copy(),
        numeric=columns.numeric[start:stop].copy(),
        sequences={
            name: _slice_sequence(group, start, stop) for name, group in columns.sequences.items()
        },
        vectors={name: value[start:stop].copy() for name, value in columns.vectors.items()},
        labels=rows(columns.labels),
        weight=rows(columns.weight),
        scenario=rows(columns.scenario),
        group=rows(columns.group),
        time=rows(columns.time),
        texts={
            name: _join_texts([value.slice(start, stop - start)])
            for name, value in columns.texts.items()
        },
    )


def _slice_sequence(group: SequenceColumns, start: int, stop: int) -> SequenceColumns:
    first, last = group.offsets[start], group.offsets[stop]
    return SequenceColumns(
        offsets=group.offsets[start : stop + 1] - first,
        ids=group.ids[first:last].copy(),
        numeric=None if group.numeric is None else group.numeric[first:last].copy(),
        time=None if group.time is None else group.time[first:last].copy(),
        vectors={name: value[first:last].copy() for name, value in group.vectors.items()},
    )


def _join(parts: list[Columns], layout: Layout) -> Columns:
    if not parts:
        return empty_columns(layout)
    if len(parts) == 1:
        return parts[0]

    def rows(name: str) -> NDArray[Any] | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Columns(
        categorical=np.concatenate([part.categorical for part in parts]),
        numeric=np.concatenate([part.numeric for part in parts]),
        sequences={
            name: _join_sequences([part.sequences[name] for part in parts])
            for name in layout.sequences
        },
        vectors={
            name: np.concatenate([part.vectors[name] for part in parts]) for name in layout.vectors
        },
        labels=rows("labels"),
        weight=rows("weight"),
        scenario=rows("scenario"),
        group=rows("group"),
        time=rows("time"),
        texts={name: _join_texts([part.texts[name] for part in parts]) for name in layout.texts},
    )


def _join_sequences(parts: list[SequenceColumns]) -> SequenceColumns:
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    first = parts[0]
    return SequenceColumns(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        ids=np.concatenate([part.ids for part in parts]),
        numeric=None
        if first.numeric is None
        else np.concatenate([part.numeric for part in parts if part.numeric is not None]),
        time=None
        if first.time is None
        else np.concatenate([part.time for part in parts if part.time is not None]),
        vectors={
            name: np.concatenate([part.vectors[name] for part in parts]) for name in first.vectors
        },
    )


def _join_texts(parts: list[pa.Array]) -> pa.Array:
    # One array alone would not be copied, and would keep and write the whole that it is cut from.
    nothing = pa.array([], pa.large_string())
    return pa.concat_arrays([nothing, *(part.cast(pa.large_string()) for part in parts)])


def empty_columns(layout: Layout) -> Columns:
    """No rows, in the shapes of a layout."""
    return Columns(
        categorical=np.zeros((0, layout.categorical), np.int32),
        numeric=np.zeros((0, layout.numeric), np.float32),
        sequences={
            name: SequenceColumns(
                offsets=np.zeros(1, np.int64),
                ids=np.zeros((0, group.id_columns), np.int32),
                numeric=np.zeros((0, group.numeric_columns), np.float32)
                if group.numeric_columns
                else None,
                time=np.zeros(0, np.int64) if group.has_time else None,
                vectors={
                    key: np.zeros((0, width), np.float32) for key, width in group.vectors.items()
                },
            )
            for name, group in layout.sequences.items()
        },
        vectors={name: np.zeros((0, width), np.float32) for name, width in layout.vectors.items()},
        labels=np.zeros((0, layout.labels), np.float32) if layout.labels else None,
        weight=np.zeros(0, np.float32) if layout.has_weight else None,
        scenario=np.zeros(0, np.int32) if layout.has_scenario else None,
        group=np.zeros(0, np.int64) if layout.has_group else None,
        time=np.zeros(0, np.int64) if layout.has_time else None,
        texts={name: pa.array([], pa.large_string()) for name in layout.texts},
    )
