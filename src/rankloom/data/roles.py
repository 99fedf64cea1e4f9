"""Labels and roles (scenario, group, time, weight) of raw rows, checked and typed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.cells import group_keys, to_float, to_integer, to_text
from rankloom.data.table_schema import LabelSpec, TableSchema
from rankloom.data.vocabulary import NOT_A_NUMBER
from rankloom.schema import PADDING


def read_roles(
    frame: pl.DataFrame,
    schema: TableSchema,
    *,
    group_is_text: bool,
    numbers: NDArray[np.int64] | None = None,
    where: str = "",
    labels: bool = True,
) -> list[pl.Series]:
    """Typed columns `label/<task>` (float32, null where missing), weight, scenario, group, time.

    Args:
        frame: raw columns.
        schema: the declaration.
        group_is_text: whether group keys are hashed text; False: integers, kept as they are.
        numbers: number of each row in its file, for messages; None: counted from 1.
        where: start of messages (`log.csv: `).
        labels: False leaves out all but the scenario and, where its column is there, the time:
            requests have no labels.

    Raises:
        ValueError: a column is missing; a label is outside {0, 1} or missing; a weight is missing,
            negative or infinite; a group or time is missing or no integer. The message names the
            row.
    """
    roles = schema.roles
    rows = _Rows(numbers, where)
    columns: list[pl.Series] = []
    if labels:
        read: dict[str, pl.Series] = {}
        for name, spec in schema.labels.items():
            values = _present(frame, spec.column or name, f"label {name}")
            known = None if spec.after is None else (read[spec.after] == 1).fill_null(False)
            read[name] = _label(values, name, spec, rows, known).alias(f"label/{name}")
        columns += read.values()
        if roles.weight is not None:
            weight = _present(frame, roles.weight, "weight")
            columns.append(_weight(weight, rows).alias("weight"))
    if roles.scenario is not None:
        scenario = to_text(_present(frame, roles.scenario, "scenario"))
        columns.append(scenario.alias("scenario"))
    if labels and roles.group is not None:
        group = _present(frame, roles.group, "group")
        keys = group_keys(group, group_is_text)
        columns.append(_whole(keys, group, "group", rows).alias("group"))
    if roles.time is not None and (labels or roles.time in frame.columns):
        time = _present(frame, roles.time, "time")
        columns.append(_whole(to_integer(time), time, "time", rows).alias("time"))
    return columns


def scenario_ids(scenarios: tuple[str, ...]) -> Callable[[pl.Series], NDArray[np.int32]]:
    """Lookup of scenario names: their index, 0 for a name that is not known."""
    known = pl.DataFrame(
        {"name": scenarios[1:], "id": np.arange(1, len(scenarios), dtype=np.int32)},
        schema={"name": pl.String, "id": pl.Int32},
    )

    def lookup(values: pl.Series) -> NDArray[np.int32]:
        rows = values.alias("name").to_frame()
        found = rows.join(known, on="name", how="left", maintain_order="left")
        return found["id"].fill_null(PADDING).to_numpy().astype(np.int32)

    return lookup


def sort_scenarios(names: list[str]) -> list[str]:
    """Scenario names in index order: by number when all are integers, else as text."""
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def _present(frame: pl.DataFrame, column: str, role: str) -> pl.Series:
    if column not in frame.columns:
        raise ValueError(f"{role}: no column {column}; the table has: {', '.join(frame.columns)}")
    return frame[column]


@dataclass(frozen=True)
class _Rows:
    """Where the rows come from."""

    numbers: NDArray[np.int64] | None
    where: str

    def fail(self, values: pl.Series, bad: pl.Series, role: str, wanted: str) -> NoReturn:
        place = int(bad.arg_true()[0])
        number = place + 1 if self.numbers is None else self.numbers[place]
        raise ValueError(
            f"{self.where}{role}, column {values.name}, row {number:,}: {wanted}; got "
            f"{values[place]!r}"
        )


def _label(
    values: pl.Series, name: str, spec: LabelSpec, rows: _Rows, known: pl.Series | None
) -> pl.Series:
    if known is not None:
        # What the column holds where the label cannot be known is not looked at.
        values = pl.select(pl.when(known).then(values)).to_series().alias(values.name)
    numbers = to_float(values)
    unread = numbers.is_null() & values.is_not_null()
    if unread.any():
        rows.fail(values, unread, f"label {name}", "must be a number")
    numbers = numbers.fill_nan(None)
    missing = numbers.is_null() if known is None else numbers.is_null() & known
    if not spec.allow_missing and missing.any():
        wanted = "is missing; set allow_missing = true to mask it, expected 0 or 1"
        rows.fail(values, missing, f"label {name}", wanted)
    if spec.threshold is not None:
        return (numbers >= spec.threshold).cast(pl.Float32)
    outside = ((numbers != 0) & (numbers != 1)).fill_null(False)
    if outside.any():
        wanted = "must be 0 or 1 (or give a threshold)"
        rows.fail(values, outside, f"label {name}", wanted)
    return numbers.cast(pl.Float32)


def _weight(values: pl.Series, rows: _Rows) -> pl.Series:
    numbers = to_float(values)
    bad = (numbers.is_null() | numbers.is_nan() | numbers.is_infinite() | (numbers < 0)).fill_null(
        True
    )
    if bad.any():
        rows.fail(values, bad, "weight", "must be a finite number, not negative")
    return numbers.cast(pl.Float32)


def _whole(integers: pl.Series, values: pl.Series, role: str, rows: _Rows) -> pl.Series:
    bad = integers.is_null()
    if role == "time" or values.dtype.is_numeric():
        bad |= (integers == NOT_A_NUMBER).fill_null(False)
    if bad.any():
        rows.fail(values, bad, role, "must be an integer" if role == "time" else "is missing")
    return integers
