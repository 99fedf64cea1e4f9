"""Raw columns to typed cells: the part of encoding that needs nothing fitted.

`read_cells` turns a raw frame into one typed column per slot: ids as integers or text (hash buckets
are final here), numbers as float64, lists cut to length and flattened. `prepare` reads cells once,
from the raw table; the encoder reads them from every request. Both continue with the same code.
"""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.hashing import bucket_ids, hash_values
from rankloom.data.plan import Group, Part, Plan, Slot, TableOptions
from rankloom.data.transforms import criteo_ln2, criteo_log2
from rankloom.data.vocabulary import NOT_A_NUMBER

TableKind = Literal["integer", "text", "hash", "quantile"]
"""How a table's ids are found: in a vocabulary, by hash, by quantile bins."""


@dataclass(frozen=True)
class Cells:
    """Typed cells of some rows."""

    height: int
    """Number of rows."""
    rows: pl.DataFrame
    """One column per slot of the row, and per role, label and text."""
    lengths: dict[str, NDArray[np.int64]]
    """Group -> [rows]: events of each row."""
    events: dict[str, pl.DataFrame]
    """Group -> one column per member, the rows' events joined."""


def table_kinds(
    plan: Plan, frames: Mapping[str | None, Mapping[str, pl.DataType]]
) -> dict[str, TableKind]:
    """How each table's ids are found, by the types of the columns that fit it.

    A vocabulary holds integers when all of those columns do (or are made integers by a Criteo
    transform), else text.

    Args:
        plan: the plan.
        frames: column types of the main table (key None) and of every entity.
    """
    found: dict[str, list[bool]] = {name: [] for name in plan.tables}
    for owner, part in [(None, plan.main), *plan.entities.items()]:
        for slot in _id_slots(part):
            options = plan.tables[slot.table]
            if slot.level == options.level:
                dtype = frames[owner].get(slot.column, pl.Null())
                while isinstance(dtype, pl.List | pl.Array):
                    dtype = dtype.inner  # type: ignore[assignment]
                integer = dtype.is_integer() and dtype != pl.UInt64
                numbered = options.transform != "none" or slot.prefix > 0
                found[slot.table].append(integer or numbered)
    kinds: dict[str, TableKind] = {}
    for name, options in plan.tables.items():
        if options.hash_buckets is not None:
            kinds[name] = "hash"
        elif options.transform == "quantile":
            kinds[name] = "quantile"
        else:
            kinds[name] = "integer" if found[name] and all(found[name]) else "text"
    return kinds


def read_cells(
    frame: pl.DataFrame,
    part: Part,
    tables: Mapping[str, TableOptions],
    kinds: Mapping[str, TableKind],
    numbers: NDArray[np.int64] | None = None,
    where: str = "",
    pool: Executor | None = None,
) -> Cells:
    """Type the cells of features.

    Args:
        frame: raw columns.
        part: slots of the main table or of one entity.
        tables: options of the tables.
        kinds: how each table's ids are found.
        numbers: number of each row in its file, for messages; None: counted from 1.
        where: start of messages (`log.csv: `).
        pool: threads to share the columns among; None: one after another.

    Raises:
        ValueError: a column is missing, a number cannot be read or is infinite, a vector has
            another width, members of a group differ in length, an event has no time or is older
            than the one before it. The message names column and row.
    """
    reader = _Reader(frame, tables, kinds, numbers, where)

    def read(slot: Slot) -> pl.Series:
        return reader.flat(slot, frame[reader.present(slot.column)])

    columns = list(map(read, part.slots) if pool is None else pool.map(read, part.slots))
    for name, column in part.texts.items():
        text = frame[reader.present(column)].cast(pl.String)
        columns.append(text.alias(f"text/{name}"))
    lengths, events = {}, {}
    for group in part.groups:
        lengths[group.name], events[group.name] = reader.group(group)
    # Its height is given: without plain columns there is nothing to tell it by.
    return Cells(frame.height, pl.DataFrame(columns or None, height=frame.height), lengths, events)


def _id_slots(part: Part) -> list[Slot]:
    slots = [slot for slot in part.slots if slot.kind == "id"]
    return slots + [slot for group in part.groups for slot in group.slots if slot.kind == "id"]


class _Reader:
    def __init__(
        self,
        frame: pl.DataFrame,
        tables: Mapping[str, TableOptions],
        kinds: Mapping[str, TableKind],
        numbers: NDArray[np.int64] | None,
        where: str,
    ) -> None:
        self.frame, self.tables, self.kinds = frame, tables, kinds
        self.row_numbers, self.where = numbers, where

    def present(self, column: str) -> str:
        if column not in self.frame.columns:
            known = ", ".join(self.frame.columns)
            raise ValueError(f"{self.where}no column {column}; the table has: {known}")
        return column

    def flat(
        self, slot: Slot, values: pl.Series, rows: NDArray[np.int64] | None = None
    ) -> pl.Series:
        """Cells of one slot; `rows` gives the row of each value of a flattened list column."""
        if slot.kind == "id":
            typed = self._ids(slot, values, rows)
        elif slot.kind == "numeric":
            typed = self.numbers(slot.column, values, rows)
        elif slot.kind == "time":
            typed = self._times(slot, values, rows)
        else:
            typed = self._vectors(slot, values, rows)
        return typed.alias(slot.name)

    def numbers(
        self, column: str, values: pl.Series, rows: NDArray[np.int64] | None = None
    ) -> pl.Series:
        """float64 with nulls; NaN is a null."""
        numbers = to_float(values)
        if numbers.null_count() > values.null_count():
            bad = int((numbers.is_null() & values.is_not_null()).arg_true()[0])
            raise ValueError(
                f"{self.where}column {column}, {self.row(bad, rows)}: not a number: {values[bad]!r}"
            )
        if values.dtype.is_integer():
            return numbers
        numbers = numbers.fill_nan(None)
        infinite = numbers.is_infinite()
        if infinite.any():
            bad = int(infinite.arg_true()[0])
            raise ValueError(
                f"{self.where}column {column}, {self.row(bad, rows)}: numbers must be finite; got "
                f"{values[bad]!r}"
            )
        return numbers

    def row(self, place: int, rows: NDArray[np.int64] | None = None) -> str:
        row = place if rows is None else int(rows[place])
        return f"row {row + 1 if self.row_numbers is None else self.row_numbers[row]:,}"

    def group(self, group: Group) -> tuple[NDArray[np.int64], pl.DataFrame]:
        lengths: NDArray[np.int64] | None = None
        columns: list[pl.Series] = []
        places: dict[str, NDArray[np.int32]] = {}
        for slot in group.slots:
            if slot.member in places:  # another prefix of the same item
                columns.append(self._prefix(slot, places[slot.member]))
                continue
            if group.optional and slot.column not in self.frame.columns:
                missing = pl.Series(
                    slot.column, [None] * self.frame.height, dtype=pl.List(pl.String)
                )
                own, flat = jagged(missing, group)
            else:
                own, flat = jagged(self.frame[self.present(slot.column)], group)
            if lengths is not None and not np.array_equal(own, lengths):
                bad = int(np.flatnonzero(own != lengths)[0])
                raise ValueError(
                    f"{self.where}sequence {group.name}, {self.row(bad)}: members must have one "
                    f"length; {group.slots[0].column} has {lengths[bad]}, {slot.column} {own[bad]}"
                )
            lengths = own
            rows = np.repeat(np.arange(len(own)), own)
            if slot.kind == "time":
                times = self._times(slot, flat, rows).to_numpy()
                self._check_order(group.name, slot.column, times, rows)
            kept = _kept(own, rows, group)
            if kept is not None:
                flat, rows = flat.filter(pl.Series(kept)), rows[kept]
            if slot.prefix:
                places[slot.member] = self._places(slot, flat)
                columns.append(self._prefix(slot, places[slot.member]))
            else:
                columns.append(self.flat(slot, flat, rows))
        assert lengths is not None
        return np.minimum(lengths, group.max_length), pl.DataFrame(columns)

    def _ids(self, slot: Slot, values: pl.Series, rows: NDArray[np.int64] | None) -> pl.Series:
        options, kind = self.tables[slot.table], self.kinds[slot.table]
        if kind == "quantile":
            return self.numbers(slot.column, values, rows)
        if options.transform in ("criteo_ln2", "criteo_log2"):
            numbers = self.numbers(slot.column, values, rows)
            function = criteo_ln2 if options.transform == "criteo_ln2" else criteo_log2
            made = pl.Series(function(numbers.fill_null(0.0).to_numpy()))
            values = _mask(made, numbers)
        if kind == "hash":
            assert options.hash_buckets is not None
            typed = values if values.dtype.is_integer() else to_text(values)
            return pl.Series(bucket_ids(typed, options.hash_buckets))
        return to_integer(values) if kind == "integer" else to_text(values)

    def _places(self, slot: Slot, values: pl.Series) -> NDArray[np.int32]:
        """Places of item ids in their catalogue, whose ids are text."""
        if isinstance(values.dtype, pl.List | pl.Array):
            raise ValueError(
                f"{self.where}column {slot.column} holds lists; a semantic_id feature has one item "
                "in a cell (for lists, declare a member of a sequence group)"
            )
        prefixes = self.tables[slot.table].prefixes
        assert prefixes is not None
        return prefixes.places(to_text(values))

    def _prefix(self, slot: Slot, places: NDArray[np.int32]) -> pl.Series:
        prefixes = self.tables[slot.table].prefixes
        assert prefixes is not None
        return prefixes.prefix(places, slot.prefix).alias(slot.name)

    def _times(self, slot: Slot, values: pl.Series, rows: NDArray[np.int64] | None) -> pl.Series:
        times = self.integers(slot.column, values, rows)
        if times.null_count():
            place = int(times.is_null().arg_true()[0])
            raise ValueError(
                f"{self.where}column {slot.column}, {self.row(place, rows)}: an event has no time"
            )
        return times

    def _check_order(
        self, group: str, column: str, times: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        """The newest events stand last; else cutting a long sequence would keep the wrong ones."""
        falls = np.flatnonzero((times[1:] < times[:-1]) & (rows[1:] == rows[:-1]))
        if falls.size:
            place = int(falls[0])
            raise ValueError(
                f"{self.where}sequence {group}, {self.row(place + 1, rows)}: column {column} must "
                f"not decrease; got {times[place + 1]} after {times[place]}; write the oldest "
                "event first"
            )

    def integers(
        self, column: str, values: pl.Series, rows: NDArray[np.int64] | None = None
    ) -> pl.Series:
        """int64 with nulls."""
        integers = to_integer(values)
        bad = (integers == NOT_A_NUMBER).fill_null(False)
        if bad.any():
            place = int(bad.arg_true()[0])
            raise ValueError(
                f"{self.where}column {column}, {self.row(place, rows)}: not an integer: "
                f"{values[place]!r}"
            )
        return integers

    def _vectors(self, slot: Slot, values: pl.Series, rows: NDArray[np.int64] | None) -> pl.Series:
        """Array(Float32, width); a missing vector is zeros."""
        lists = _vector_lists(values)
        lengths = lists.list.len()
        wrong = ((lengths != slot.width) & (lengths > 0)).fill_null(False)
        if wrong.any():
            bad = int(wrong.arg_true()[0])
            raise ValueError(
                f"{self.where}column {slot.column}, {self.row(bad, rows)}: a vector must have "
                f"{slot.width} numbers; got {lengths[bad]}"
            )
        given = (lengths > 0).fill_null(False)
        matrix = np.zeros((len(values), slot.width), np.float32)
        numbers = lists.filter(given).explode()
        filled = numbers.fill_null(float("nan")).to_numpy().reshape(-1, slot.width)
        finite = np.isfinite(filled).all(axis=1)
        if not finite.all():
            bad = int(given.arg_true()[int(np.flatnonzero(~finite)[0])])
            raise ValueError(
                f"{self.where}column {slot.column}, {self.row(bad, rows)}: a vector must hold "
                "finite numbers only"
            )
        matrix[given.to_numpy()] = filled
        return pl.Series(slot.name, matrix, dtype=pl.Array(pl.Float32, slot.width))


def jagged(values: pl.Series, group: Group) -> tuple[NDArray[np.int64], pl.Series]:
    """Lengths and flattened values of a list column, or of text that is split.

    Empty text and nulls are empty lists; a single number is a list of one. With `skip_missing`
    nulls and empty pieces are left out. With `single` a cell is one value, or none.
    """
    if group.single:
        present = values.is_not_null()
        return present.cast(pl.Int64).to_numpy(), values.filter(present)
    if values.dtype == pl.Null:
        values = values.cast(pl.List(pl.String))
    elif values.dtype == pl.String:
        split = values.str.split(group.separator)
        empty = (values == "").fill_null(True).to_frame("empty").with_columns(split.alias("cells"))
        values = empty.select(pl.when("empty").then(None).otherwise(pl.col("cells")))["literal"]
    elif isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    elif not isinstance(values.dtype, pl.List):
        values = values.reshape((len(values), 1)).arr.to_list()
        values = values.list.drop_nulls()
    if group.skip_missing:
        values = values.list.drop_nulls()
    lengths = values.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    flat = values.filter(pl.Series(lengths > 0)).explode()
    if group.skip_missing and flat.dtype == pl.String:
        kept = (flat != "").to_numpy()
        if not kept.all():
            rows = np.repeat(np.arange(len(lengths)), lengths)
            lengths = np.bincount(rows[kept], minlength=len(lengths)).astype(np.int64)
            flat = flat.filter(pl.Series(kept))
    return lengths, flat


def _kept(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], group: Group
) -> NDArray[np.bool_] | None:
    """Which events stay when rows are cut to the group's longest length; None: all."""
    if len(lengths) == 0 or lengths.max(initial=0) <= group.max_length:
        return None
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(rows)) - starts[rows]
    if group.keep == "first":
        return place < group.max_length
    return place >= lengths[rows] - group.max_length


def to_float(values: pl.Series) -> pl.Series:
    """float64; what cannot be read becomes null."""
    return values.cast(pl.Float64, strict=False)


def to_integer(values: pl.Series) -> pl.Series:
    """int64; what is no integer becomes `NOT_A_NUMBER`, a missing value stays null."""
    if values.dtype.is_integer() and values.dtype != pl.UInt64:
        return values.cast(pl.Int64)
    if values.dtype.is_temporal():
        raise ValueError(
            f"column {values.name} holds dates; derive a timestamp, hour or day from it first"
        )
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = (values == values.round(0)) & (values.abs() < 2.0**63)
        integers = values.set(~whole, None).cast(pl.Int64, strict=False)
    else:
        integers = values.cast(pl.Int64, strict=False)
    return _mask(integers.fill_null(NOT_A_NUMBER), values)


def to_text(values: pl.Series) -> pl.Series:
    """Text of values; a whole number among floats is written without a point, NaN is missing."""
    if not values.dtype.is_float():
        return values.cast(pl.String)
    integers = to_integer(values)
    frame = pl.DataFrame({"number": values.fill_nan(None), "integer": integers})
    text = pl.when(pl.col("integer") == NOT_A_NUMBER).then(pl.col("number").cast(pl.String))
    return frame.select(text.otherwise(pl.col("integer").cast(pl.String)))["number"]


def group_keys(values: pl.Series, text: bool) -> pl.Series:
    """int64 group keys: integers as they are, text by its stable hash."""
    if not text:
        return to_integer(values)
    return _mask(pl.Series(hash_values(to_text(values)).view(np.int64)), values)


def _mask(values: pl.Series, missing: pl.Series) -> pl.Series:
    """`values` with nulls where `missing` has them."""
    if missing.null_count() == 0:
        return values
    return values.to_frame("v").select(pl.when(missing.is_not_null()).then(pl.col("v")))["v"]


def _vector_lists(values: pl.Series) -> pl.Series:
    """List(Float32) of list columns, arrays, or text such as "0.1 0.2" or "[0.1, 0.2]"."""
    if values.dtype == pl.Null:
        return values.cast(pl.List(pl.Float32))
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if values.dtype == pl.String:
        plain = values.str.replace_all(r"[\[\]()]", "").str.replace_all(r"[\s,;|]+", " ")
        values = plain.str.strip_chars().str.split(" ")
        empty = (plain.str.strip_chars() == "").fill_null(True)
        values = _mask(values, values.to_frame("v").select(pl.when(~empty).then(pl.col("v")))["v"])
    if not isinstance(values.dtype, pl.List):
        values = values.reshape((len(values), 1)).arr.to_list()
    return values.cast(pl.List(pl.Float32), strict=False)
