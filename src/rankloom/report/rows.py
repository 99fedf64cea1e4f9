"""One row of a leaderboard: a recipe over its seeds, from its records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from pydantic import Field

from rankloom.config import Config
from rankloom.evaluation.by_scenario import COUNTS, split_summary
from rankloom.report.seeds import Difference, Summary, summarise
from rankloom.runs.record import Record

HIGHER_IS_BETTER = {
    "auc": True,
    "gauc": True,
    "gauc_uniform": True,
    "log_loss": False,
    "normalised_entropy": False,
    "ece": False,
    "brier": False,
    "expected_calibration_error": False,
    "brier_score": False,
    "recall": True,
    "ndcg": True,
    "mrr": True,
    "recall_id": True,
    "invalid_rate": False,
}
"""Direction of the metrics that have one, in the order of the table's columns; a calibration ratio
has none, being best at 1. A metric at a rank, such as `recall@10`, has that of its kind."""


class Published(Config):
    """Published results of a model, to stand beside ours."""

    metrics: dict[str, float]
    """Published value of each metric."""
    source: str
    """Where they were published."""


class Row(Config):
    """One recipe over its seeds."""

    label: str
    """Name in the table, unique there."""
    name: str
    """Name of the recipe."""
    model: str
    """Name of the model."""
    recipe_hash: str
    """Hash of the recipe."""
    seeds: tuple[int, ...]
    """Seeds."""
    metrics: dict[str, Summary]
    """Each metric over the seeds."""
    differences: dict[str, Difference] = Field(default_factory=dict)
    """Each metric minus the reference's; empty in the reference's own row."""
    best: tuple[str, ...] = ()
    """Metrics in which this row is significantly better than the second best."""
    scenarios: dict[str, dict[str, Summary]] = Field(default_factory=dict)
    """Each scenario's metrics over the seeds."""
    scenario_differences: dict[str, dict[str, Difference]] = Field(default_factory=dict)
    """Each scenario's metrics minus the reference's; empty in the reference's own row."""
    over_scenarios: dict[str, Summary] = Field(default_factory=dict)
    """Means over scenarios and the worst of them (`auc_macro`, `auc_worst` ...) over the seeds."""
    over_scenarios_differences: dict[str, Difference] = Field(default_factory=dict)
    """The same minus the reference's; empty in the reference's own row."""
    dense_parameters: int | None = None
    """Parameters outside the embedding tables."""
    embedding_parameters: int | None = None
    """Parameters of the embedding tables."""
    flops_per_row: float | None = None
    """Floating-point operations of scoring one row."""
    training_rows_per_second: float | None = None
    """Median over the seeds."""
    inference_rows_per_second: float | None = None
    """Median over the seeds."""
    published: Published | None = None
    """Published results of the model."""

    @property
    def parameters(self) -> int | None:
        """All parameters; None when not measured."""
        if self.dense_parameters is None or self.embedding_parameters is None:
            return None
        return self.dense_parameters + self.embedding_parameters


def higher_is_better(metric: str) -> bool | None:
    """Direction of a metric (`auc`, `auc_macro`, `auc/click`, `recall@10`); None without one."""
    base, ending = split_summary(metric)
    return None if ending == "scenarios" else HIGHER_IS_BETTER.get(_kind(base)[0])


def rank(row: Row, metric: str) -> tuple[bool, float]:
    """Sort key that puts the best mean first and undefined means last."""
    mean = row.metrics[metric].mean
    if math.isnan(mean):
        return True, 0.0
    return False, mean if higher_is_better(metric) is False else -mean


def build_row(
    label: str,
    records: Sequence[Record],
    split: str,
    columns: Sequence[str],
    published: Mapping[str, Published],
) -> Row:
    """The row of one recipe.

    Args:
        label: its name in the table.
        records: its runs, one per seed.
        split: split of the metrics.
        columns: metrics of the row; one that a run lacks is NaN there.
        published: published results by recipe or model name.
    """
    first = records[0]
    per_seed = {record.seed: record.metrics[split] for record in records}
    training = [record.training.rows_per_second for record in records if record.training]
    found = published.get(first.name) or published.get(first.model)
    return Row(
        label=label,
        name=first.name,
        model=first.model,
        recipe_hash=first.recipe_hash,
        seeds=tuple(sorted(per_seed)),
        metrics={
            name: summarise(
                {seed: float(values.get(name, math.nan)) for seed, values in per_seed.items()}
            )
            for name in columns
        },
        scenarios=_scenarios(records, split),
        over_scenarios=_over_scenarios(per_seed),
        dense_parameters=_whole(_median_cost(records, "dense_parameters")),
        embedding_parameters=_whole(_median_cost(records, "embedding_parameters")),
        flops_per_row=_median_cost(records, "flops_per_row"),
        training_rows_per_second=_median(training),
        inference_rows_per_second=_median_cost(records, "inference_rows_per_second"),
        published=found,
    )


def _scenarios(records: Sequence[Record], split: str) -> dict[str, dict[str, Summary]]:
    collected: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        for scenario, values in record.scenarios.get(split, {}).items():
            for metric, value in values.items():
                if metric.partition("/")[0] not in COUNTS:
                    by_seed = collected.setdefault(scenario, {}).setdefault(metric, {})
                    by_seed[record.seed] = float(value)
    return {
        scenario: {metric: summarise(by_seed) for metric, by_seed in metrics.items()}
        for scenario, metrics in collected.items()
    }


def _over_scenarios(per_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Summary]:
    names = dict.fromkeys(name for values in per_seed.values() for name in values)
    return {
        name: summarise({seed: values.get(name, math.nan) for seed, values in per_seed.items()})
        for name in names
        if split_summary(name)[1]
    }


def _median(values: Sequence[float]) -> float | None:
    defined = [value for value in values if not math.isnan(value)]
    return median(defined) if defined else None


def _median_cost(records: Sequence[Record], key: str) -> float | None:
    return _median([record.cost[key] for record in records if key in record.cost])


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def labels_of(first: Mapping[str, Record]) -> dict[str, str]:
    """The shortest unique label of each recipe: model, model (recipe), model (recipe, hash)."""
    models = Counter(record.model for record in first.values())
    names = Counter((record.model, record.name) for record in first.values())
    labels = {}
    for key, record in first.items():
        if models[record.model] == 1:
            labels[key] = record.model
        elif names[record.model, record.name] == 1:
            labels[key] = f"{record.model} ({record.name})"
        else:
            labels[key] = f"{record.model} ({record.name}, {key[:6]})"
    return labels


def metric_columns(records: Sequence[Record], split: str) -> tuple[str, ...]:
    """All overall metrics of some runs, AUC first; the per-task ones when there are no others.

    Means over scenarios stand in the table of the scenarios. A recall of ids stands beside that of
    items, which tells how much of it comes from shared ids.
    """
    held = {name for record in records for name in record.metrics[split]}
    found = {name for name in held if not split_summary(name)[1]}
    known = list(HIGHER_IS_BETTER)

    def order(name: str) -> tuple[int, int, str]:
        kind, rank = _kind(name)
        kind = "recall" if kind == "recall_id" else kind
        return (known.index(kind) if kind in known else len(known)), rank, name

    overall = [name for name in found if "/" not in name]
    return tuple(sorted(overall or found, key=order))


def _kind(metric: str) -> tuple[str, int]:
    """A metric without its task and rank, and the rank: `recall@10` is recall, 10."""
    kind, _, rank = metric.partition("/")[0].partition("@")
    return kind, int(rank) if rank.isdecimal() else 0
