"""Which raw columns a declaration uses, and what for."""

from collections.abc import Iterable, Mapping

from rankloom.data.raw_types import Kind
from rankloom.data.table_schema import (
    Categorical,
    ColumnSplit,
    Feature,
    FileSplit,
    LeaveOneOutSplit,
    Numeric,
    RandomSplit,
    SemanticId,
    Sequence,
    TableSchema,
    Text,
    TimeSplit,
)

Use = tuple[str, Kind | None]


def feature_kinds(features: Mapping[str, Feature]) -> dict[str, Kind]:
    """Kinds of the columns of some features, for `open_table` of an entity's table."""
    return _agreed(_feature_uses(features))


def column_kinds(schema: TableSchema) -> dict[str, Kind]:
    """Kinds of the main table's columns; a column with uses of both kinds has none."""
    return _agreed(_uses(schema))


def created_columns(schema: TableSchema) -> list[str]:
    """Columns that the raw table does not hold, in the order they are created.

    Raises:
        ValueError: two of them have one name.
    """
    names = [item.name for item in schema.derive]
    if schema.negatives is not None:
        names.append(schema.negatives.label)
    for history in schema.history:
        names.extend(f"{history.name}.{member}" for member in history.members)
        if history.with_time:
            names.append(f"{history.name}.time")
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"derive, negatives and history create {', '.join(double)} twice")
    return names


def raw_columns(schema: TableSchema) -> list[str]:
    """Columns of the raw table that anything in the declaration needs, each once."""
    created = set(created_columns(schema))
    return [
        name for name in dict.fromkeys(name for name, _ in _uses(schema)) if name not in created
    ]


def split_keys(schema: TableSchema) -> list[str]:
    """Columns that a split needs over all rows at once; empty when rows can be split one by one."""
    split = schema.split
    if isinstance(split, TimeSplit):
        return [split.column] if split.within is None else [split.column, split.within]
    if isinstance(split, LeaveOneOutSplit):
        return [split.user, split.time]
    if isinstance(split, RandomSplit) and split.stratify is not None:
        return [split.stratify]
    return []


def label_column(schema: TableSchema, label: str) -> str:
    """Raw column of a label.

    Raises:
        ValueError: there is no such label.
    """
    if label not in schema.labels:
        raise ValueError(f"no label {label}; the labels are {', '.join(schema.labels)}")
    return schema.labels[label].column or label


def _agreed(uses: Iterable[Use]) -> dict[str, Kind]:
    kinds: dict[str, set[Kind]] = {}
    for name, kind in uses:
        if kind is not None:
            kinds.setdefault(name, set()).add(kind)
    return {name: found.pop() for name, found in kinds.items() if len(found) == 1}


def _feature_uses(features: Mapping[str, Feature]) -> Iterable[Use]:
    for name, feature in features.items():
        yield feature.column or name, _feature_kind(feature)


def _feature_kind(feature: Feature) -> Kind | None:
    if isinstance(feature, Numeric):
        return "number"
    if isinstance(feature, Categorical):
        return "category" if feature.transform == "none" else "number"
    return "category" if isinstance(feature, Sequence | Text | SemanticId) else None


def _uses(schema: TableSchema) -> Iterable[Use]:
    yield from _feature_uses(schema.features)
    for group in schema.sequence_groups.values():
        for member in group.members.values():
            yield member.column, "category" if member.kind in ("id", "semantic_id") else None
    for name, label in schema.labels.items():
        yield label.column or name, "number"
    roles = schema.roles
    optional: list[tuple[str | None, Kind | None]] = [
        (roles.scenario, "category"),
        (roles.group, "category"),
        (roles.time, None),
        (roles.weight, "number"),
    ]
    yield from ((name, kind) for name, kind in optional if name is not None)
    yield from ((item.source, None) for item in schema.derive)
    if isinstance(schema.split, ColumnSplit):
        yield schema.split.column, "category"
    if isinstance(schema.split, FileSplit) and schema.split.valid_by is not None:
        yield schema.split.valid_by, None
    yield from ((name, None) for name in split_keys(schema))
    if schema.filter is not None:
        yield from ((name, None) for name in schema.filter.columns)
    if schema.sample is not None:
        yield schema.sample.column, None
    if schema.core is not None:
        yield from ((name, None) for name in schema.core.columns)
    if schema.negatives is not None:
        yield schema.negatives.user, None
        yield schema.negatives.item, None
        if schema.negatives.within is not None:
            yield schema.negatives.within, None
    for history in schema.history:
        yield from ((name, None) for name in (history.user, history.time, *history.members))
        if history.only_label is not None:
            yield label_column(schema, history.only_label), "number"
