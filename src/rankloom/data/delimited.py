"""Blocks of delimited text to frames: the parse, and errors that name the row and the column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.blocks import drop_blank_lines

QUOTE = b'"'
INFER_ROWS = 10_000


@dataclass(frozen=True)
class Dialect:
    """How the text is written."""

    separator: str
    """One ASCII character."""
    quoted: bool
    """Whether cells may stand in double quotes."""
    null_values: tuple[str, ...]
    """Texts that mean "missing"; the empty text always does."""


@dataclass(frozen=True)
class Place:
    """Where a block comes from, for errors."""

    file: str
    """Name of the file."""
    first_row: int
    """Number of the block's first row; the first row below the header is row 1."""

    def row(self, index: int) -> str:
        """`file: row 10,234` for a row of the block."""
        return f"{self.file}: row {self.first_row + index:,}"


def parse_block(
    block: bytes,
    types: Mapping[str, pl.DataType],
    columns: Sequence[str],
    dialect: Dialect,
    place: Place,
) -> pl.DataFrame:
    """Parse whole lines without header into the asked-for columns.

    Args:
        block: the lines.
        types: every column of the file, in order, with the type to parse it as.
        columns: columns to return, in this order.
        dialect: how the text is written.
        place: where the block starts.

    Raises:
        ValueError: a row has too many or too few cells, or a cell is not of its column's type; the
            message names file, row and column.
    """
    try:
        frame = _scan(block, types, dialect).select(columns).collect()
    except pl.exceptions.PolarsError as error:
        block = drop_blank_lines(block)
        check_text(block, place)
        check_cells(block, len(types), dialect, place)
        explain_types(block, types, columns, dialect, place)
        reason = str(error).splitlines()[0]
        raise ValueError(f"{place.row(0)} or a later one cannot be parsed: {reason}") from None
    if _in_doubt(block, frame.height, len(types), dialect):
        cleaned = drop_blank_lines(block)
        if len(cleaned) != len(block):
            return parse_block(cleaned, types, columns, dialect, place)
        check_cells(block, len(types), dialect, place)
    return frame


def cells_per_row(block: bytes, dialect: Dialect) -> NDArray[np.int64]:
    """Number of cells of every line of a block, separators in quotes not counted."""
    text = np.frombuffer(block, dtype=np.uint8)
    separator = text == ord(dialect.separator)
    newline = text == ord("\n")
    if dialect.quoted and QUOTE in block:
        inside = np.bitwise_xor.accumulate((text == ord(QUOTE)).astype(np.uint8)).astype(bool)
        separator &= ~inside
        newline &= ~inside
    line = np.searchsorted(np.flatnonzero(newline), np.flatnonzero(separator))
    return np.bincount(line, minlength=int(newline.sum())) + 1


def check_text(block: bytes, place: Place) -> None:
    """Raise ValueError for the first row that is not UTF-8."""
    try:
        block.decode()
    except UnicodeDecodeError as error:
        row = block.count(b"\n", 0, error.start)
        raise ValueError(
            f"{place.row(row)} is not UTF-8 text: got byte {block[error.start]:#04x}; convert the "
            "file to UTF-8"
        ) from None


def check_cells(block: bytes, cells: int, dialect: Dialect, place: Place) -> None:
    """Raise ValueError for the first row that does not have `cells` cells."""
    counts = cells_per_row(block, dialect)
    wrong = np.flatnonzero(counts != cells)
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(f"{place.row(row)} has {counts[row]:,} cells, expected {cells:,}")


def explain_types(
    block: bytes,
    types: Mapping[str, pl.DataType],
    columns: Sequence[str],
    dialect: Dialect,
    place: Place,
) -> None:
    """Raise ValueError for the first cell that does not fit the type of its column."""
    typed = [name for name in columns if types[name] != pl.String]
    text = _scan(block, dict.fromkeys(types, pl.String()), dialect).select(typed)
    try:
        frame = text.collect()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{place.row(0)} or a later one cannot be parsed: {reason}") from None
    first: tuple[int, str] | None = None
    for name in typed:
        cell = frame[name].str.strip_chars()
        bad = (_cast(cell, types[name]).is_null() & (cell != "").fill_null(False)).arg_true()
        if len(bad) and (first is None or int(bad[0]) < first[0]):
            first = (int(bad[0]), name)
    if first is not None:
        row, name = first
        raise ValueError(type_error(place.row(row), name, frame[name][row], types[name]))


def type_error(where: str, column: str, got: object, expected: pl.DataType) -> str:
    """The sentence for a cell of the wrong type."""
    kind = {pl.Int64: "an integer", pl.Float64: "a number", pl.Boolean: "true or false"}
    name = kind.get(expected.base_type(), str(expected))
    return (
        f"{where}: column {column} holds {got!r}, expected {name}; "
        f'correct it, or set types = {{ {column} = "text" }} (or "number") in [input]'
    )


def infer_types(
    block: bytes, names: Sequence[str], dialect: Dialect, place: Place
) -> dict[str, pl.DataType]:
    """Types of the columns of a block of whole lines, as the parser sees them.

    The first rows give a guess that is taken when the whole block fits it; else every row counts.

    Raises:
        ValueError: a row has too many or too few cells.
    """
    for rows in (INFER_ROWS, None):
        lazy = pl.scan_csv(
            block,
            has_header=False,
            separator=dialect.separator,
            quote_char='"' if dialect.quoted else None,
            null_values=list(dialect.null_values),
            new_columns=list(names),
            infer_schema_length=rows,
        )
        try:
            types = dict(lazy.collect_schema())
            rows_found = _scan(block, types, dialect).collect().height
        except pl.exceptions.PolarsError:
            continue
        if _in_doubt(block, rows_found, len(names), dialect):
            check_cells(block, len(names), dialect, place)
        return types
    check_text(block, place)
    check_cells(block, len(names), dialect, place)
    return dict.fromkeys(names, pl.String())


def leading_zeros(block: bytes, names: Sequence[str], column: str, dialect: Dialect) -> bool:
    """Whether integers of a column are written in a way that an integer would not give back."""
    types = dict.fromkeys(names, pl.String())
    cell = _scan(block, types, dialect).select(column).collect()[column]
    return bool(cell.str.contains(r"^\s|^\+|^-?0\d|^-0$|\s$").any())


def _in_doubt(block: bytes, rows: int, cells: int, dialect: Dialect) -> bool:
    """Whether a parsed block needs the slow check of every row's cells.

    Too many cells is an error of the parser; too few, or a blank line, is not. Without quotes the
    number of separators tells; with them it does not, as quoted cells may hold some.
    """
    if dialect.quoted and QUOTE in block:
        return True
    return block.count(dialect.separator.encode()) != rows * (cells - 1)


def _scan(block: bytes, types: Mapping[str, pl.DataType], dialect: Dialect) -> pl.LazyFrame:
    return pl.scan_csv(
        block,
        has_header=False,
        separator=dialect.separator,
        quote_char='"' if dialect.quoted else None,
        null_values=list(dialect.null_values),
        empty_string_is_null="" in dialect.null_values,
        schema=dict(types),
    )


def _cast(cell: pl.Series, dtype: pl.DataType) -> pl.Series:
    if dtype == pl.Boolean:
        return cell.replace_strict({"true": True, "false": False}, default=None)
    return cell.cast(dtype, strict=False)
