"""The raw table as a stream of rows with derived columns, split, negatives and histories.

Rows stream through when each can be judged alone (splits by files, column or plain random draw).
A split by time, per user or stratified, filters, a sample, negatives and histories look at all
rows first: one more pass reads their key columns alone and keeps, per row, 4 bytes for each
key column, 1 for the split, 4 for each negative drawn, and 8 (plus 4 per event) for each history.
While these are being found, sorting takes about 100 bytes per row more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.delimited import Place
from rankloom.data.derive import derive_columns
from rankloom.data.history import history_column
from rankloom.data.keys import Codes
from rankloom.data.log_plan import Plan, make_plan
from rankloom.data.raw_types import check_present
from rankloom.data.read import CHUNK_ROWS, RawTable, find_files, open_table
from rankloom.data.split import (
    TRAIN,
    VALID,
    SplitCodes,
    check_not_empty,
    column_split,
    random_split,
    rows_of_file,
)
from rankloom.data.table_schema import (
    ColumnSplit,
    FileSplit,
    RandomSplit,
    TableInput,
    TableSchema,
)
from rankloom.data.usage import (
    column_kinds,
    created_columns,
    raw_columns,
)

CHUNK_EVENTS = 2**22
"""Most history values of a chunk: long histories make chunks shorter, so that memory is bounded."""


@dataclass(frozen=True)
class Chunk:
    """Some rows in input order."""

    frame: pl.DataFrame
    """Raw, derived and created columns."""
    split: NDArray[np.int8]
    """[rows]; 0 train, 1 valid, 2 test."""
    file: str
    """Name of the file that all of them come from."""
    numbers: NDArray[np.int64]
    """[rows]; number of each in its file, from 1, that of the logged row for a drawn one."""


class RowStream:
    """All rows of a raw table, ready to be fitted on and encoded."""

    columns: tuple[str, ...]
    """Columns of every chunk's frame."""
    notes: tuple[str, ...]
    """What happened to rows that a reader of the numbers should know."""

    def __init__(
        self, schema: TableSchema, table: RawTable, file_split: tuple[int, ...], plan: Plan
    ) -> None:
        self.schema = schema
        self._table = table
        self._file_split = file_split
        self._plan = plan
        self._raw = raw_columns(schema)
        self.columns = (*self._raw, *created_columns(schema))
        self.notes = tuple(_notes(schema, plan))

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield all rows in input order, a row's negatives right behind it.

        May be called again, and gives the same rows for any `rows`.

        Args:
            rows: most rows of a chunk.

        Raises:
            ValueError: a cell or a row is wrong (the message names it), a split that was asked for
                is empty, or the files changed since they were opened.
        """
        negatives = self.schema.negatives
        copies = 1
        if negatives is not None:
            copies += max(negatives.per_positive, negatives.per_held_out or 0)
        events = sum(item.max_length * len(item.members) for item in self.schema.history)
        read = max(1, min(rows, CHUNK_EVENTS // max(1, events)) // copies)
        counts = np.zeros(3, dtype=np.int64)
        first = 0
        for index, file in enumerate(self._table.files):
            row = 1
            for raw in self._table.file_chunks(index, self._raw, read):
                frame = derive_columns(raw, self.schema.derive, Place(file.name, row))
                split = self._split(frame, first, index, Place(file.name, row))
                chunk = self._build(frame, split, first, Place(file.name, row))
                counts += np.bincount(chunk.split, minlength=3)
                first += raw.height
                row += raw.height
                if chunk.frame.height:
                    yield chunk
        if first == 0:
            raise ValueError(f"{self._table.files[0].name} has no rows")
        if self._plan.rows not in (-1, first):
            raise ValueError(
                f"the files held {self._plan.rows:,} rows when they were opened and {first:,} now;"
                " they must not change while they are read"
            )
        check_not_empty(self.schema.split, counts)

    def _split(self, frame: pl.DataFrame, first: int, file: int, place: Place) -> SplitCodes:
        split = self.schema.split
        if self._plan.split is not None:
            return self._plan.split[first : first + frame.height]
        if isinstance(split, FileSplit):
            values = None if split.valid_by is None else frame[split.valid_by]
            return rows_of_file(split, self._file_split[file], first, frame.height, values)
        if isinstance(split, ColumnSplit):
            return column_split(split, frame[split.column], place)
        if isinstance(split, RandomSplit):
            return random_split(split, first, frame.height)
        raise AssertionError(f"a split of kind {split.kind} has a plan")

    def _build(self, frame: pl.DataFrame, split: SplitCodes, first: int, place: Place) -> Chunk:
        """Filter, add histories, add negatives. `first` is the frame's first row in the table."""
        plan = self._plan
        rows = np.arange(first, first + frame.height)
        numbers = rows + (place.first_row - first)
        keep = np.ones(len(rows), dtype=np.bool_) if plan.keep is None else plan.keep[rows]
        for history, index in plan.histories:
            keep &= index.length[rows] >= history.min_length
        if not keep.all():
            frame, split = frame.filter(pl.Series(keep)), split[keep]
            rows, numbers = rows[keep], numbers[keep]
        added: list[pl.Series] = []
        for history, index in plan.histories:
            offsets, events = index.lists(rows)
            members = [(member, f"{history.name}.{member}") for member in history.members]
            if history.with_time:
                members.append((history.time, f"{history.name}.time"))
            added += [
                history_column(offsets, events, plan.keys[column], name) for column, name in members
            ]
        frame = frame.with_columns(added)
        if self.schema.negatives is not None and plan.negatives is not None:
            drawn = self._drawn(plan.negatives[rows], split)
            frame, source = self._with_negatives(frame, drawn)
            split, numbers = split[source], numbers[source]
        return Chunk(frame.select(self.columns), split, place.file, numbers)

    def _drawn(self, drawn: Codes, split: SplitCodes) -> Codes:
        """As many of the drawn items of each row as its split asks for, -1 in place of others."""
        spec = self.schema.negatives
        assert spec is not None
        if spec.per_held_out is not None:
            drawn[split == TRAIN, spec.per_positive :] = -1
            drawn[split >= VALID, spec.per_held_out :] = -1
        return drawn

    def _with_negatives(
        self, frame: pl.DataFrame, drawn: Codes
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        """Put each row's drawn items behind it; all other columns are the row's own.

        Returns:
            The frame, and the row of `frame` that each of its rows stems from.
        """
        spec = self.schema.negatives
        assert spec is not None
        logged = np.full((len(drawn), 1), -2, dtype=np.int32)
        codes = np.hstack([logged, drawn]).ravel()
        source = np.repeat(np.arange(len(drawn)), codes.size // max(len(drawn), 1))
        there = codes != -1
        codes, source = codes[there], source[there]
        frame = frame[source]
        positive = codes == -2
        item = self._plan.keys[spec.item].take(np.where(positive, np.int32(-1), codes))
        frame = frame.with_columns(
            item.fill_null(frame[spec.item]).alias(spec.item),
            pl.Series(spec.label, positive.astype(np.int64)),
        )
        return frame, source


def open_rows(schema: TableSchema, root: Path) -> RowStream:
    """Open the main table of a declaration.

    Order of work: derived columns, filter, sample, core filter, split, histories, negatives.
    Negatives of a row go to its split and share its histories; they are events of nobody's history.

    Args:
        schema: the declaration.
        root: folder that relative paths start from.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the table does not fit the declaration, or a planned split is empty.
    """
    files, file_split = _files(schema, root)
    spec = schema.input or TableInput(files=files)
    table = open_table(spec, root, files, column_kinds(schema))
    created = created_columns(schema)
    clash = [name for name in created if name in table.columns]
    if clash:
        raise ValueError(
            f"{table.files[0].name} has a column {clash[0]} already; give the created one "
            "another name"
        )
    table.check_columns(raw_columns(schema))
    split = schema.split
    if isinstance(split, FileSplit) and split.valid_by is not None:
        # Rows are split before negatives and histories add columns of their own.
        known = [*table.columns, *(item.name for item in schema.derive)]
        check_present([split.valid_by], known, table.files[0].name)
    return RowStream(schema, table, file_split, make_plan(schema, table))


def _files(schema: TableSchema, root: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All files in reading order, and the split of each (of kind `files`)."""
    split = schema.split
    if not isinstance(split, FileSplit):
        assert schema.input is not None
        paths = find_files(schema.input.files, root)
        return tuple(str(path) for path in paths), (0,) * len(paths)
    found: dict[Path, int] = {}
    for code, files in enumerate((split.train, split.valid, split.test)):
        for path in find_files(files, root) if files is not None else []:
            if found.setdefault(path.resolve(), code) != code:
                raise ValueError(f"{path.name} is in two splits; a file belongs to one")
    return tuple(str(path) for path in found), tuple(found.values())


def _notes(schema: TableSchema, plan: Plan) -> Iterator[str]:
    filters = {"filter": schema.filter, "sample": schema.sample, "core filter": schema.core}
    if plan.keep is not None:
        named = " and the ".join(name for name, given in filters.items() if given is not None)
        yield f"the {named} kept {int(plan.keep.sum()):,} of {plan.rows:,} rows"
    for history, index in plan.histories:
        if history.min_length:
            short = index.length < history.min_length
            if plan.keep is not None:
                short &= plan.keep
            yield (
                f"{int(short.sum()):,} rows have fewer than {history.min_length} events in "
                f"{history.name} and are left out"
            )
    if schema.negatives is not None and plan.negatives is not None:
        without = plan.negatives[:, 0] < 0
        if plan.keep is not None:
            without &= plan.keep
        if without.any():
            users = np.unique(plan.keys[schema.negatives.user].codes[without]).size
            yield (
                f"{int(without.sum()):,} rows got no negatives: their {users:,} users have touched "
                "every item"
            )
