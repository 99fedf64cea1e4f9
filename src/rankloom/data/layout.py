"""Which columns of a `Schema` are stored where: in the row, or in an entity table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.data.columns import Columns, SequenceColumns
from rankloom.schema import Schema, SequenceField


@dataclass(frozen=True)
class SequenceLayout:
    """Stored columns of one sequence group."""

    id_columns: int
    """Columns of ids."""
    numeric_columns: int
    """Numeric columns."""
    has_time: bool
    """Whether every event has a time."""
    vectors: dict[str, int]
    """Vector member -> width."""


@dataclass(frozen=True)
class Layout:
    """Stored columns of the rows, or of one entity table."""

    categorical: int
    """Columns of categorical ids."""
    numeric: int
    """Numeric columns."""
    vectors: dict[str, int]
    """Vector -> width."""
    sequences: dict[str, SequenceLayout]
    """Sequence group -> its columns."""
    labels: int = 0
    """Tasks."""
    has_weight: bool = False
    """Whether rows have a weight."""
    has_scenario: bool = False
    """Whether rows have a scenario."""
    has_group: bool = False
    """Whether rows have a group."""
    has_time: bool = False
    """Whether rows have a time."""
    texts: tuple[str, ...] = ()
    """Text columns."""


def row_layout(schema: Schema) -> Layout:
    """What is stored in the rows of the splits."""
    features = entity_layout(schema, None)
    return Layout(
        categorical=features.categorical,
        numeric=features.numeric,
        vectors=features.vectors,
        sequences=features.sequences,
        labels=schema.num_tasks,
        has_weight=schema.has_weight,
        has_scenario=schema.num_scenarios > 0,
        has_group=schema.has_group,
        has_time=schema.has_time,
        texts=schema.texts,
    )


def entity_layout(schema: Schema, entity: str | None) -> Layout:
    """What is stored in the table of `entity` (None: features stored in the rows)."""
    return Layout(
        categorical=sum(field.entity == entity for field in schema.categorical),
        numeric=sum(field.entity == entity for field in schema.numeric),
        vectors={field.name: field.width for field in schema.vectors if field.entity == entity},
        sequences={
            group.name: _sequence_layout(group)
            for group in schema.sequences
            if group.entity == entity
        },
    )


def _sequence_layout(group: SequenceField) -> SequenceLayout:
    return SequenceLayout(
        id_columns=sum(member.columns for member in group.ids if member.entity is None),
        numeric_columns=sum(member.entity is None for member in group.numeric),
        has_time=group.has_time,
        vectors={member.name: member.width for member in group.vectors if member.entity is None},
    )


def check_columns(columns: Columns, layout: Layout, *, labels: bool = True) -> None:
    """Check that arrays have the names, shapes and types of a layout.

    Args:
        columns: the arrays.
        layout: what they should be.
        labels: whether labels must be there; False allows rows to be scored.

    Raises:
        ValueError: an array is missing, too much, or of another shape or type.
    """
    rows = columns.rows
    _check_array("categorical", columns.categorical, (rows, layout.categorical), np.int32)
    _check_array("numeric", columns.numeric, (rows, layout.numeric), np.float32)
    if labels or columns.labels is not None:
        shape = (rows, layout.labels) if layout.labels else None
        _check_array("labels", columns.labels, shape, np.float32)
    for name, present, kind, array in (
        ("weight", layout.has_weight, np.float32, columns.weight),
        ("scenario", layout.has_scenario, np.int32, columns.scenario),
        ("group", layout.has_group, np.int64, columns.group),
        ("time", layout.has_time, np.int64, columns.time),
    ):
        if labels or name == "scenario" or array is not None:
            _check_array(name, array, (rows,) if present else None, kind)
    _check_names("vectors", columns.vectors, layout.vectors)
    for name, width in layout.vectors.items():
        _check_array(f"vector {name}", columns.vectors[name], (rows, width), np.float32)
    _check_names("sequences", columns.sequences, layout.sequences)
    for name, sequence in layout.sequences.items():
        _check_sequence(name, columns.sequences[name], sequence, rows)
    if labels:
        _check_names("texts", columns.texts, layout.texts)
        for name, text in columns.texts.items():
            if len(text) != rows:
                raise ValueError(f"text {name} has {len(text)} rows; expected {rows}")


def _check_sequence(name: str, columns: SequenceColumns, layout: SequenceLayout, rows: int) -> None:
    offsets = columns.offsets
    _check_array(f"sequence {name} offsets", offsets, (rows + 1,), np.int64)
    events = int(offsets[-1])
    if offsets[0] != 0 or np.any(np.diff(offsets) < 0):
        raise ValueError(f"sequence {name}: offsets must start at 0 and never fall")
    label = f"sequence {name}"
    _check_array(f"{label} ids", columns.ids, (events, layout.id_columns), np.int32)
    numeric = (events, layout.numeric_columns) if layout.numeric_columns else None
    _check_array(f"{label} numeric", columns.numeric, numeric, np.float32)
    time = (events,) if layout.has_time else None
    _check_array(f"{label} time", columns.time, time, np.int64)
    _check_names(f"{label} vectors", columns.vectors, layout.vectors)
    for member, width in layout.vectors.items():
        _check_array(f"{label} {member}", columns.vectors[member], (events, width), np.float32)


def _check_array(
    name: str,
    array: NDArray[Any] | None,
    shape: tuple[int, ...] | None,
    kind: type[np.generic],
) -> None:
    got = None if array is None else (array.shape, array.dtype)
    expected = None if shape is None else (shape, np.dtype(kind))
    if got != expected:
        describe = ["none" if part is None else f"{part[1]} {part[0]}" for part in (got, expected)]
        raise ValueError(f"{name}: got {describe[0]}, expected {describe[1]}")


def _check_names(what: str, got: Iterable[str], expected: Iterable[str]) -> None:
    names = [sorted(part) for part in (got, expected)]
    if names[0] != names[1]:
        listed = [", ".join(part) or "none" for part in names]
        raise ValueError(f"{what}: got {listed[0]}, expected {listed[1]}")
