"""Typed cells on disk between the two passes of `prepare`: one Arrow file per split and group.

Record batch i of the rows' file and of every group's file belong together.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from rankloom.data.cells import Cells

_LENGTH = "length/"


class Spill:
    """Cells of one split, written once in order, then read back from mapped files."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._writers: dict[str, pa.ipc.RecordBatchFileWriter] = {}
        self._sinks: list[pa.OSFile] = []
        self._groups: list[str] = []
        self.rows = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            for sink in self._sinks:
                sink.close()

    def append(self, cells: Cells) -> None:
        """Add rows; none are ignored."""
        if cells.height == 0:
            return
        lengths = [pl.Series(_LENGTH + name, value) for name, value in cells.lengths.items()]
        self._write("rows", cells.rows.hstack(lengths))
        self._groups = list(cells.events)
        for place, name in enumerate(self._groups):
            self._write(f"events-{place}", cells.events[name])
        self.rows += cells.height

    def close(self) -> None:
        """End the files."""
        for writer in self._writers.values():
            writer.close()
        for sink in self._sinks:
            sink.close()

    def read(self) -> Iterator[Cells]:
        """The cells, batch by batch, in order; call after `close`."""
        if not self.rows:
            return
        rows = pa.ipc.open_file(pa.memory_map(str(self._path("rows"))))
        events = [
            pa.ipc.open_file(pa.memory_map(str(self._path(f"events-{place}"))))
            for place in range(len(self._groups))
        ]
        for index in range(rows.num_record_batches):
            frame = _frame(rows.get_batch(index))
            yield Cells(
                frame.height,
                frame.drop([_LENGTH + name for name in self._groups]),
                {name: frame[_LENGTH + name].to_numpy() for name in self._groups},
                {
                    name: _frame(reader.get_batch(index))
                    for name, reader in zip(self._groups, events, strict=True)
                },
            )

    def _path(self, part: str) -> Path:
        return self._folder / f"{self._split}-{part}.arrow"

    def _write(self, part: str, frame: pl.DataFrame) -> None:
        table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        if part not in self._writers:
            sink = pa.OSFile(str(self._path(part)), "wb")
            self._sinks.append(sink)
            self._writers[part] = pa.ipc.new_file(sink, table.schema)
        arrays = [column.combine_chunks() for column in table.columns]
        arrays = [a if isinstance(a, pa.Array) else pa.concat_arrays(a.chunks) for a in arrays]
        self._writers[part].write_batch(pa.RecordBatch.from_arrays(arrays, schema=table.schema))


def by_split(cells: Cells, split: NDArray[np.int8], count: int) -> list[Cells]:
    """The rows of each split, in order: one gather, then slices.

    Args:
        cells: the rows.
        split: [rows]; the split of each row.
        count: number of splits.
    """
    sizes = np.bincount(split, minlength=count)
    if cells.events:
        return [select_rows(cells, split == code) for code in range(count)]
    rows = cells.rows.rechunk()  # a gather from many chunks is several times slower
    if sizes.max(initial=0) < cells.height:
        rows = rows[np.argsort(split, kind="stable").astype(np.uint32)]
    starts = np.cumsum(sizes) - sizes
    return [
        Cells(size, rows.slice(start, size), {}, {})
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
    ]


def select_rows(cells: Cells, mask: NDArray[np.bool_]) -> Cells:
    """The rows where `mask` is True."""
    if mask.all():
        return cells
    wanted = pl.Series(mask)
    lengths, events = {}, {}
    for name, value in cells.lengths.items():
        lengths[name] = value[mask]
        events[name] = cells.events[name].filter(pl.Series(np.repeat(mask, value)))
    return Cells(int(mask.sum()), cells.rows.filter(wanted), lengths, events)


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
