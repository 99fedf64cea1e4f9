"""Entity tables: read, fitted on the entities of the training split, encoded in id order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rankloom.data.cells import Cells, read_cells, to_integer, to_text
from rankloom.data.encode import Fitted, assemble
from rankloom.data.fit import Fitter
from rankloom.data.manifest import FileInfo, file_info
from rankloom.data.plan import Part, Plan
from rankloom.data.raw_types import Kind
from rankloom.data.read import open_table
from rankloom.data.spill import select_rows
from rankloom.data.table_schema import Entity, TableSchema
from rankloom.data.usage import feature_kinds
from rankloom.data.writer import write_entity
from rankloom.schema import NUM_RESERVED, Schema


@dataclass(frozen=True)
class EntityTable:
    """One entity's raw table."""

    name: str
    frame: pl.DataFrame
    """Raw columns."""
    spec: Entity
    where: str
    """Start of messages."""


def open_entities(schema: TableSchema, root: Path) -> dict[str, EntityTable]:
    """Read the entity tables of a declaration.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a column is missing; a key is missing or occurs twice.
    """
    return {name: _open(name, spec, root) for name, spec in schema.entities.items()}


def count_entities(table: EntityTable, plan: Plan, fitter: Fitter, fitted_kinds: str) -> None:
    """Fit the entity's vocabularies and statistics on the entities that training rows hold.

    Args:
        table: the entity's table.
        plan: the plan.
        fitter: has counted the training rows already.
        fitted_kinds: kind of the key's table.
    """
    keys = _typed_keys(table, fitted_kinds)
    occurs = fitter.occurs(plan.key_tables[table.name], keys)
    part = plan.entities[table.name]
    cells = select_rows(_cells(table, table.frame, plan, fitter), occurs)
    fitter.count(fitter.code(cells, part), part)


def write_entities(
    folder: Path,
    tables: dict[str, EntityTable],
    plan: Plan,
    fitter: Fitter,
    fitted: Fitted,
    schema: Schema,
) -> dict[str, FileInfo]:
    """Write every entity's table, rows in the order of its key's ids.

    Ids without an entity (padding, out-of-vocabulary, keys that the entity's table lacks) hold a
    row of missing values: ids 0, empty sequences, zero vectors, numbers as a missing one.

    Returns:
        The files written, by path relative to the folder.
    """
    files: dict[str, FileInfo] = {}
    lookups = fitted.lookups()
    for name, table in tables.items():
        key_table = plan.key_tables[name]
        rows = fitted.table_rows(plan)[key_table]
        keys = _typed_keys(table, fitted.transforms.kinds[key_table])
        aligned = _align(table.frame, lookups[key_table](keys), rows)
        part = plan.entities[name]
        cells = _cells(table, aligned, plan, fitter)
        columns = assemble(cells, plan, part, lookups, fitted.transforms.numbers)
        if columns.texts:
            path = folder / "entities" / f"{name}.texts.parquet"
            path.parent.mkdir(exist_ok=True)
            text = cells.rows.select([f"text/{column}" for column in part.texts])
            pq.write_table(text.rename(lambda c: c.partition("/")[2]).to_arrow(), path)
            files[f"entities/{path.name}"] = file_info(path)
            columns.texts.clear()
        files[f"entities/{name}.arrow"] = write_entity(folder, name, schema, columns)
    return files


def _open(name: str, spec: Entity, root: Path) -> EntityTable:
    columns = [spec.key, *(feature.column or key for key, feature in spec.features.items())]
    kinds: dict[str, Kind] = {**feature_kinds(spec.features), spec.key: "category"}
    table = open_table(spec.input, root, kinds=kinds)
    frame = table.collect(list(dict.fromkeys(columns)))
    where = f"{', '.join(path.name for path in table.files)}: entity {name}, "
    keys = frame[spec.key]
    if keys.null_count():
        row = int(keys.is_null().arg_true()[0]) + 1
        raise ValueError(f"{where}row {row:,}: the key {spec.key} is missing")
    if keys.n_unique() < len(keys):
        row = int((~keys.is_first_distinct()).arg_true()[0])
        raise ValueError(
            f"{where}row {row + 1:,}: the key {keys[row]!r} occurs twice; keys must be unique"
        )
    return EntityTable(name, frame, spec, where)


def _typed_keys(table: EntityTable, kind: str) -> pl.Series:
    keys = table.frame[table.spec.key]
    return to_integer(keys) if kind == "integer" else to_text(keys)


def _cells(table: EntityTable, frame: pl.DataFrame, plan: Plan, fitter: Fitter) -> Cells:
    part: Part = plan.entities[table.name]
    return read_cells(frame, part, plan.tables, fitter.kinds, where=table.where)


def _align(frame: pl.DataFrame, ids: NDArray[np.int32], rows: int) -> pl.DataFrame:
    """Row i of the result belongs to id i; nulls where there is none."""
    place = np.full(rows, -1, np.int64)
    kept = np.flatnonzero(ids >= NUM_RESERVED)
    place[ids[kept]] = kept
    index = pl.Series(place)
    index = index.set(index < 0, None)
    if frame.height == 0:
        return pl.DataFrame(
            {n: pl.Series(n, [None] * rows, dtype=t) for n, t in frame.schema.items()}
        )
    return frame.select(pl.all().gather(index))
