"""Raw tables of every input format as frames of bounded size, in file order.

Types are settled once per table and are the same in every frame: whole numbers are Int64, other
numbers Float64 (NaN is missing), text is String, lists are lists of these (lists of Float32 stay).
Booleans become 0 and 1, dates and timestamps integer seconds since 1970. Whole numbers beyond 64
bits become text. Text formats go by their first block (32 MiB); a later cell that does not fit is
an error that names file, row and column, never another type.
"""

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rankloom.data.blocks import BLOCK_BYTES, drop_blank_lines, line_blocks, read_ahead
from rankloom.data.delimited import (
    INFER_ROWS,
    Dialect,
    Place,
    check_cells,
    infer_types,
    leading_zeros,
    parse_block,
    type_error,
)
from rankloom.data.table_schema import TableInput

CHUNK_ROWS = 2**18
"""Rows of a frame, at most."""

Kind = Literal["category", "number"]
"""What a column is used for, where it is only used for that: it settles doubtful types."""

Types = dict[str, pl.DataType]

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
STAND_IN = "\x1f"
"""Replaces a separator of several characters, which the parser does not take."""


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
        _check_present(wanted, self.columns, self.files[0].name)


def open_table(
    spec: TableInput,
    root: Path,
    files: str | tuple[str, ...] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> RawTable:
    """Open the files of a raw table; types come from the first file.

    Text in `null_values` and the empty text are missing values. Of text files, a column that is
    used as a category is Int64 when its first block holds nothing but whole numbers that read back
    as written, else String; a column used as a number is Float64; any other goes by its cells.
    `spec.types` overrules both.

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


class DelimitedReader:
    """CSV and TSV."""

    def __init__(self, spec: TableInput, separator: str, kinds: dict[str, Kind]) -> None:
        self.spec = spec
        self.kinds = kinds
        written = separator if spec.separator is None else spec.separator
        if not written:
            raise ValueError("separator must not be empty")
        self.replaced = written.encode() if len(written.encode()) > 1 else None
        separator = STAND_IN if self.replaced else written
        self.dialect = Dialect(separator, quoted=True, null_values=spec.null_values)
        self.parse_types: Types = {}

    def types(self, path: Path) -> Types:
        """Names from the header or the schema, types from the first block."""
        names, blocks = self._open(path)
        block = next(blocks, b"")
        if not block:
            raise ValueError(f"{path.name} has a header but no rows")
        block = drop_blank_lines(block)
        check_cells(block, len(names), self.dialect, Place(path.name, 1))
        inferred = infer_types(block, names, self.dialect)
        final: Types = {}
        for name in names:
            parse, dtype = _settle(inferred[name], self.spec.types.get(name), self.kinds.get(name))
            in_doubt = dtype == pl.Int64 and self.kinds.get(name) == "category"
            if in_doubt and leading_zeros(block, names, name, self.dialect):
                parse = dtype = pl.String()
            self.parse_types[name], final[name] = parse, dtype
        unknown = [name for name in self.spec.types if name not in final]
        _check_present(unknown, final, path.name)
        return final

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Parse block by block."""
        names, blocks = self._open(path)
        _check_present(columns, names, path.name)
        # Columns that only this file has are parsed as text and never asked for.
        parse = {name: self.parse_types.get(name, pl.String()) for name in names}
        row = 1
        for block in blocks:
            frame = parse_block(block, parse, columns, self.dialect, Place(path.name, row))
            row += frame.height
            yield to_types(frame, types)

    def _open(self, path: Path) -> tuple[list[str], Iterator[bytes]]:
        """Column names, and the blocks below the header."""
        blocks = self._blocks(path)
        if not self.spec.header:
            if not self.spec.columns:
                raise ValueError(f"{path.name}: a file without header needs columns in [input]")
            return _distinct(list(self.spec.columns), path.name), blocks
        first = next(blocks, b"")
        line, _, rest = first.partition(b"\n")
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError:
            raise ValueError(f"{path.name} is not UTF-8 text") from None
        names = [name.strip().strip('"') for name in text.split(self.dialect.separator)]
        return _distinct(names, path.name), _prepend(rest, blocks)

    def _blocks(self, path: Path) -> Iterator[bytes]:
        for block in read_ahead(line_blocks(path, quoted=True, block_bytes=BLOCK_BYTES)):
            if self.replaced is not None:
                block = block.replace(self.replaced, STAND_IN.encode())
            # Blank lines at the end are common; those inside are found by the count of cells.
            if block.endswith((b"\n\n", b"\n\r\n")):
                block = drop_blank_lines(block)
            if block:
                yield block


class EntryReader:
    """libsvm and libfm: `label id:value ...`, one entry per field in every line."""

    def __init__(self, spec: TableInput) -> None:
        if not spec.fields:
            raise ValueError("libsvm and libfm files need fields in [input]: one name per entry")
        _distinct(["label", *spec.fields], "[input] fields")
        self.spec = spec
        self.dialect = Dialect(" ", quoted=False, null_values=("",))
        self.constant: dict[str, int] = {}
        self.parse_types: Types = {"label": pl.Float64()}
        for name in spec.fields:
            self.parse_types[f"{name} id"] = pl.Int64()
            self.parse_types[f"{name} value"] = pl.Float64()

    def types(self, path: Path) -> Types:
        """Which fields are ids and which are values, from the first block."""
        block = next(self._blocks(path), b"")
        if not block:
            raise ValueError(f"{path.name} has no rows")
        frame = self._parse(block, self.spec.fields, Place(path.name, 1))
        final: Types = {"label": pl.Float64()}
        for name in self.spec.fields:
            declared = self.spec.types.get(name)
            ids, values = frame[f"{name} id"], frame[f"{name} value"]
            if declared == "integer" or (declared is None and bool((values == 1).all())):
                final[name] = pl.Int64()
            elif declared == "number" or (declared is None and ids.n_unique() == 1):
                final[name] = pl.Float64()
                self.constant[name] = int(ids[0])
            else:
                raise ValueError(
                    f"{path.name}: field {name} has several ids and values other than 1; say which "
                    f'counts with types = {{ {name} = "integer" }} (ids) or "number" (values)'
                )
        return final

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Parse block by block and keep the id or the value of each field."""
        row = 1
        for block in self._blocks(path):
            place = Place(path.name, row)
            parsed = self._parse(block, [name for name in columns if name != "label"], place)
            picked: list[pl.Expr] = []
            for name in columns:
                if name == "label":
                    label = pl.col("label")
                    picked.append(pl.when(label == -1).then(0.0).otherwise(label).alias("label"))
                else:
                    is_id = types[name] == pl.Int64
                    if name not in self.spec.types:
                        self._check_rule(parsed, name, is_id, place)
                    picked.append(pl.col(f"{name} {'id' if is_id else 'value'}").alias(name))
            row += parsed.height
            yield parsed.select(picked)

    def _check_rule(self, parsed: pl.DataFrame, name: str, is_id: bool, place: Place) -> None:
        """What the first block said of a field must hold in every block."""
        if is_id:
            broken = (parsed[f"{name} value"] != 1).arg_true()
            rule = "so far every value was 1"
        else:
            broken = (parsed[f"{name} id"] != self.constant[name]).arg_true()
            rule = f"so far every id was {self.constant[name]}"
        if len(broken):
            row = int(broken[0])
            entry = f"{parsed[f'{name} id'][row]}:{parsed[f'{name} value'][row]}"
            raise ValueError(
                f"{place.row(row)}: field {name} holds {entry}, but {rule}; set "
                f'types = {{ {name} = "integer" }} (ids) or "number" (values) in [input]'
            )

    def _parse(self, block: bytes, fields: Sequence[str], place: Place) -> pl.DataFrame:
        parts = [f"{name} {part}" for name in fields for part in ("id", "value")]
        return parse_block(block, self.parse_types, ["label", *parts], self.dialect, place)

    def _blocks(self, path: Path) -> Iterator[bytes]:
        for raw in read_ahead(line_blocks(path, quoted=False, block_bytes=BLOCK_BYTES)):
            block = raw.replace(b"\t", b" ").replace(b":", b" ")
            while b"  " in block:
                block = block.replace(b"  ", b" ")
            block = block.replace(b" \r\n", b"\n").replace(b" \n", b"\n")
            block = drop_blank_lines(block)
            if block:
                yield block


class JsonLinesReader:
    """One JSON object per line; a key that is not there is a missing value."""

    def __init__(self, spec: TableInput, kinds: dict[str, Kind]) -> None:
        self.spec = spec
        self.kinds = kinds
        self.parse_types: Types = {}

    def types(self, path: Path) -> Types:
        """Keys and types of the first block."""
        block = next(self._blocks(path), b"")
        if not block:
            raise ValueError(f"{path.name} has no rows")
        inferred: Types = {}
        for rows in (INFER_ROWS, None):
            try:
                head = block if rows is None else b"\n".join(block.split(b"\n", rows)[:rows])
                inferred = dict(pl.read_ndjson(head, infer_schema_length=None).schema)
                pl.read_ndjson(block, schema=inferred)
                break
            except pl.exceptions.PolarsError as error:
                if rows is None:
                    raise ValueError(
                        f"{path.name}: {_first_bad_line(block, None, Place(path.name, 1))}"
                        f"not lines of JSON objects: {str(error).splitlines()[0]}"
                    ) from None
        final: Types = {}
        for name, dtype in inferred.items():
            declared = self.spec.types.get(name)
            kind = None if dtype.is_nested() else self.kinds.get(name)
            parse, settled = _settle(dtype, declared, kind)
            self.parse_types[name], final[name] = parse, settled
        return final

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Parse block by block."""
        parse = {name: self.parse_types[name] for name in columns}
        row = 1
        for block in self._blocks(path):
            try:
                frame = pl.read_ndjson(block, schema=parse)
            except pl.exceptions.PolarsError as error:
                found = _first_bad_line(block, parse, Place(path.name, row))
                reason = found or f"{path.name}: {str(error).splitlines()[0]}"
                raise ValueError(reason) from None
            row += frame.height
            yield to_types(frame.select(columns), types)

    def _blocks(self, path: Path) -> Iterator[bytes]:
        for raw in read_ahead(line_blocks(path, quoted=False, block_bytes=BLOCK_BYTES)):
            block = drop_blank_lines(raw.replace(b"\r\n", b"\n").replace(b"\n\n", b"\n"))
            if block:
                yield block


class ParquetReader:
    """Parquet, by batches of rows."""

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self.kinds = kinds

    def types(self, path: Path) -> Types:
        """The file's own types, made plain."""
        schema = self._open(path).schema_arrow
        _distinct(list(schema.names), path.name)
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
        _check_present(columns, list(file.schema_arrow.names), path.name)
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


def plain_type(dtype: pl.DataType) -> pl.DataType:
    """Type that a raw type is turned into; see the head of this module."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return pl.List(pl.Float32() if inner == pl.Float32 else plain_type(inner))
    if dtype in (pl.Int128, pl.Null, pl.String) or isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if dtype.is_integer() or dtype == pl.Boolean or dtype in (pl.Date,):
        return pl.Int64()
    if isinstance(dtype, pl.Datetime):
        return pl.Int64()
    if dtype.is_float() or dtype.is_decimal():
        return pl.Float64()
    return dtype


def to_types(frame: pl.DataFrame, types: Types, source: str = "the table") -> pl.DataFrame:
    """Cast the columns of a frame to the table's types, NaN to missing.

    Raises:
        ValueError: a value does not fit the type that the first file gave the column.
    """
    casts: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            casts.append(pl.col(name).dt.epoch("s").cast(types[name]))
        elif types[name] == pl.Float64:
            casts.append(pl.col(name).cast(pl.Float64).fill_nan(None))
        elif dtype != types[name]:
            casts.append(pl.col(name).cast(types[name]))
    try:
        return frame.with_columns(casts) if casts else frame
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: not the types of the first file: {reason}") from None


def _settle(
    dtype: pl.DataType, declared: str | None, kind: Kind | None
) -> tuple[pl.DataType, pl.DataType]:
    """Type to parse a text column as, and its final type."""
    if declared is not None:
        forced = {"integer": pl.Int64(), "number": pl.Float64(), "text": pl.String()}[declared]
        return forced, forced
    if kind == "number":
        return (pl.Boolean() if dtype == pl.Boolean else pl.Float64()), pl.Float64()
    if kind == "category":
        settled = pl.Int64() if dtype == pl.Int64 else pl.String()
        return settled, settled
    plain = plain_type(dtype)
    return (dtype if dtype == pl.Boolean else plain), plain


def _first_bad_line(block: bytes, types: Types | None, place: Place) -> str:
    """The sentence for the first line that does not parse as the types; empty when all do."""
    lines = block.rstrip(b"\n").split(b"\n")
    for row, line in enumerate(lines):
        try:
            values = json.loads(line)
        except ValueError:
            return f"{place.row(row)} is not JSON"
        if not isinstance(values, dict):
            return f"{place.row(row)} is not a JSON object"
        for name, dtype in (types or {}).items():
            try:
                pl.read_ndjson(line, schema={name: dtype})
            except pl.exceptions.PolarsError:
                return type_error(place.row(row), name, values.get(name), dtype)
    return ""


def _check_present(wanted: Sequence[str], present: Sequence[str] | Types, file: str) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; its columns are {', '.join(present)}"
        )


def _distinct(names: list[str], file: str) -> list[str]:
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"{file}: column {', '.join(double)} is there more than once")
    return names


def _prepend(rest: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = rest.lstrip(b"\r\n")
    if rest:
        yield rest
    yield from blocks
