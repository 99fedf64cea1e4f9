"""Raw tables of every input format as frames of bounded size, in file order.

Types are settled once per table and are the same in every frame: whole numbers are Int64, other
numbers Float64 (NaN is missing), text is String, lists are lists of these (lists of Float32 stay).
Booleans become 0 and 1, dates and timestamps integer seconds since 1970. Whole numbers beyond 64
bits become text. Text formats go by their first block (32 MiB); a later cell that does not fit is
an error that names file, row and column, never another type.
"""

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rankloom.data.raw_types import Kind, Types, check_present, distinct, plain_type, to_types
from rankloom.data.table_schema import TableInput
from rankloom.data.text_readers import DelimitedReader, EntryReader, JsonLinesReader

CHUNK_ROWS = 2**18
"""Rows of a frame, at most."""

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".libfm": "libfm",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


class Reader(Protocol):
    """Reads one file of one format."""

    def types(self, path: Path) -> Types:
        """Columns of the file, in order, with their final types."""
        ...

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Frames with the asked-for columns in the types of the table."""
        ...


class RawTable:
    """The files of one raw table, read as one."""

    columns: Types
    """Column name -> type, in the order of the first file."""
    files: tuple[Path, ...]
    """The files, in reading order."""

    def __init__(self, files: Sequence[Path], reader: Reader) -> None:
        self.files = tuple(files)
        self._reader = reader
        self.columns = reader.types(self.files[0])

    def chunks(
        self, columns: Sequence[str] | None = None, rows: int = CHUNK_ROWS
    ) -> Iterator[pl.DataFrame]:
        """Yield frames of at most `rows` rows; repeated calls give the same rows.

        Args:
            columns: columns to read, in this order; None: all.
            rows: most rows of a frame.

        Raises:
            ValueError: a column is missing, a cell is not of its column's type, or a file is
                damaged.
        """
        for index in range(len(self.files)):
            yield from self.file_chunks(index, columns, rows)

    def file_chunks(
        self, index: int, columns: Sequence[str] | None = None, rows: int = CHUNK_ROWS
    ) -> Iterator[pl.DataFrame]:
        """As `chunks`, for the file with this index in `files`."""
        wanted = list(self.columns if columns is None else columns)
        self.check_columns(wanted)
        # The number of rows is that of some column, so that one is read even when none is wanted.
        read = wanted or list(self.columns)[:1]
        for frame in self._reader.frames(self.files[index], self.columns, read):
            for start in range(0, frame.height, rows):
                yield frame.slice(start, rows)

    def collect(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Read all rows into one frame; errors as in `chunks`."""
        wanted = list(self.columns if columns is None else columns)
        self.check_columns(wanted)
        empty = pl.DataFrame(schema={name: self.columns[name] for name in wanted})
        return pl.concat([empty, *self.chunks(wanted)], rechunk=True)

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Raise ValueError for columns that the table does not have."""
        check_present(wanted, self.columns, self.files[0].name)


def open_table(
    spec: TableInput,
    root: Path,
    files: str | tuple[str, ...] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> RawTable:
    """Open the files of a raw table; types come from the first file.

    Text in `null_values` is a missing value, and so is empty text where a number is expected. Of
    text files, a column that is used as a category is Int64 when its first block holds nothing but
    whole numbers that read back as written, else String; a column used as a number is Float64; any
    other goes by its cells. `spec.types` overrules both.

    libsvm and libfm lines are `label id:value ...` with one entry for each name of `spec.fields`.
    They give the columns `label` (-1 becomes 0) and one per field: the Int64 id of a field whose
    entries all have the value 1; the Float64 value of a field whose entries all have one id; a
    field that mixes both is an error, answered by `types` ("integer" takes the ids, "number" the
    values).

    Args:
        spec: files and format.
        root: folder that relative paths start from.
        files: read these instead of `spec.files`.
        kinds: what columns are used for.

    Raises:
        FileNotFoundError: a file does not exist, or a glob matches nothing.
        ValueError: an unknown or mixed format, an empty file, columns that are missing or double.
    """
    paths = find_files(spec.files if files is None else files, root)
    formats = {_format_of(path, spec.format) for path in paths}
    if len(formats) > 1:
        raise ValueError(f"the files of a table need one format; got {', '.join(sorted(formats))}")
    return RawTable(paths, _reader(formats.pop(), spec, dict(kinds or {})))


def find_files(files: str | tuple[str, ...], root: Path) -> list[Path]:
    """Resolve paths and globs; the matches of a glob are sorted by name.

    Raises:
        FileNotFoundError: a path does not exist, or a glob matches nothing.
    """
    found: list[Path] = []
    for pattern in (files,) if isinstance(files, str) else files:
        path = root / pattern
        if path.is_file():
            found.append(path)
            continue
        matches = sorted(
            Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()
        )
        if not matches:
            what = "no file matches" if glob.has_magic(pattern) else "no such file:"
            raise FileNotFoundError(f"{what} {path}")
        found.extend(matches)
    if not found:
        raise FileNotFoundError("no files are given; name at least one in [input] files")
    return found


def _format_of(path: Path, declared: str) -> str:
    if declared != "auto":
        return declared
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    if ending not in FORMATS:
        raise ValueError(
            f"{path.name}: unknown format, ending {ending or 'none'!r}; set format in [input] to "
            f"one of {', '.join(sorted(set(FORMATS.values())))}"
        )
    return FORMATS[ending]


def _reader(form: str, spec: TableInput, kinds: dict[str, Kind]) -> Reader:
    if form == "parquet":
        return ParquetReader(kinds)
    if form == "jsonl":
        return JsonLinesReader(spec, kinds)
    if form in ("libsvm", "libfm"):
        return EntryReader(spec)
    return DelimitedReader(spec, "\t" if form == "tsv" else ",", kinds)


class ParquetReader:
    """Parquet, by batches of rows."""

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self.kinds = kinds

    def types(self, path: Path) -> Types:
        """The file's own types, made plain."""
        schema = self._open(path).schema_arrow
        distinct(list(schema.names), path.name)
        empty: pl.DataFrame = pl.from_arrow(schema.empty_table())  # type: ignore[assignment]
        final: Types = {}
        for name, dtype in empty.schema.items():
            final[name] = plain_type(dtype)
            if dtype == pl.UInt64:
                # Ids beyond 64 signed bits would be damaged by a cast; they become text.
                highest = pl.scan_parquet(path).select(pl.col(name).max()).collect().item()
                final[name] = pl.String() if (highest or 0) >= 2**63 else pl.Int64()
            elif self.kinds.get(name) == "number" and final[name] == pl.Int64:
                final[name] = pl.Float64()
        return final

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Read batch by batch."""
        file = self._open(path)
        check_present(columns, list(file.schema_arrow.names), path.name)
        try:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=list(columns)):
                frame: pl.DataFrame = pl.from_arrow(batch)  # type: ignore[assignment]
                yield to_types(frame.select(columns), types, path.name)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path.name}: the parquet data is damaged: {error}") from None

    def _open(self, path: Path) -> pq.ParquetFile:
        if path.stat().st_size == 0:
            raise ValueError(f"{path.name} is empty")
        try:
            return pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path.name} is not a parquet file: {error}") from None
