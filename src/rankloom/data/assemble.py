"""From stored rows to batches: entity columns gathered, missing labels masked."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankloom.batch import Batch, Jagged, SequenceGroup, select_group
from rankloom.schema import Schema, SequenceField


@dataclass(frozen=True)
class _Join:
    """Columns that a stored part and the entities contribute to one tensor."""

    tables: tuple[tuple[str, Tensor], ...]
    """Entity -> [entity rows, columns]; gathered, then put after the stored columns."""
    order: Tensor | None
    """Column of the joined tensor for every column wanted; None when they stand in order."""

    def __call__(self, stored: Tensor, keys: dict[str, Tensor]) -> Tensor:
        if not self.tables:
            return stored
        gathered = [table.index_select(0, keys[entity]) for entity, table in self.tables]
        joined = torch.cat([stored, *gathered], dim=1)
        return joined if self.order is None else joined.index_select(1, self.order)

    def to(self, device: torch.device | str) -> "_Join":
        tables = tuple((entity, table.to(device)) for entity, table in self.tables)
        return _Join(tables, None if self.order is None else self.order.to(device))


class Assembler:
    """Makes full batches of stored rows.

    Args:
        schema: the fitted schema.
        entity_keys: entity -> the categorical field whose ids select its rows.
        entities: entity -> its stored rows.

    Raises:
        ValueError: the entities do not fit the schema.
    """

    def __init__(
        self, schema: Schema, entity_keys: dict[str, str], entities: dict[str, Batch]
    ) -> None:
        self.schema = schema
        self._entities = entities
        self._key_columns = _key_columns(schema, entity_keys, entities)
        columns = _entity_columns(schema, entities)
        self._categorical = _join([(f.name, f.entity, 1) for f in schema.categorical], columns)
        self._numeric = _join([(f.name, f.entity, 1) for f in schema.numeric], columns)
        self._ids: dict[str, _Join] = {}
        self._event_numeric: dict[str, _Join] = {}
        for group in schema.sequences:
            if group.entity is None:
                _check_event_key(group, schema, entity_keys)
                members = [(m.name, m.entity, m.columns) for m in group.ids]
                self._ids[group.name] = _join(members, columns)
                numeric = [(m.name, m.entity, 1) for m in group.numeric]
                self._event_numeric[group.name] = _join(numeric, columns)

    def to(self, device: torch.device | str) -> "Assembler":
        """The same with its entity tables on another device."""
        moved = object.__new__(Assembler)
        moved.schema = self.schema
        moved._key_columns = self._key_columns
        moved._entities = {name: rows.to(device) for name, rows in self._entities.items()}
        moved._categorical = self._categorical.to(device)
        moved._numeric = self._numeric.to(device)
        moved._ids = {name: join.to(device) for name, join in self._ids.items()}
        moved._event_numeric = {name: join.to(device) for name, join in self._event_numeric.items()}
        return moved

    def __call__(self, stored: Batch, *, has_missing_labels: bool) -> Batch:
        """Gather entity columns and mask labels.

        Args:
            stored: rows as they are stored; missing labels are NaN.
            has_missing_labels: whether the batch carries a label mask.
        """
        keys = {
            entity: stored.categorical.select(1, column)
            for entity, column in self._key_columns.items()
        }
        labels, mask = stored.labels, None
        if labels is not None and has_missing_labels:
            mask = ~labels.isnan()
            labels = labels.nan_to_num(nan=0.0)
        return replace(
            stored,
            categorical=self._categorical(stored.categorical, keys),
            numeric=self._numeric(stored.numeric, keys),
            vectors={
                field.name: stored.vectors[field.name]
                if field.entity is None
                else self._entity_vector(field.entity, field.name, keys[field.entity])
                for field in self.schema.vectors
            },
            sequences={
                group.name: self._events(group, stored.sequences[group.name])
                if group.entity is None
                else select_group(
                    self._entities[group.entity].sequences[group.name], keys[group.entity]
                )
                for group in self.schema.sequences
            },
            labels=labels,
            label_mask=mask,
        )

    def _entity_vector(self, entity: str, name: str, keys: Tensor) -> Tensor:
        return self._entities[entity].vectors[name].index_select(0, keys)

    def _events(self, group: SequenceField, stored: SequenceGroup) -> SequenceGroup:
        """Events with the side fields of their entity, found by the group's first id column."""
        if not _from_entities(group):
            return stored
        own = stored.ids.select(1, 0)
        keys = dict.fromkeys(self._entities, own)
        numeric = stored.numeric
        if group.numeric:
            if numeric is None:
                numeric = stored.ids.new_empty((own.shape[0], 0), dtype=torch.float32)
            numeric = self._event_numeric[group.name](numeric, keys)
        return replace(
            stored,
            ids=self._ids[group.name](stored.ids, keys),
            numeric=numeric,
            vectors={
                member.name: stored.vectors[member.name]
                if member.entity is None
                else self._entity_vector(member.entity, member.name, own)
                for member in group.vectors
            },
        )


def _key_columns(
    schema: Schema, entity_keys: dict[str, str], entities: dict[str, Batch]
) -> dict[str, int]:
    """Stored categorical column of every entity's key."""
    stored = [field for field in schema.categorical if field.entity is None]
    columns = {}
    for entity, rows in entities.items():
        key = entity_keys.get(entity)
        positions = [index for index, field in enumerate(stored) if field.name == key]
        if not positions:
            raise ValueError(
                f"entity {entity}: its key must be a categorical field of the row; got {key}"
            )
        table_rows = schema.tables[stored[positions[0]].table]
        if rows.size != table_rows:
            raise ValueError(f"entity {entity} has {rows.size} rows; its key has {table_rows} ids")
        columns[entity] = positions[0]
    return columns


def _check_event_key(group: SequenceField, schema: Schema, entity_keys: dict[str, str]) -> None:
    """The first id of a group must select rows of every entity that its members come from."""
    tables = {field.name: field.table for field in schema.categorical}
    first = group.ids[0]
    for name, entity in _from_entities(group):
        expected = tables.get(entity_keys.get(entity, ""))
        if first.entity is not None or first.table != expected:
            raise ValueError(
                f"sequence {group.name}: member {name} is of entity {entity}, so the first id must "
                f"be a stored id of table {expected}; got {first.name} of table {first.table}"
            )


def _from_entities(group: SequenceField) -> list[tuple[str, str]]:
    """(member, entity) of the group's members that are not stored."""
    members = [(member.name, member.entity) for member in group.ids]
    members += [(member.name, member.entity) for member in group.numeric]
    members += [(member.name, member.entity) for member in group.vectors]
    return [(name, entity) for name, entity in members if entity is not None]


EntityColumns = dict[tuple[str, str], Tensor]


def _entity_columns(schema: Schema, entities: dict[str, Batch]) -> EntityColumns:
    """(entity, field) -> [entity rows, columns]; sets of values padded to their longest length."""
    columns: EntityColumns = {}
    for entity, rows in entities.items():
        categorical = [field.name for field in schema.categorical if field.entity == entity]
        numeric = [field.name for field in schema.numeric if field.entity == entity]
        for index, name in enumerate(categorical):
            columns[entity, name] = rows.categorical[:, index : index + 1]
        for index, name in enumerate(numeric):
            columns[entity, name] = rows.numeric[:, index : index + 1]
        for name, group in rows.sequences.items():
            length = schema.sequence(name).max_length
            columns[entity, name], _ = Jagged(group.ids[:, 0], group.offsets).to_padded(length)
    return columns


def _join(members: list[tuple[str, str | None, int]], columns: EntityColumns) -> _Join:
    """How the wanted (name, entity, width) members come out of stored and entity columns."""
    entities = list(dict.fromkeys(entity for _, entity, _ in members if entity is not None))
    tables = []
    origins = [member for member in members if member[1] is None]
    for entity in entities:
        own = [member for member in members if member[1] == entity]
        missing = [name for name, _, _ in own if (entity, name) not in columns]
        if missing:
            raise ValueError(f"entity {entity} has no column {', '.join(missing)}")
        table = torch.cat([columns[entity, name] for name, _, _ in own], dim=1)
        width = sum(member[2] for member in own)
        if table.shape[1] != width:
            raise ValueError(f"entity {entity}: {table.shape[1]} columns stored, {width} expected")
        tables.append((entity, table))
        origins += own
    starts, start = {}, 0
    for name, _, width in origins:
        starts[name] = start
        start += width
    order = [starts[name] + step for name, _, width in members for step in range(width)]
    in_order = order == list(range(start))
    return _Join(tuple(tables), None if in_order else torch.tensor(order, dtype=torch.int64))
