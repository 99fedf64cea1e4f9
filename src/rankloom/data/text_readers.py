"""Readers of the text formats: CSV, TSV, libsvm, libfm and JSON lines, block by block."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from rankloom.data.blocks import BLOCK_BYTES, drop_blank_lines, line_blocks, read_ahead
from rankloom.data.delimited import (
    INFER_ROWS,
    Dialect,
    Place,
    infer_types,
    leading_zeros,
    parse_block,
    type_error,
)
from rankloom.data.raw_types import Kind, Types, check_present, distinct, settle, to_types
from rankloom.data.table_schema import TableInput

STAND_IN = "\x1f"
"""Replaces a separator of several characters, which the parser does not take."""


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
        inferred = infer_types(block, names, self.dialect, Place(path.name, 1))
        final: Types = {}
        for name in names:
            parse, dtype = settle(inferred[name], self.spec.types.get(name), self.kinds.get(name))
            in_doubt = dtype == pl.Int64 and self.kinds.get(name) == "category"
            if in_doubt and leading_zeros(block, names, name, self.dialect):
                parse = dtype = pl.String()
            self.parse_types[name], final[name] = parse, dtype
        unknown = [name for name in self.spec.types if name not in final]
        check_present(unknown, final, path.name)
        return final

    def frames(self, path: Path, types: Types, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Parse block by block."""
        names, blocks = self._open(path)
        check_present(columns, names, path.name)
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
            return distinct(list(self.spec.columns), path.name), blocks
        first = next(blocks, b"")
        line, _, rest = first.partition(b"\n")
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError:
            raise ValueError(f"{path.name} is not UTF-8 text") from None
        names = [name.strip().strip('"') for name in text.split(self.dialect.separator)]
        hint = "; if the first line is a row, set header = false in [input]"
        return distinct(names, path.name, hint), _prepend(rest, blocks)

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
        distinct(["label", *spec.fields], "[input] fields")
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
                    found = _first_bad_line(block, None, Place(path.name, 1))
                    reason = str(error).splitlines()[0]
                    raise ValueError(
                        found or f"{path.name}: not lines of JSON objects: {reason}"
                    ) from None
        final: Types = {}
        for name, dtype in inferred.items():
            declared = self.spec.types.get(name)
            kind = None if dtype.is_nested() else self.kinds.get(name)
            parse, settled = settle(dtype, declared, kind)
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


def _prepend(rest: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = rest.lstrip(b"\r\n")
    if rest:
        yield rest
    yield from blocks
