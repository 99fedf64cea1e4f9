"""Events of users from raw tables: who had which item, in which order. No loop over rows.

Memory holds about 100 bytes an event while they are sorted, and each distinct id once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from rankloom.data.core import core_rows
from rankloom.data.derive import seconds
from rankloom.data.keys import Codes, KeyCollector, KeyColumn, Times, require_values
from rankloom.data.read import RawTable, open_table
from rankloom.data.sequence_spec import EventRules, InteractionsInput, SequencesInput

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Events:
    """Events as codes."""

    users: Codes
    """[events] index into `user_ids`."""
    items: Codes
    """[events] index into `item_ids`; after `with_numbers`, the item's number."""
    user_ids: pl.Series
    """Text, all different."""
    item_ids: pl.Series
    """Text, all different."""
    times: Times | None = None
    """[events]; None: they are in order."""

    def take(self, rows: IntArray | npt.NDArray[np.bool_]) -> "Events":
        """Some of the events, in the order given."""
        times = None if self.times is None else self.times[rows]
        return replace(self, users=self.users[rows], items=self.items[rows], times=times)


def read_interactions(spec: InteractionsInput, root: Path) -> Events:
    """Read a log with one event a row; users and items are in order of appearance.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a column is missing, or a row has no user, item or time.
    """
    table = open_table(spec, root, kinds={spec.user: "category", spec.item: "category"})
    columns = [spec.user, spec.item, *([] if spec.time is None else [spec.time])]
    table.check_columns(columns)
    kinds = {name: _key_type(table, name) for name in columns[:2]}
    collectors = {name: KeyCollector(dtype) for name, dtype in kinds.items()}
    times: list[pl.Series] = []
    files: list[tuple[str, int]] = []
    rows = 0
    for index, path in enumerate(table.files):
        files.append((path.name, rows))
        for frame in table.file_chunks(index, columns):
            for name, collector in collectors.items():
                collector.add(_as_keys(frame[name], path.name))
            if spec.time is not None:
                times.append(_times(frame, spec.time, path.name, rows - files[-1][1]))
            rows += frame.height
    users, items = (collectors[name].finish(files) for name in columns[:2])
    for key, name in ((users, spec.user), (items, spec.item)):
        require_values(key, name)
    ordered_by = pl.concat(times).to_numpy() if times else None
    (user_codes, user_ids), (item_codes, item_ids) = _by_appearance(users), _by_appearance(items)
    return Events(user_codes, item_codes, user_ids, item_ids, ordered_by)


def read_lists(spec: SequencesInput, root: Path) -> Events:
    """Read a table with one user a row, users in its order; those without any item are kept.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a column is missing or of another type, a user has no id or several rows.
    """
    table = open_table(spec, root, kinds={spec.user: "category"})
    table.check_columns([spec.user, spec.items])
    dtype = table.columns[spec.items]
    inner: pl.DataType = pl.String()
    if isinstance(dtype, pl.List):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
    elif dtype != pl.String:
        raise ValueError(
            f"{table.files[0].name}: column {spec.items} must hold lists of item ids, or text with "
            f"spaces between them; got {dtype}"
        )
    users = KeyCollector(_key_type(table, spec.user))
    items = KeyCollector(pl.String() if inner == pl.String else pl.Int64())
    lengths: list[IntArray] = []
    for frame in table.chunks([spec.user, spec.items]):
        name = table.files[0].name
        users.add(_as_keys(frame[spec.user], name))
        lists = frame[spec.items]
        if dtype == pl.String:
            lists = lists.str.extract_all(r"\S+")
        lists = lists.drop_nulls()
        count = frame[spec.items].is_not_null().to_numpy().astype(np.int64)
        count[count > 0] = lists.list.len().to_numpy()
        lengths.append(count)
        items.add(_as_keys(lists.filter(lists.list.len() > 0).explode(), name))
    user_key, item_key = users.finish(), items.finish()
    require_values(user_key, spec.user)
    require_values(item_key, spec.items)
    double = np.flatnonzero(np.bincount(user_key.codes, minlength=1) > 1)
    if double.size:
        raise ValueError(
            f"{table.files[0].name}: a user must have one row; {double.size:,} have several, such "
            f"as {_ids(user_key)[int(double[0])]!r}"
        )
    per_user = np.concatenate([np.empty(0, np.int64), *lengths])
    codes = np.repeat(user_key.codes, per_user)
    # Users are numbered by their rows, whatever their ids are, and those without items are kept.
    place = np.empty(len(user_key.codes), np.int32)
    place[user_key.codes] = np.arange(len(user_key.codes))
    item_codes, item_ids = _by_appearance(item_key)
    return Events(place[codes], item_codes, _ids(user_key).gather(user_key.codes), item_ids)


def with_numbers(events: Events, catalogue_ids: pl.Series, rules: EventRules) -> Events:
    """Events with item numbers from 1 in place of codes.

    Raises:
        ValueError: the catalogue lacks an item, and the rules do not drop such.
    """
    known = pl.DataFrame({"id": catalogue_ids, "number": np.arange(1, len(catalogue_ids) + 1)})
    wanted = pl.DataFrame({"id": events.item_ids})
    joined = wanted.join(known, on="id", how="left", maintain_order="left")
    number_of = joined["number"].fill_null(0).to_numpy().astype(np.int32)
    numbered = replace(events, items=number_of[events.items])
    unknown = numbered.items == 0
    if not unknown.any():
        return numbered
    if rules.unknown_items == "error":
        count = int((number_of == 0).sum())
        first = events.item_ids[int(events.items[np.flatnonzero(unknown)[0]])]
        raise ValueError(
            f"the table of items lacks {count:,} of the sequences' items, such as {first!r} "
            f'({int(unknown.sum()):,} events in all); add them, or set unknown_items = "drop"'
        )
    return numbered.take(~unknown)


def in_order(events: Events, rules: EventRules) -> Events:
    """Events of one user after another, oldest first, filtered by the rules.

    Users keep their codes; their order is that of the codes.

    Raises:
        ValueError: the core filter leaves nothing.
    """
    by = (events.users,) if events.times is None else (events.times, events.users)
    events = events.take(np.lexsort(by))  # stable: ties keep the order of the files
    if rules.repeats == "first" and events.items.size:
        pairs = events.users.astype(np.int64) * (int(events.items.max()) + 1) + events.items
        events = events.take(np.sort(np.unique(pairs, return_index=True)[1]))
    if rules.min_count is not None:
        codes = {"users": events.users, "items": events.items}
        kept = core_rows(codes, {"users": rules.min_count, "items": rules.min_count})
        events = events.take(kept)
    return events


def _by_appearance(key: KeyColumn) -> tuple[Codes, pl.Series]:
    """Codes and texts of ids, in the order in which the log first has them."""
    codes, first = np.unique(key.codes, return_index=True)
    order = codes[np.argsort(first)]
    places = np.zeros(len(key.values), np.int32)
    places[order] = np.arange(len(order))
    return places[key.codes], _ids(key).gather(order)


def _key_type(table: RawTable, column: str) -> pl.DataType:
    dtype = table.columns[column]
    if dtype.is_nested():
        raise ValueError(
            f"{table.files[0].name}: column {column} holds lists; an id is a number or a text"
        )
    return pl.String() if dtype == pl.String else pl.Int64()


def _as_keys(values: pl.Series, file: str) -> pl.Series:
    """Ids; whole numbers that were written with a decimal point, as pandas does, are whole again.

    Raises:
        ValueError: a number has a fraction.
    """
    if not values.dtype.is_float():
        return values if values.dtype == pl.String else values.cast(pl.Int64)
    # A strict cast would not do: it drops the fraction.
    broken = values.filter(values != values.floor())
    if len(broken):
        raise ValueError(f"{file}: column {values.name} holds {broken[0]}, which is no id")
    return values.cast(pl.Int64)


def _ids(key: KeyColumn) -> pl.Series:
    return key.values.cast(pl.String)


def _times(frame: pl.DataFrame, column: str, file: str, row: int) -> pl.Series:
    """The numbers that order events; text is read as ISO dates, in seconds.

    Raises:
        ValueError: a cell holds no time.
    """
    dtype = frame.schema[column]
    if dtype.is_nested():
        raise ValueError(f"{file}: column {column} holds lists, which do not order events")
    times = (
        frame.select(seconds(column, dtype, "iso"))[column] if dtype == pl.String else frame[column]
    )
    if times.null_count():
        bad = times.is_null()
        if dtype == pl.String:
            # One cell such as "nan" makes a column of numbers text: that cell is to be named.
            numbers = frame[column].cast(pl.Float64, strict=False).fill_nan(None)
            bad = bad & numbers.is_null() if (bad & numbers.is_null()).any() else bad
        index = int(bad.arg_true()[0])
        raise ValueError(
            f"{file}: row {row + index + 1:,}: column {column} orders events and must hold numbers "
            f"or ISO dates; got {frame[column][index]!r}"
        )
    return times
