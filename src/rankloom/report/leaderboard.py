"""Leaderboards: recipes compared over seeds on the same data, from run records only.

Runs of the same recipe (by hash) on the same data (by hash) are one row. Rows are compared with
a reference by a paired t-test over common seeds, and a best value is marked only when it is
significantly better than the second best.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from rankloom.config import Config
from rankloom.evaluation.by_scenario import POOLED
from rankloom.evaluation.significance import holm
from rankloom.report.rows import (
    Published,
    Row,
    build_row,
    higher_is_better,
    labels_of,
    metric_columns,
    rank,
)
from rankloom.report.scenario_figures import (
    compare_scenarios,
    same_scenarios,
    scenario_counts,
    scenario_metrics,
    scenario_notes,
    without_tail,
)
from rankloom.report.seeds import Difference, paired_difference
from rankloom.runs.record import DatasetFacts, Record

FORMAT_VERSION = 1
"""Version of leaderboard.json."""
SIGNIFICANCE = 0.05
"""A difference counts when its p-value is below this."""


class Table(Config):
    """All recipes on one data set."""

    dataset: DatasetFacts
    """The data set."""
    split: str
    """Split that the metrics are of."""
    metrics: tuple[str, ...]
    """Metric columns; rows are ordered by the first."""
    rows: tuple[Row, ...]
    """Rows, best first."""
    reference: str | None = None
    """Label of the row that the others are compared with."""
    scenario_rows: dict[str, int] = Field(default_factory=dict)
    """Rows of each scenario, in the order of the records."""
    scenario_counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    """`positives` of each scenario (or `positives/<task>`, `labelled/<task>`), and the number of
    `scenarios` in a pooled tail."""
    notes: tuple[str, ...] = ()
    """The rules of the table, and what a reader must know about it."""
    scenario_notes: tuple[str, ...] = ()
    """The same of the scenarios."""


class Leaderboard(Config):
    """One table per data set."""

    format_version: int = FORMAT_VERSION
    """Version of this layout."""
    tables: tuple[Table, ...]
    """Tables, ordered by the data set's name."""
    warnings: tuple[str, ...] = ()
    """Runs that were left out, and why tables are apart."""


def build_leaderboard(
    records: Iterable[Record],
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    reference: str | None = None,
    published: Mapping[str, Published] | None = None,
) -> Leaderboard:
    """Compare the recipes of some runs.

    Args:
        records: run records in any order; the result does not depend on it.
        split: split whose metrics are compared.
        metrics: metric columns, the first of which orders the rows; None: all but the per-task
            ones, or these when there are no others.
        reference: label, recipe name, model name or recipe hash of the row to compare with.
        published: published results by model or recipe name.

    Raises:
        ValueError: no completed run has metrics of the split, or the reference fits no row or
            several.
    """
    ordered = sorted(records, key=_record_order)
    usable, warnings = _usable(ordered, split)
    if not usable:
        raise ValueError(
            f"no completed run has {split} metrics; got {len(ordered)} records. "
            f"Train a recipe first, or choose another split"
        )
    by_data: dict[str, list[Record]] = {}
    for record in usable:
        by_data.setdefault(record.dataset.data_hash, []).append(record)
    names = Counter(group[0].dataset.name for group in by_data.values())
    warnings += [
        f"{count} different data sets are called {name}: their runs stand in tables of their own, "
        f"because results on different rows cannot be compared"
        for name, count in sorted(names.items())
        if count > 1
    ]
    tables = [
        _build_table(group, split, metrics, reference, published or {})
        for group in sorted(by_data.values(), key=lambda group: _record_order(group[0]))
    ]
    if reference is not None and all(table.reference is None for table in tables):
        known = sorted({row.label for table in tables for row in table.rows})
        raise ValueError(f"no row is called {reference!r}; rows: {', '.join(known)}")
    return Leaderboard(tables=tuple(tables), warnings=tuple(warnings))


def _record_order(record: Record) -> tuple[str, str, str, str, int]:
    dataset = record.dataset
    return dataset.name, dataset.data_hash, record.name, record.recipe_hash, record.seed


def _usable(records: Sequence[Record], split: str) -> tuple[list[Record], list[str]]:
    """The latest completed run of each data set, recipe and seed; and what was left out."""
    failed = [record for record in records if record.status != "completed"]
    completed = [record for record in records if record.status == "completed"]
    without = [record for record in completed if not record.metrics.get(split)]
    latest: dict[tuple[str, str, int], Record] = {}
    repeated = 0
    for record in completed:
        if not record.metrics.get(split):
            continue
        key = (record.dataset.data_hash, record.recipe_hash, record.seed)
        repeated += key in latest
        if key not in latest or record.finished > latest[key].finished:
            latest[key] = record
    warnings = []
    if failed:
        runs = ", ".join(sorted(record.run_id for record in failed))
        warnings.append(f"failed runs are left out: {runs}")
    if without:
        runs = ", ".join(sorted(record.run_id for record in without))
        warnings.append(f"runs without {split} metrics are left out: {runs}")
    if repeated:
        warnings.append(
            f"{repeated} earlier runs of the same recipe, data and seed are left out; "
            f"the latest one counts"
        )
    return list(latest.values()), warnings


def _build_table(
    records: Sequence[Record],
    split: str,
    metrics: Sequence[str] | None,
    reference: str | None,
    published: Mapping[str, Published],
) -> Table:
    columns = tuple(metrics) if metrics else metric_columns(records, split)
    recorded = {name for record in records for name in record.metrics[split]}
    unknown = [name for name in columns if name not in recorded]
    if unknown:
        raise ValueError(
            f"no run has {', '.join(unknown)} of {split}; recorded: {', '.join(sorted(recorded))}"
        )
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.recipe_hash, []).append(record)
    labels = labels_of({key: group[0] for key, group in groups.items()})
    rows = [
        build_row(labels[key], group, split, columns, published) for key, group in groups.items()
    ]
    rows.sort(key=lambda row: (*rank(row, columns[0]), row.label))
    comparable = same_scenarios(records, split)
    counts = scenario_counts(records, split)
    if not comparable:
        counts.pop(POOLED, None)
        rows = [without_tail(row) for row in rows]
    measured = scenario_metrics(rows, columns, records[0].dataset.labels)
    chosen = _find_reference(rows, reference)
    if chosen is not None:
        rows = _compare(rows, chosen, columns)
        rows = compare_scenarios(rows, chosen, measured)
    rows = _mark_best(rows, columns)
    return Table(
        dataset=records[0].dataset,
        split=split,
        metrics=columns,
        rows=tuple(rows),
        reference=chosen.label if chosen else None,
        scenario_rows={name: own["rows"] for name, own in counts.items()},
        scenario_counts={
            name: {key: value for key, value in own.items() if key != "rows"}
            for name, own in counts.items()
        },
        notes=tuple(_notes(rows, records, chosen, reference)),
        scenario_notes=tuple(scenario_notes(rows, measured, counts, chosen, comparable)),
    )


def _find_reference(rows: Sequence[Row], reference: str | None) -> Row | None:
    if reference is None:
        return None
    for attribute in ("label", "name", "model", "recipe_hash"):
        fitting = [row for row in rows if getattr(row, attribute) == reference]
        if len(fitting) > 1:
            labels = ", ".join(row.label for row in fitting)
            raise ValueError(f"reference {reference!r} fits several rows: {labels}; name one")
        if fitting:
            return fitting[0]
    return None


def _compare(rows: Sequence[Row], reference: Row, columns: Sequence[str]) -> list[Row]:
    """The rows with their differences to the reference, p-values adjusted over the rows."""
    others = [row for row in rows if row is not reference]
    found: dict[str, dict[str, Difference]] = {row.label: {} for row in others}
    for metric in columns:
        theirs = reference.metrics[metric].values
        pairs = [paired_difference(row.metrics[metric].values, theirs) for row in others]
        adjusted = holm([pair.p_value for pair in pairs])
        for row, pair, p_adjusted in zip(others, pairs, adjusted, strict=True):
            found[row.label][metric] = pair.model_copy(update={"p_adjusted": float(p_adjusted)})
    return [row.model_copy(update={"differences": found.get(row.label, {})}) for row in rows]


def _mark_best(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    best: dict[str, list[str]] = {}
    for metric in columns:
        if higher_is_better(metric) is None or len(rows) < 2:
            continue
        first, second = sorted(rows, key=lambda row: (*rank(row, metric), row.label))[:2]
        ours, theirs = first.metrics[metric], second.metrics[metric]
        # A seed without a value is a run that went wrong: no claim is built on the others.
        if ours.complete and theirs.complete:
            difference = paired_difference(ours.values, theirs.values)
            # The better mean may come from other seeds than those that both rows have.
            right_way = (difference.mean > 0) is higher_is_better(metric)
            if right_way and difference.p_value < SIGNIFICANCE:
                best.setdefault(first.label, []).append(metric)
    return [row.model_copy(update={"best": tuple(best.get(row.label, ()))}) for row in rows]


def _notes(
    rows: Sequence[Row], records: Sequence[Record], chosen: Row | None, reference: str | None
) -> list[str]:
    notes = [
        f"Mean and sample standard deviation over seeds. A best value is marked only when it is "
        f"significantly better than the second best (paired t-test over common seeds, "
        f"p < {SIGNIFICANCE}); with fewer than two common seeds nothing is marked."
    ]
    if chosen is not None:
        notes.append(
            f"Differences are to {chosen.label} over common seeds, with the p-value of a paired "
            f"t-test, Holm-adjusted over the rows of the table."
        )
    elif reference is not None:
        notes.append(f"The reference {reference} has no run on this data set.")
    if any(not row.metrics[name].complete for row in rows for name in row.metrics):
        notes.append(
            "A mean with a count stands on that many seeds only: the metric is undefined in the "
            "others, and the row is never marked best in it."
        )
    if len({row.seeds for row in rows}) > 1:
        notes.append("The rows do not all have the same seeds.")
    if len({record.commit.id or record.commit.source_hash for record in records}) > 1:
        notes.append("The runs come from more than one version of the source.")
    machines = {(record.machine.cpu, record.machine.gpu) for record in records}
    threads = {record.machine.threads for record in records}
    if len(machines) > 1 or len(threads) > 1:
        notes.append("Speeds come from different machines or thread counts: do not compare them.")
    if any(row.published for row in rows):
        notes.append("Published values are quoted and come from other code, machines and seeds.")
    return notes
