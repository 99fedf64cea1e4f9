"""The fitting pass: vocabularies and statistics of the training rows, gathered chunk by chunk."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.cells import Cells, TableKind
from rankloom.data.encode import CodeTable, Fitted, Lookup, Transforms
from rankloom.data.plan import UNKNOWN_SCENARIO, Part, Plan, Slot
from rankloom.data.roles import sort_scenarios
from rankloom.data.transforms import Moments, Sample, fit_numeric, fit_quantiles
from rankloom.data.vocabulary import IntegerCounter, TextCounter, Vocabulary


class Fitter:
    """Codes text as it arrives, and counts what training rows hold.

    Use: `code` every chunk; `count` the coded cells of training rows; `fit` after the last.
    """

    def __init__(self, plan: Plan, kinds: Mapping[str, TableKind], pool: Executor) -> None:
        self._plan = plan
        self.kinds = dict(kinds)
        self._texts = {name: TextCounter() for name, kind in kinds.items() if kind == "text"}
        self._integers = {n: IntegerCounter() for n, kind in kinds.items() if kind == "integer"}
        self._bins = {name: Sample() for name, kind in kinds.items() if kind == "quantile"}
        own = [slot for slot, key in plan.number_keys.items() if slot == key]
        self._moments = {slot: Moments() for slot in own}
        self._medians = {slot: Sample() for slot in own if plan.numbers[slot].fill == "median"}
        self._present = dict.fromkeys(own, 0)
        self._scenarios = TextCounter()
        self._pool = pool
        self._codes: dict[str, NDArray[np.int32]] = {}

    def code(self, cells: Cells, part: Part) -> Cells:
        """The cells with provisional codes in place of text ids."""
        coded = self._coding(part.slots)
        if "scenario" in cells.rows.columns:
            coded.append(self._scenarios.codes(pl.col("scenario")))
        events = {
            group.name: cells.events[group.name].with_columns(self._coding(group.slots))
            for group in part.groups
        }
        return Cells(cells.height, cells.rows.with_columns(coded), cells.lengths, events)

    def count(self, cells: Cells, part: Part) -> None:
        """Count the coded cells of training rows (or of entities that training rows hold)."""
        if "scenario" in cells.rows.columns:
            self._scenarios.count(cells.rows["scenario"].to_numpy())
        work: dict[str, list[tuple[Slot, pl.Series]]] = {}
        for slot, values in _columns(cells, part):
            if slot.kind == "id" and slot.level == self._plan.tables[slot.table].level:
                work.setdefault(f"table/{slot.table}", []).append((slot, values))
            elif slot.kind == "numeric":
                work.setdefault(slot.name, []).append((slot, values))
        # One thread per table or number: columns that share a counter stay in order.
        for _ in self._pool.map(self._count_all, work.values()):
            pass

    def occurs(self, table: str, values: pl.Series) -> NDArray[np.bool_]:
        """Which values were counted for a table, kept or not."""
        if self.kinds[table] == "text":
            counter = self._texts[table]
            codes = values.alias("v").to_frame().select(counter.codes(pl.col("v")))["v"]
            return counter.counted(codes.to_numpy())
        return self._integers[table].fit(1, None).lookup(values) > 1

    def fit(self, group_is_text: bool, has_scenarios: bool) -> Fitted:
        """Choose kept values and fit the transforms; call once, as the counters are let go.

        Raises:
            ValueError: a numeric feature has no value in the training split.
        """
        vocabularies: dict[str, Vocabulary] = {}
        for name, options in self._plan.tables.items():
            if name in self._texts:
                counter = self._texts.pop(name)  # all its texts: not needed any more
                fitted = counter.fit(options.min_count, options.max_values)
                vocabularies[name], self._codes[name] = fitted
            elif name in self._integers:
                integers = self._integers.pop(name)
                vocabularies[name] = integers.fit(options.min_count, options.max_values)
        scenarios: tuple[str, ...] = ()
        if has_scenarios:
            known, self._codes[""] = self._scenarios.fit(1, None)
            names = sort_scenarios(known.values.to_list())
            scenarios = (UNKNOWN_SCENARIO, *names)
            place = {name: index + 1 for index, name in enumerate(names)}
            index = np.array([0, 0, *(place[name] for name in known.values)], np.int32)
            self._codes[""] = index[self._codes[""]]
        for slot, count in self._present.items():
            if count == 0 and slot.startswith("numeric/"):
                raise ValueError(
                    f"numeric feature {slot.partition('/')[2]} has no value in the training split; "
                    "leave it out of the schema"
                )
        transforms = Transforms(
            kinds=self.kinds,
            member_kinds=self._plan.member_kinds,
            numbers={
                slot: fit_numeric(
                    self._plan.numbers[slot].transform,
                    self._plan.numbers[slot].fill,
                    moments,
                    self._medians.get(slot),
                )
                for slot, moments in self._moments.items()
            },
            bins={
                name: fit_quantiles(sample, self._plan.tables[name].bins)
                for name, sample in self._bins.items()
            },
            scenarios=scenarios,
            group_is_text=group_is_text,
        )
        return Fitted(transforms, vocabularies)

    def lookups(self, fitted: Fitted) -> dict[str, Lookup]:
        """Ids of coded cells, by table; the scenario's under the empty name."""
        return fitted.lookups() | {name: CodeTable(ids) for name, ids in self._codes.items()}

    def _coding(self, slots: tuple[Slot, ...]) -> list[pl.Expr]:
        return [
            self._texts[slot.table].codes(pl.col(slot.name))
            for slot in slots
            if slot.kind == "id" and slot.table in self._texts
        ]

    def _count_all(self, columns: list[tuple[Slot, pl.Series]]) -> None:
        for slot, values in columns:
            if slot.kind == "id":
                self._count_ids(slot.table, values)
            else:
                self._count_numbers(slot.name, values)

    def _count_ids(self, table: str, values: pl.Series) -> None:
        if table in self._texts:
            self._texts[table].count(values.to_numpy())
        elif table in self._integers:
            self._integers[table].count(values.drop_nulls().to_numpy())
        elif table in self._bins:
            self._bins[table].update(values.drop_nulls().to_numpy())

    def _count_numbers(self, slot: str, values: pl.Series) -> None:
        if slot not in self._present:
            return
        declared = self._plan.numbers[slot]
        self._present[slot] += len(values) - values.null_count()
        if declared.transform in ("standardise", "min_max") or isinstance(declared.fill, str):
            present = values.drop_nulls().to_numpy()
            self._moments[slot].update(present)
            if slot in self._medians:
                self._medians[slot].update(present)


def _columns(cells: Cells, part: Part) -> Iterator[tuple[Slot, pl.Series]]:
    for slot in part.slots:
        yield slot, cells.rows[slot.name]
    for group in part.groups:
        for slot in group.slots:
            name = f"sequence/{group.name}/{slot.name}"
            named = Slot(name, slot.column, slot.kind, slot.table, slot.level, slot.width)
            yield named, cells.events[group.name][slot.name]
