"""A prepared data set on disk, opened as memory-mapped tensors.

The folder holds `dataset.json`, Arrow shards of the splits, entity tables and vocabularies. Nothing
in it is ever unpickled. A row is stored once; the side fields of an entity are stored in the
entity's own table and gathered per batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from rankloom.batch import Batch, concat_batches, concat_groups, select_group
from rankloom.data.assemble import Assembler
from rankloom.data.columns import Columns
from rankloom.data.layout import check_columns, entity_layout, row_layout
from rankloom.data.manifest import (
    FileInfo,
    Manifest,
    SplitInfo,
    file_info,
    read_manifest,
    verify_files,
    write_manifest,
)
from rankloom.data.shards import read_rows, read_text, to_stored_batch
from rankloom.data.writer import ROWS_PER_SHARD, SplitWriter, write_entity
from rankloom.schema import Schema

__all__ = [
    "ROWS_PER_SHARD",
    "Dataset",
    "FileInfo",
    "Manifest",
    "SplitInfo",
    "SplitWriter",
    "StoredSplit",
    "file_info",
    "write_entity",
    "write_manifest",
]


class StoredSplit:
    """One split; its rows are read where they are needed.

    Args:
        name: name of the split.
        shards: stored rows; every shard but the last has `rows_per_shard`.
        rows_per_shard: rows of a full shard.
        assembler: makes batches of stored rows.
        has_missing_labels: whether batches carry a label mask.
        text_files: where text columns are read from.
    """

    name: str
    """Name of the split."""
    rows: int
    """Number of rows."""

    def __init__(
        self,
        name: str,
        shards: list[Batch],
        rows_per_shard: int,
        assembler: Assembler,
        *,
        has_missing_labels: bool,
        text_files: tuple[Path, ...] = (),
    ) -> None:
        self.name = name
        self.rows = sum(shard.size for shard in shards)
        self._shards = shards
        self._rows_per_shard = rows_per_shard
        self._assembler = assembler
        self._has_missing_labels = has_missing_labels
        self._text_files = text_files
        # For every tensor of a row, its parts in all shards.
        self._flat = list(zip(*map(_flat_tensors, shards), strict=True))

    @property
    def schema(self) -> Schema:
        """What the tensors mean."""
        return self._assembler.schema

    @property
    def device(self) -> torch.device:
        """Where the rows lie and batches are made."""
        return self._shards[0].categorical.device

    @property
    def num_shards(self) -> int:
        """Shards the rows lie in."""
        return len(self._shards)

    def memory_bytes(self) -> int:
        """Bytes of the stored rows, entity tables not counted."""
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        for shard in self._shards:
            shard.map(count)
        return total

    def gather(self, rows: Int[Tensor, " rows"]) -> Batch:
        """The given rows, in the given order.

        Args:
            rows: int64 row numbers in [0, rows), repeats allowed, on the split's device.

        Raises:
            IndexError: a row number is outside the split.
        """
        return self._assemble(self._stored_rows(rows))

    def gather_ascending(self, rows: Int[Tensor, " rows"]) -> Batch:
        """The given rows, which ascend: each shard is read once, in its own order.

        Args:
            rows: int64 row numbers in [0, rows), ascending, repeats allowed, on the split's device.

        Raises:
            IndexError: a row number is outside the split.
        """
        if len(self._shards) == 1 or not len(rows):
            return self.gather(rows)
        if rows[0] < 0 or rows[-1] >= self.rows:
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of a split of {self.rows} rows")
        starts = torch.arange(0, self.rows, self._rows_per_shard)
        bounds = [*torch.searchsorted(rows, starts).tolist(), len(rows)]
        parts = [
            shard.select(rows[first:last] - number * self._rows_per_shard)
            for number, (shard, first, last) in enumerate(
                zip(self._shards, bounds[:-1], bounds[1:], strict=True)
            )
            if first < last
        ]
        return self._assemble(parts[0] if len(parts) == 1 else concat_batches(parts))

    def slice(self, start: int, stop: int) -> Batch:
        """Rows start <= row < stop, in order.

        Raises:
            IndexError: the range is not inside the split.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of a split of {self.rows} rows")
        return self.gather(torch.arange(start, stop, device=self.device))

    def scenarios(self) -> Int[Tensor, " rows"]:
        """int32 scenario index of every row, on the split's device.

        Raises:
            ValueError: the data set has no scenario column.
        """
        parts = [shard.scenario for shard in self._shards if shard.scenario is not None]
        if not parts:
            raise ValueError(
                "the data set has no scenarios; name their column as roles.scenario in its table "
                "schema and prepare it again"
            )
        return torch.cat(parts)

    def texts(self, name: str) -> pa.ChunkedArray:
        """A text column of all rows, memory-mapped.

        Raises:
            KeyError: there is no such text column; the message lists those there are.
        """
        if name not in self.schema.texts:
            known = ", ".join(self.schema.texts) or "none"
            raise KeyError(f"no text column {name}; known: {known}")
        return pa.chunked_array([read_text(path, name) for path in self._text_files])

    def to(self, device: torch.device | str) -> "StoredSplit":
        """All rows and entity tables as one shard in the memory of a device."""
        whole = concat_batches([shard.to(device) for shard in self._shards])
        return StoredSplit(
            self.name,
            [whole],
            max(self.rows, 1),
            self._assembler.to(device),
            has_missing_labels=self._has_missing_labels,
            text_files=self._text_files,
        )

    def _assemble(self, stored: Batch) -> Batch:
        return self._assembler(stored, has_missing_labels=self._has_missing_labels)

    def _stored_rows(self, rows: Tensor) -> Batch:
        # On a device the check would wait for the device; index_select asserts there by itself.
        if rows.device.type == "cpu" and len(rows):
            low, high = (int(bound) for bound in rows.aminmax())
            if low < 0 or high >= self.rows:
                raise IndexError(f"row {low if low < 0 else high} of a split of {self.rows} rows")
        if len(self._shards) == 1:
            return self._shards[0].select(rows)
        return self._gather_from_shards(rows)

    def _gather_from_shards(self, rows: Tensor) -> Batch:
        """Rows grouped by shard, gathered shard by shard, put back into the order wanted."""
        shard_of = rows.div(self._rows_per_shard, rounding_mode="floor")
        # numpy sorts 16-bit integers by radix, many times faster than torch sorts.
        small = shard_of.short() if self.num_shards < 2**15 else shard_of
        order = torch.from_numpy(small.numpy().argsort(kind="stable"))
        local = (rows - shard_of * self._rows_per_shard).index_select(0, order)
        counts = shard_of.bincount(minlength=self.num_shards).tolist()
        used = [shard for shard, count in enumerate(counts) if count] or [0]
        index = local.split([counts[shard] for shard in used])  # type: ignore[no-untyped-call]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        gathered = iter(
            [
                _gather_parts([parts[shard] for shard in used], index).index_select(0, place)
                for parts in self._flat
            ]
        )
        flat = replace(self._shards[0], sequences={}).map(lambda _: next(gathered))
        groups = {}
        for name in self._shards[0].sequences:
            selected = [
                select_group(self._shards[shard].sequences[name], part)
                for shard, part in zip(used, index, strict=True)
            ]
            groups[name] = select_group(concat_groups(selected), place)
        return replace(flat, sequences=groups)


def _gather_parts(parts: list[Tensor], index: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors, one after another, each copied once."""
    count = sum(len(part) for part in index)
    joined = parts[0].new_empty((count, *parts[0].shape[1:]))
    start = 0
    for part, rows in zip(parts, index, strict=True):
        torch.index_select(part, 0, rows, out=joined.narrow(0, start, len(rows)))
        start += len(rows)
    return joined


def _flat_tensors(stored: Batch) -> list[Tensor]:
    """The tensors of stored rows that have one row each, in the order `Batch.map` visits them."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    replace(stored, sequences={}).map(collect)
    return tensors


class Dataset:
    """A prepared data set folder."""

    folder: Path
    """The folder."""
    manifest: Manifest
    """What it holds."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.entities: dict[str, Batch] = {
            name: read_rows(folder / "entities" / f"{name}.arrow", entity_layout(self.schema, name))
            for name in manifest.entity_keys
        }
        """Stored rows of every entity table."""
        self._assembler = Assembler(self.schema, manifest.entity_keys, self.entities)

    @classmethod
    def open(cls, folder: str | Path, *, verify: Literal["size", "hash"] = "size") -> "Dataset":
        """Open a folder that `rankloom.prepare` made.

        Args:
            folder: the folder.
            verify: `size` compares file sizes with the manifest; `hash` reads every file.

        Raises:
            FileNotFoundError: no folder, no data set in it, or a file is missing.
            ValueError: another format version, or a file is truncated or altered.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        verify_files(path, manifest.files, verify)
        return cls(path, manifest)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def schema(self) -> Schema:
        """What the tensors mean."""
        return self.manifest.fitted

    @property
    def data_hash(self) -> str:
        """Short hash of the data."""
        return self.manifest.data_hash()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest.splits)

    def split(self, name: str) -> StoredSplit:
        """One split.

        Raises:
            KeyError: there is no such split; the message lists those there are.
            ValueError: a shard does not hold what the manifest says.
        """
        info = self.manifest.splits.get(name)
        if info is None:
            raise KeyError(f"no split {name}; known: {', '.join(self.splits)}")
        layout = row_layout(self.schema)
        files = tuple(self.folder / shard for shard in info.shards)
        shards = [read_rows(file, layout) for file in files]
        for index, (file, shard) in enumerate(zip(files, shards, strict=True)):
            expected = min(info.rows_per_shard, info.rows - index * info.rows_per_shard)
            if shard.size != expected:
                raise ValueError(f"{file} is altered: {shard.size} rows, expected {expected}")
        return StoredSplit(
            name,
            shards,
            info.rows_per_shard,
            self._assembler,
            has_missing_labels=info.has_missing_labels,
            text_files=files,
        )

    def batch(self, columns: Columns) -> Batch:
        """Encoded rows in memory (a request, a frame to score) as a batch.

        Labels and other roles are optional; the batch has a label mask when a label is missing.

        Raises:
            ValueError: the columns are not those that the schema stores in rows.
        """
        check_columns(columns, row_layout(self.schema), labels=False)
        stored = to_stored_batch(columns)
        missing = stored.labels is not None and bool(stored.labels.isnan().any())
        return self._assembler(stored, has_missing_labels=missing)
