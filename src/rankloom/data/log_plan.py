"""What must be decided over all rows of a log at once, from its key columns alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankloom.data.core import core_rows, filtered_rows, sampled_rows
from rankloom.data.delimited import Place
from rankloom.data.derive import derive_columns
from rankloom.data.history import HistoryIndex, index_history
from rankloom.data.keys import Codes, KeyCollector, KeyColumn, as_times, require_values
from rankloom.data.negatives import draw_negatives
from rankloom.data.read import RawTable
from rankloom.data.split import (
    SplitCodes,
    check_not_empty,
    leave_one_out_split,
    stratified_split,
    time_split,
    within_split,
)
from rankloom.data.table_schema import (
    Derive,
    History,
    LeaveOneOutSplit,
    RandomSplit,
    TableSchema,
    TimeSplit,
)
from rankloom.data.usage import label_column, split_keys

Keys = dict[str, KeyColumn]


@dataclass(frozen=True)
class Plan:
    """What was decided over all rows at once; None or empty where nothing had to be."""

    rows: int
    """Rows of the raw table; -1 when they were not counted."""
    keep: NDArray[np.bool_] | None
    """[rows]; what the filter, the sample and the core filter left."""
    split: SplitCodes | None
    """[rows]."""
    negatives: Codes | None
    """[rows, most of any split] codes of items, -1 for none."""
    histories: tuple[tuple[History, HistoryIndex], ...]
    """One index per declared history."""
    keys: Keys
    """Key columns over all rows."""


def make_plan(schema: TableSchema, table: RawTable) -> Plan:
    """Decide what needs all rows at once: filters, sample, split, negatives, histories.

    Raises:
        ValueError: the table has no rows, a key is missing in one, a time is no number, a filter or
            the sample leaves nothing, or a split that was asked for is empty.
    """
    keys = _collect_keys(schema, table)
    if not keys:
        return Plan(-1, None, None, None, (), {})
    rows = len(next(iter(keys.values())).codes)
    if not rows:
        raise ValueError(f"{table.files[0].name} has no rows")
    keep = None if schema.filter is None else filtered_rows(keys, schema.filter.columns)
    if schema.sample is not None:
        sample = schema.sample
        drawn = sampled_rows(keys[sample.column], sample.share, sample.seed)
        keep = drawn if keep is None else keep & drawn
    if schema.core is not None:
        codes = {name: keys[name].codes for name in schema.core.columns}
        keep = core_rows(codes, schema.core.columns, keep)
    kept = np.arange(rows) if keep is None else np.flatnonzero(keep)
    split = None
    if split_keys(schema):
        split = np.zeros(rows, dtype=np.int8)
        split[kept] = _planned_split(schema, keys, kept)
        check_not_empty(schema.split, np.bincount(split[kept], minlength=3))
    negatives = None
    if schema.negatives is not None:
        spec = schema.negatives
        for name in (spec.user, spec.item, *_named(spec.within)):
            require_values(keys[name], name)
        users, items = keys[spec.user].codes[kept], keys[spec.item].codes[kept]
        within = None if spec.within is None else keys[spec.within].codes[kept]
        most = max(spec.per_positive, spec.per_held_out or 0)
        negatives = np.full((rows, most), -1, dtype=np.int32)
        negatives[kept] = draw_negatives(users, items, most, spec.seed, within)
    histories = tuple((item, _history(schema, item, keys, keep)) for item in schema.history)
    return Plan(rows, keep, split, negatives, histories, keys)


def _collect_keys(schema: TableSchema, table: RawTable) -> Keys:
    """Read every column that something needs over all rows at once."""
    wanted = [*split_keys(schema)]
    if schema.filter is not None:
        wanted += schema.filter.columns
    if schema.sample is not None:
        wanted.append(schema.sample.column)
    if schema.core is not None:
        wanted += schema.core.columns
    if schema.negatives is not None:
        spec = schema.negatives
        wanted += [spec.user, spec.item, *_named(spec.within)]
    for history in schema.history:
        wanted += [history.user, history.time, *history.members]
        label = history.only_label
        if label is not None and not _is_created_label(schema, label):
            wanted.append(label_column(schema, label))
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        return {}
    derive = _needed_derive(schema, wanted)
    derived = {item.name for item in derive}
    sources = [item.source for item in derive]
    raw = [name for name in dict.fromkeys([*wanted, *sources]) if name not in derived]
    collectors: dict[str, KeyCollector] = {}
    starts: list[tuple[str, int]] = []
    rows = 0
    for index, file in enumerate(table.files):
        starts.append((file.name, rows))
        for chunk in table.file_chunks(index, raw):
            place = Place(file.name, rows - starts[-1][1] + 1)
            frame = derive_columns(chunk, derive, place)
            for name in wanted:
                if name not in collectors:
                    collectors[name] = KeyCollector(frame.schema[name])
                collectors[name].add(frame[name])
            rows += chunk.height
    if not collectors:
        raise ValueError(f"{table.files[0].name} has no rows")
    return {name: collector.finish(starts) for name, collector in collectors.items()}


def _named(column: str | None) -> list[str]:
    return [] if column is None else [column]


def _needed_derive(schema: TableSchema, wanted: list[str]) -> list[Derive]:
    """Derived columns among `wanted`, and those they build on, in order."""
    needed = set(wanted)
    for item in reversed(schema.derive):
        if item.name in needed:
            needed.add(item.source)
    return [item for item in schema.derive if item.name in needed]


def _planned_split(schema: TableSchema, keys: Keys, kept: NDArray[np.int64]) -> SplitCodes:
    """Split codes of the kept rows."""
    split = schema.split
    if isinstance(split, RandomSplit):
        assert split.stratify is not None
        return stratified_split(split, keys[split.stratify].codes[kept])
    if isinstance(split, LeaveOneOutSplit):
        require_values(keys[split.user], split.user)
        times = as_times(keys[split.time], split.time)[kept]
        return leave_one_out_split(keys[split.user].codes[kept], times)
    assert isinstance(split, TimeSplit)
    times = as_times(keys[split.column], split.column)[kept]
    if split.within is None:
        return time_split(times, split.valid, split.test)
    require_values(keys[split.within], split.within)
    return within_split(keys[split.within].codes[kept], times, split.valid, split.test)


def _history(
    schema: TableSchema, history: History, keys: Keys, keep: NDArray[np.bool_] | None
) -> HistoryIndex:
    users = keys[history.user].codes
    times = as_times(keys[history.time], history.time)
    # Without an item there is nothing to remember of an event.
    enters = keys[history.members[0]].codes >= 0
    if keep is not None:
        enters &= keep
    label = history.only_label
    if label is not None and not _is_created_label(schema, label):
        key = keys[label_column(schema, label)]
        threshold = schema.labels[label].threshold
        if not key.values.dtype.is_numeric():
            raise ValueError(f"history {history.name}: label {label} does not hold numbers")
        positive = key.values.to_numpy() >= (1 if threshold is None else threshold)
        # The last place answers for missing labels, whose code is -1.
        enters &= np.append(positive, False)[key.codes]
    return index_history(users, times, enters, history.max_length)


def _is_created_label(schema: TableSchema, label: str) -> bool:
    """Whether the label is that of the negatives, in which every logged row is positive."""
    negatives = schema.negatives
    return negatives is not None and label_column(schema, label) == negatives.label
