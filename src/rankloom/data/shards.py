"""Arrow files of encoded rows: written once, read back as tensors without copying.

A file holds one uncompressed record batch. Fixed-size-list columns lie in it as plain [rows, width]
arrays, so that memory-mapping the file gives tensors that cost nothing until their pages are
touched. Pages are mapped copy-on-write: the file cannot be changed through them.
"""

import hashlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.batch import Batch, SequenceGroup
from rankloom.data.columns import Columns, SequenceColumns
from rankloom.data.layout import Layout, SequenceLayout
from rankloom.data.manifest import FileInfo


class _HashingStream:
    """A binary file that hashes and counts what is written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._bytes = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        self._stream.write(data)
        self._bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True

    def info(self) -> FileInfo:
        return FileInfo(bytes=self._bytes, sha256=self._digest.hexdigest())


def write_rows(path: Path, columns: Columns, layout: Layout) -> FileInfo:
    """Write rows as one Arrow file.

    Args:
        path: the file; an existing one is replaced.
        columns: the rows, already checked against the layout.
        layout: which columns are stored.

    Returns:
        The file's size and hash, taken while writing.

    Raises:
        OSError: the file cannot be written (a full disk, say); the part written is removed.
    """
    batch = _to_arrow(columns, layout)
    try:
        with path.open("wb") as stream:
            sink = _HashingStream(stream)
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return sink.info()


def _to_arrow(columns: Columns, layout: Layout) -> pa.RecordBatch:
    arrays: dict[str, pa.Array] = {}
    if layout.categorical:
        arrays["categorical"] = _matrix(columns.categorical)
    if layout.numeric:
        arrays["numeric"] = _matrix(columns.numeric)
    for name in layout.vectors:
        arrays[f"vector.{name}"] = _matrix(columns.vectors[name])
    for name in layout.sequences:
        arrays[f"sequence.{name}"] = _sequence(columns.sequences[name])
    if layout.labels and columns.labels is not None:
        arrays["labels"] = _matrix(columns.labels)
    for name in ("weight", "scenario", "group", "time"):
        array = getattr(columns, name)
        if array is not None:
            arrays[name] = _flat(array)
    for name in layout.texts:
        arrays[f"text.{name}"] = columns.texts[name].cast(pa.large_string())
    return pa.RecordBatch.from_pydict(arrays)


def _flat(array: NDArray[Any]) -> pa.Array:
    contiguous = np.ascontiguousarray(array)
    kind = pa.from_numpy_dtype(contiguous.dtype)
    return pa.Array.from_buffers(kind, contiguous.size, [None, pa.py_buffer(contiguous)])


def _matrix(array: NDArray[Any]) -> pa.Array:
    kind = pa.list_(pa.field("item", pa.from_numpy_dtype(array.dtype), False), array.shape[1])
    return pa.FixedSizeListArray.from_arrays(_flat(array.reshape(-1)), type=kind)


def _sequence(columns: SequenceColumns) -> pa.Array:
    members = {}
    if columns.ids.shape[1]:
        members["ids"] = _matrix(columns.ids)
    if columns.numeric is not None:
        members["numeric"] = _matrix(columns.numeric)
    if columns.time is not None:
        members["time"] = _flat(columns.time)
    for name, vectors in columns.vectors.items():
        members[f"vector.{name}"] = _matrix(vectors)
    events = pa.StructArray.from_arrays(list(members.values()), list(members))
    return pa.LargeListArray.from_arrays(_flat(columns.offsets), events)


def read_rows(path: Path, layout: Layout) -> Batch:
    """Map an Arrow file as tensors.

    Args:
        path: the file.
        layout: which columns it should hold.

    Returns:
        The stored columns: entity columns are not there yet, and missing labels are NaN.

    Raises:
        ValueError: the file is no such file: damaged, or with other columns.
    """
    reader = _Reader(path)
    sequences = {
        name: _read_sequence(reader, f"sequence.{name}", sequence)
        for name, sequence in layout.sequences.items()
    }
    vectors = {
        name: reader.matrix(f"vector.{name}", width, torch.float32)
        for name, width in layout.vectors.items()
    }
    return Batch(
        categorical=reader.matrix("categorical", layout.categorical, torch.int32),
        numeric=reader.matrix("numeric", layout.numeric, torch.float32),
        sequences=sequences,
        vectors=vectors,
        labels=reader.matrix("labels", layout.labels, torch.float32) if layout.labels else None,
        weight=reader.flat("weight", torch.float32) if layout.has_weight else None,
        scenario=reader.flat("scenario", torch.int32) if layout.has_scenario else None,
        group=reader.flat("group", torch.int64) if layout.has_group else None,
        time=reader.flat("time", torch.int64) if layout.has_time else None,
    )


def read_text(path: Path, name: str) -> pa.Array:
    """A text column of an Arrow file."""
    return _Reader(path).column(f"text.{name}")


def _read_sequence(reader: "_Reader", name: str, layout: SequenceLayout) -> SequenceGroup:
    column = reader.column(name)
    if not pa.types.is_large_list(column.type) or not pa.types.is_struct(column.type.value_type):
        raise reader.unexpected(name, column.type)
    offsets = reader.tensor(column, 1, column.offset, len(column) + 1, torch.int64)
    events = column.values
    known = {events.type.field(index).name for index in range(events.type.num_fields)}

    def member(child: str, width: int | None, kind: torch.dtype) -> Tensor:
        if child not in known:
            raise reader.unexpected(f"{name} without {child}", events.type)
        return reader.array(f"{name}.{child}", events.field(child), width, kind)

    count = layout.id_columns
    ids = member("ids", count, torch.int32) if count else torch.empty(len(events), 0).int()
    numeric = layout.numeric_columns
    return SequenceGroup(
        offsets=offsets,
        ids=ids,
        numeric=member("numeric", numeric, torch.float32) if numeric else None,
        time=member("time", None, torch.int64) if layout.has_time else None,
        vectors={
            vector: member(f"vector.{vector}", width, torch.float32)
            for vector, width in layout.vectors.items()
        },
    )


_ARROW_TYPES = {
    torch.int32: pa.int32(),
    torch.int64: pa.int64(),
    torch.float32: pa.float32(),
}


class _Reader:
    """Columns of one mapped Arrow file as tensors over its pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Copy-on-write: torch wants writable memory, and the file must not change.
        self._bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="c"))
        self._batch = self._open()

    def _open(self) -> pa.RecordBatch:
        try:
            reader = pa.ipc.open_file(pa.py_buffer(self._bytes))
            count = reader.num_record_batches
            if count != 1:
                raise ValueError(f"{self.path} is altered: {count} record batches, expected 1")
            batch = reader.get_batch(0)
            batch.validate()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self.path} is damaged: {error}; prepare again") from None
        return batch

    def unexpected(self, name: str, got: object) -> ValueError:
        return ValueError(
            f"{self.path} is altered: unexpected column {name} ({got}); prepare again"
        )

    def column(self, name: str) -> pa.Array:
        if name not in self._batch.schema.names:
            raise ValueError(f"{self.path} is altered: it has no column {name}; prepare again")
        return self._batch.column(name)

    def matrix(self, name: str, width: int, kind: torch.dtype) -> Tensor:
        if width == 0:
            return torch.empty(self._batch.num_rows, 0, dtype=kind)
        return self.array(name, self.column(name), width, kind)

    def flat(self, name: str, kind: torch.dtype) -> Tensor:
        return self.array(name, self.column(name), None, kind)

    def array(self, name: str, column: pa.Array, width: int | None, kind: torch.dtype) -> Tensor:
        """A column as [rows] (width None) or [rows, width]."""
        values = column
        shape: tuple[int, ...] = (len(column),)
        if width is not None:
            if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != width:
                raise self.unexpected(name, column.type)
            values, shape = column.values, (len(column), width)
        if values.type != _ARROW_TYPES[kind] or column.null_count or values.null_count:
            raise self.unexpected(name, column.type)
        return self.tensor(values, 1, values.offset, len(values), kind).view(shape)

    def tensor(
        self, array: pa.Array, buffer: int, offset: int, count: int, kind: torch.dtype
    ) -> Tensor:
        size = count * kind.itemsize
        if count == 0:
            return torch.empty(0, dtype=kind)
        address = array.buffers()[buffer].address - self._bytes.ctypes.data
        start = address + offset * kind.itemsize
        if not 0 <= start <= start + size <= self._bytes.size:
            raise ValueError(f"{self.path} is altered: a column lies outside the file")
        return torch.from_numpy(self._bytes[start : start + size]).view(kind)


def to_stored_batch(columns: Columns) -> Batch:
    """Encoded rows in memory as the tensors that `read_rows` gives for rows on disk."""
    return Batch(
        categorical=_tensor(columns.categorical),
        numeric=_tensor(columns.numeric),
        sequences={
            name: SequenceGroup(
                offsets=_tensor(group.offsets),
                ids=_tensor(group.ids),
                numeric=_optional_tensor(group.numeric),
                time=_optional_tensor(group.time),
                vectors={key: _tensor(value) for key, value in group.vectors.items()},
            )
            for name, group in columns.sequences.items()
        },
        vectors={name: _tensor(value) for name, value in columns.vectors.items()},
        labels=_optional_tensor(columns.labels),
        weight=_optional_tensor(columns.weight),
        scenario=_optional_tensor(columns.scenario),
        group=_optional_tensor(columns.group),
        time=_optional_tensor(columns.time),
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    usable = array if array.flags.writeable and array.flags.c_contiguous else array.copy()
    return torch.from_numpy(usable)


def _optional_tensor(array: NDArray[Any] | None) -> Tensor | None:
    return None if array is None else _tensor(array)
