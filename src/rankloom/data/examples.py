"""Small schemas and random rows with everything in them, for tests and examples."""

from pathlib import Path

import numpy as np
import pyarrow as pa

import rankloom
from rankloom.batch import Batch
from rankloom.data.assemble import Assembler
from rankloom.data.columns import Columns, SequenceColumns
from rankloom.data.layout import Layout, entity_layout, row_layout
from rankloom.data.shards import to_stored_batch
from rankloom.data.store import (
    Dataset,
    FileInfo,
    Manifest,
    SplitInfo,
    SplitWriter,
    write_entity,
    write_manifest,
)
from rankloom.data.table_schema import TableSchema
from rankloom.data.writer import ROWS_PER_SHARD
from rankloom.schema import (
    NUM_RESERVED,
    CategoricalField,
    IdMember,
    Label,
    NumericField,
    Schema,
    SequenceField,
    VectorField,
)


def example_schema(
    *,
    num_categorical: int = 4,
    num_numeric: int = 2,
    num_tasks: int = 1,
    num_scenarios: int = 0,
    sequences: bool = True,
    vectors: bool = True,
    entity: bool = False,
    rows_per_table: int = 50,
    max_length: int = 6,
) -> Schema:
    """A schema without files behind it.

    Args:
        num_categorical: categorical fields `c0`, `c1`, ..., each with a table of its own, beside
            `item`, which is always there.
        num_numeric: numeric fields `n0`, `n1`, ...
        num_tasks: labels `task0`, `task1`, ...
        num_scenarios: scenarios, the unknown one included; 0 for none.
        sequences: whether there are a history `history` (of `item` and `c0` when there is one,
            with a price and the time of each event) and a set of values `genres`.
        vectors: whether there is a vector field `embedding` of width 8.
        entity: whether an entity `item` gives side fields to the item: category, price, genres and
            a vector, in the row and, with `sequences`, at every event of the history.
        rows_per_table: rows of every table.
        max_length: longest sequence.

    Returns:
        A schema whose batches `random_batch` draws; roles other than the scenario included.
    """
    own = [f"c{index}" for index in range(num_categorical)]
    categorical = [CategoricalField(name=name, table=name) for name in ("item", *own)]
    numeric = [NumericField(name=f"n{index}") for index in range(num_numeric)]
    vector_fields = [VectorField(name="embedding", width=8)] if vectors else []
    groups = []
    event_ids = [IdMember(name="item", table="item")]
    event_numeric = [NumericField(name="paid")]
    event_vectors = []
    tables = ["item", *own]
    if num_categorical:
        event_ids.append(IdMember(name="c0", table="c0"))
    if sequences:
        tables.append("genres")
        genres = IdMember(name="genres", table="genres")
        groups.append(
            SequenceField(name="genres", ids=(genres,), max_length=max_length, ordered=False)
        )
    if entity:
        tables += ["item.category", "item.tags"]
        categorical.insert(
            1, CategoricalField(name="item.category", table="item.category", entity="item")
        )
        numeric.insert(0, NumericField(name="item.price", entity="item"))
        vector_fields.append(VectorField(name="item.text", width=4, entity="item"))
        tags = IdMember(name="item.tags", table="item.tags")
        groups.append(
            SequenceField(name="item.tags", ids=(tags,), max_length=3, ordered=False, entity="item")
        )
        event_ids.insert(1, IdMember(name="item.category", table="item.category", entity="item"))
        event_ids.append(IdMember(name="item.tags", table="item.tags", columns=3, entity="item"))
        event_numeric.append(NumericField(name="item.price", entity="item"))
        event_vectors.append(VectorField(name="item.text", width=4, entity="item"))
    if sequences:
        groups.append(
            SequenceField(
                name="history",
                ids=tuple(event_ids),
                numeric=tuple(event_numeric),
                vectors=tuple(event_vectors),
                has_time=True,
                max_length=max_length,
            )
        )
    return Schema(
        tables=dict.fromkeys(tables, rows_per_table),
        categorical=tuple(categorical),
        numeric=tuple(numeric),
        sequences=tuple(groups),
        vectors=tuple(vector_fields),
        labels=tuple(Label(name=f"task{index}") for index in range(num_tasks)),
        scenarios=tuple(f"s{index}" for index in range(num_scenarios)),
        has_weight=True,
        has_group=True,
        has_time=True,
    )


def random_batch(schema: Schema, rows: int, seed: int = 0) -> Batch:
    """Random rows of any schema: ids of every kind (padding included), empty sequences, labels.

    Entity fields agree with the entity's key wherever the key occurs, as in real data, when the
    entity's key is found by name: the categorical field that is called like the entity, otherwise
    the first one that is stored in the row.
    """
    generator = np.random.default_rng(seed)
    keys = guess_entity_keys(schema)
    entities = {
        entity: to_stored_batch(random_entity(schema, entity, key, seed))
        for entity, key in keys.items()
    }
    stored = to_stored_batch(random_columns(schema, rows, generator))
    return Assembler(schema, keys, entities)(stored, has_missing_labels=False)


def example_dataset(
    folder: Path,
    schema: Schema,
    splits: dict[str, Columns],
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    seed: int = 0,
) -> Dataset:
    """Write a data set folder without a raw table, and open it.

    Args:
        folder: where; made when it is not there.
        schema: what the columns mean.
        splits: encoded rows by split, as `random_columns` draws them.
        rows_per_shard: rows of a shard.
        seed: seed of the entity tables; those of `random_batch` with the same seed.
    """
    files: dict[str, FileInfo] = {}
    infos: dict[str, SplitInfo] = {}
    for name, columns in splits.items():
        writer = SplitWriter(folder, name, schema, rows_per_shard)
        writer.append(columns)
        infos[name] = writer.close()
        files |= writer.files
    keys = guess_entity_keys(schema)
    for entity, key in keys.items():
        columns = random_entity(schema, entity, key, seed)
        files[f"entities/{entity}.arrow"] = write_entity(folder, entity, schema, columns)
    declared = {
        "name": "example",
        "input": {"files": "none.csv"},
        "features": {"item": {"kind": "categorical"}},
        "labels": {label.name: {} for label in schema.labels},
    }
    manifest = Manifest(
        rankloom_version=rankloom.__version__,
        name="example",
        declared=TableSchema.model_validate(declared),
        fitted=schema,
        entity_keys=keys,
        splits=infos,
        files=files,
    )
    write_manifest(folder, manifest)
    return Dataset.open(folder)


def guess_entity_keys(schema: Schema) -> dict[str, str]:
    """Entity -> the categorical field of its name, or the first field stored in the row."""
    stored = [field.name for field in schema.categorical if field.entity is None]
    entities = [field.entity for field in schema.categorical]
    entities += [field.entity for field in schema.numeric]
    entities += [field.entity for field in schema.vectors]
    entities += [group.entity for group in schema.sequences]
    named = dict.fromkeys(entity for entity in entities if entity is not None)
    return {entity: entity if entity in stored else stored[0] for entity in named}


def random_entity(schema: Schema, entity: str, key: str, seed: int = 0) -> Columns:
    """Random rows of an entity table, one per id of its key; the two reserved rows hold padding."""
    tables = {field.name: field.table for field in schema.categorical}
    rows = schema.tables[tables[key]]
    layout = entity_layout(schema, entity)
    columns = _random_features(schema, entity, layout, rows, np.random.default_rng([seed, 1]))
    columns.categorical[:NUM_RESERVED] = 0
    columns.numeric[:NUM_RESERVED] = 0
    for vector in columns.vectors.values():
        vector[:NUM_RESERVED] = 0
    return columns


def random_columns(
    schema: Schema, rows: int, generator: np.random.Generator, *, missing_labels: float = 0.0
) -> Columns:
    """Random rows as `prepare` encodes them.

    Args:
        schema: what the columns mean.
        rows: number of rows.
        generator: source of the draw.
        missing_labels: share of labels that are missing (NaN).
    """
    layout = row_layout(schema)
    features = _random_features(schema, None, layout, rows, generator)
    labels = generator.integers(0, 2, (rows, layout.labels)).astype(np.float32)
    labels[generator.random(labels.shape) < missing_labels] = np.nan
    texts = {
        name: pa.array([f"{name} {number}" for number in range(rows)], pa.large_string())
        for name in layout.texts
    }
    return Columns(
        categorical=features.categorical,
        numeric=features.numeric,
        sequences=features.sequences,
        vectors=features.vectors,
        labels=labels,
        weight=generator.random(rows, np.float32) + 0.5 if layout.has_weight else None,
        scenario=generator.integers(0, schema.num_scenarios, rows, np.int32)
        if layout.has_scenario
        else None,
        group=generator.integers(0, max(rows // 4, 1), rows) if layout.has_group else None,
        time=np.arange(rows, dtype=np.int64) + 1_600_000_000 if layout.has_time else None,
        texts=texts,
    )


def _random_features(
    schema: Schema, entity: str | None, layout: Layout, rows: int, generator: np.random.Generator
) -> Columns:
    categorical = [field for field in schema.categorical if field.entity == entity]
    ids = np.empty((rows, layout.categorical), np.int32)
    for index, field in enumerate(categorical):
        ids[:, index] = generator.integers(0, schema.tables[field.table], rows)
    sequences = {}
    for group in schema.sequences:
        if group.entity != entity:
            continue
        lengths = generator.integers(0, group.max_length + 1, rows)
        # Multi-valued side fields of the reserved rows must stay empty.
        lengths[: NUM_RESERVED if entity is not None else 0] = 0
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        sequences[group.name] = _random_events(schema, group, layout, offsets, generator)
    return Columns(
        categorical=ids,
        numeric=generator.standard_normal((rows, layout.numeric), np.float32),
        sequences=sequences,
        vectors={
            name: generator.standard_normal((rows, width), np.float32)
            for name, width in layout.vectors.items()
        },
    )


def _random_events(
    schema: Schema,
    group: SequenceField,
    layout: Layout,
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]],
    generator: np.random.Generator,
) -> SequenceColumns:
    events = int(offsets[-1])
    stored = layout.sequences[group.name]
    ids = [
        generator.integers(NUM_RESERVED - 1, schema.tables[member.table], (events, member.columns))
        for member in group.ids
        if member.entity is None
    ]
    return SequenceColumns(
        offsets=offsets,
        ids=np.concatenate(ids, axis=1).astype(np.int32),
        numeric=generator.standard_normal((events, stored.numeric_columns), np.float32)
        if stored.numeric_columns
        else None,
        time=generator.integers(0, 2_000_000_000, events) if stored.has_time else None,
        vectors={
            name: generator.standard_normal((events, width), np.float32)
            for name, width in stored.vectors.items()
        },
    )
