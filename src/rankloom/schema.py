"""What every tensor of a `Batch` means: fields, tables, sequence groups, labels.

A `Schema` is the fitted side of a data set: `prepare` writes it into `dataset.json`, the loader
fills tensors in its order, and every model reads its sizes from it. What the columns of a raw
table mean is declared by `rankloom.data.table_schema.TableSchema`. This module knows no torch.

Index 0 of every table is padding, index 1 is out-of-vocabulary, kept values follow.
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rankloom.config import Config

PADDING = 0
"""Index of an absent value in every table."""
OUT_OF_VOCABULARY = 1
"""Index of a value that the training split did not keep."""
NUM_RESERVED = 2
"""Rows of every table before its kept values."""


class CategoricalField(Config):
    """One column of `Batch.categorical`."""

    name: str
    """Field name."""
    table: str
    """Embedding table whose rows the ids select; fields may share one."""
    entity: str | None = None
    """Entity table the loader gathers the column from; None when it is stored in the row."""


class NumericField(Config):
    """One column of `Batch.numeric`."""

    name: str
    """Field name."""
    entity: str | None = None
    """Entity table the loader gathers the column from; None when it is stored in the row."""


class VectorField(Config):
    """One entry of `Batch.vectors` (or of a sequence group's vectors)."""

    name: str
    """Field name."""
    width: int = Field(gt=0)
    """Length of the vector."""
    entity: str | None = None
    """Entity table the loader gathers the vector from; None when it is stored in the row."""


class IdMember(Config):
    """Consecutive id columns of a sequence group that mean one thing."""

    name: str
    """Member name, unique in its group."""
    table: str
    """Embedding table whose rows the ids select."""
    columns: int = Field(1, gt=0)
    """Id columns it takes: 1, the length limit of a multi-valued entity field, or the prefixes of
    a semantic id (both 0-padded)."""
    entity: str | None = None
    """Entity table the loader gathers the columns from; None when they are stored."""
    pooling: Literal["mean", "sum"] = "mean"
    """How the vectors of an event's columns become one; padding is not counted."""

    @model_serializer(mode="wrap")
    def _leave_default_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `pooling` where it is the mean: data prepared before it was keep their hash."""
        values: dict[str, Any] = serialize(self)
        if self.pooling == "mean":
            values.pop("pooling", None)
        return values


class SequenceField(Config):
    """One sequence group: members that run in step and share one set of offsets."""

    name: str
    """Group name, the key in `Batch.sequences`."""
    ids: tuple[IdMember, ...]
    """Id members, in column order of `SequenceGroup.ids`; the first is the event's own id."""
    numeric: tuple[NumericField, ...] = ()
    """Columns of `SequenceGroup.numeric`."""
    vectors: tuple[VectorField, ...] = ()
    """Entries of `SequenceGroup.vectors`."""
    has_time: bool = False
    """Whether the group carries the time of each event (seconds, int64)."""
    max_length: int = Field(gt=0)
    """Longest sequence that a row may hold."""
    ordered: bool = True
    """True for a history (oldest event first), False for a set of values such as genres."""
    entity: str | None = None
    """Entity that the loader gathers the whole group from; None when it is stored in the row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.ids:
            raise ValueError(f"sequence {self.name} needs at least one id member")
        names = [
            *(member.name for member in self.ids),
            *(member.name for member in self.numeric),
            *(member.name for member in self.vectors),
        ]
        repeated = _repeated(names)
        if repeated:
            raise ValueError(
                f"sequence {self.name}: member names must be unique; repeated: {repeated}"
            )
        return self

    @property
    def num_id_columns(self) -> int:
        """Columns of `SequenceGroup.ids`."""
        return sum(member.columns for member in self.ids)

    def id_columns(self, member: str) -> slice:
        """Columns of `SequenceGroup.ids` that hold `member`.

        Raises:
            KeyError: the group has no such member.
        """
        start = 0
        for candidate in self.ids:
            if candidate.name == member:
                return slice(start, start + candidate.columns)
            start += candidate.columns
        raise KeyError(f"sequence {self.name} has no id member {member}")


class Label(Config):
    """One task: a column of `Batch.labels`."""

    name: str
    """Task name."""


class Schema(Config):
    """Everything a model needs to know about the data."""

    tables: dict[str, int]
    """Rows of each id table, the two reserved rows included."""
    categorical: tuple[CategoricalField, ...] = ()
    """Columns of `Batch.categorical`, in order."""
    numeric: tuple[NumericField, ...] = ()
    """Columns of `Batch.numeric`, in order."""
    sequences: tuple[SequenceField, ...] = ()
    """Entries of `Batch.sequences`."""
    vectors: tuple[VectorField, ...] = ()
    """Entries of `Batch.vectors`."""
    labels: tuple[Label, ...]
    """Columns of `Batch.labels`, in funnel order."""
    scenarios: tuple[str, ...] = ()
    """Scenario names by index; index 0 is the unknown scenario. Empty: no scenario column."""
    has_weight: bool = False
    """Whether batches carry a weight per row."""
    has_group: bool = False
    """Whether batches carry a group per row (for GAUC)."""
    has_time: bool = False
    """Whether batches carry a time per row."""
    texts: tuple[str, ...] = ()
    """Text columns kept in the store; they do not enter the batch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [
            *self.field_names,
            *(vector.name for vector in self.vectors),
        ]
        repeated = _repeated(names)
        if repeated:
            raise ValueError(f"feature names must be unique; repeated: {repeated}")
        used = {field.table for field in self.categorical}
        used |= {member.table for group in self.sequences for member in group.ids}
        missing = sorted(used - self.tables.keys())
        if missing:
            raise ValueError(f"no table size given for: {', '.join(missing)}")
        small = sorted(name for name, rows in self.tables.items() if rows < NUM_RESERVED)
        if small:
            raise ValueError(f"tables need at least {NUM_RESERVED} rows: {', '.join(small)}")
        if not self.labels:
            raise ValueError("a schema needs at least one label")
        repeated = _repeated([label.name for label in self.labels])
        if repeated:
            raise ValueError(f"label names must be unique; repeated: {repeated}")
        return self

    @property
    def num_tasks(self) -> int:
        """Columns of `Batch.labels` and of a model's logits."""
        return len(self.labels)

    @property
    def num_scenarios(self) -> int:
        """Scenario indices, the unknown one included; 0 without a scenario column."""
        return len(self.scenarios)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields a field model sees: categorical, numeric, then sequences."""
        return (
            *(field.name for field in self.categorical),
            *(field.name for field in self.numeric),
            *(group.name for group in self.sequences),
        )

    def sequence(self, name: str) -> SequenceField:
        """The sequence group called `name`.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for group in self.sequences:
            if group.name == name:
                return group
        known = ", ".join(group.name for group in self.sequences) or "none"
        raise KeyError(f"no sequence group {name}; known: {known}")

    def fingerprint(self) -> str:
        """Short hash that changes when any part of the schema does."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _repeated(names: list[str]) -> str:
    """The names that stand there more than once."""
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))
