"""Figures over scenarios: which of them stand on their own, their means and the worst of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Best = Literal["max", "min", "one"]
"""Where a metric is best: as large as can be, as small as can be, or at one."""

POOLED = "<pooled>"
"""Name under which the scenarios with few positives are reported together."""
COUNTS = ("rows", "labelled", "positives", "scenarios")
"""What stands beside the metrics of a scenario and is no metric."""
SUMMARIES = ("macro", "by_rows", "worst", "scenarios")
"""Endings of the figures over scenarios: `auc_macro`, `auc_by_rows`, `auc_worst`, and
`auc_scenarios`, the number of reported scenarios where the AUC is defined."""


@dataclass(frozen=True)
class ReportedScenario:
    """The rows of one scenario, or of the pooled tail."""

    name: str
    """Its name; `POOLED` for the tail."""
    rows: NDArray[np.int64]
    """Indices of its rows, ascending."""
    pooled: int = 0
    """Scenarios in the tail; 0 for a scenario of its own."""


def rows_by_scenario(
    scenario: NDArray[np.int32],
    names: Sequence[str],
    positive: NDArray[np.bool_],
    least_positives: int = 0,
) -> list[ReportedScenario]:
    """Rows of every scenario that has some, in the order of their indices; the tail stands last.

    A scenario stands on its own when every task has `least_positives` positives there: of a click
    and a conversion the rare one decides, because the table of a scenario shows both.

    Args:
        scenario: [rows], index into `names`.
        names: names of the scenarios.
        positive: [rows, tasks], True where the label is known and 1.
        least_positives: scenarios with fewer positives are pooled; 0 pools none.

    Raises:
        ValueError: a scenario has the name of the tail.
    """
    if least_positives and POOLED in names:
        raise ValueError(
            f"a scenario is called {POOLED}, which names the tail that least_positives pools; "
            "rename the scenario in the data or leave least_positives at 0"
        )
    positives = [np.bincount(scenario[task], minlength=len(names)) for task in positive.T]
    few = np.any(np.stack(positives) < least_positives, axis=0).tolist()  # [scenarios]
    order = np.argsort(scenario, kind="stable")
    parts = np.split(order, np.searchsorted(scenario[order], np.arange(1, len(names))))
    kept = [
        ReportedScenario(name, rows)
        for name, rows, pooled in zip(names, parts, few, strict=True)
        if len(rows) and not pooled
    ]
    tail = [rows for rows, pooled in zip(parts, few, strict=True) if len(rows) and pooled]
    if tail:
        kept.append(ReportedScenario(POOLED, np.sort(np.concatenate(tail)), len(tail)))
    return kept


def over_scenarios(
    figures: Mapping[str, Mapping[str, float]],
    labelled: Mapping[str, Mapping[str, int]],
    best: Mapping[str, Best],
) -> tuple[dict[str, float], dict[str, str]]:
    """Means over the reported scenarios, and the worst of them; the tail counts as one.

    Scenarios where a metric is undefined are left out. Metrics that are best at one have no mean:
    0.5 and 1.5 would make 1. With several tasks each figure is a task's own (`auc_macro/click`),
    and the one without a task is the mean over the tasks where it is defined, as for every metric
    (the count `auc_scenarios` is given by task only).

    Args:
        figures: scenario -> its metrics (`auc`, or `auc/click` with several tasks).
        labelled: scenario -> task -> rows whose label is known, the weights of `by_rows`.
        best: the metrics, and where each is best.

    Returns:
        `<metric>_macro`, `_by_rows`, `_worst` and `_scenarios` of each metric; and the name of the
        worst scenario by metric (`auc` or `auc/click`), where there is one.
    """
    tasks = list(next(iter(labelled.values()))) if labelled else []
    summaries: dict[str, float] = {}
    names: dict[str, str] = {}
    for metric, where in best.items():
        by_task: list[dict[str, float]] = []
        for task in tasks:
            suffix = f"/{task}" if len(tasks) > 1 else ""
            values = {name: float(own[metric + suffix]) for name, own in figures.items()}
            defined = {name: value for name, value in values.items() if not math.isnan(value)}
            weights = [labelled[name][task] for name in defined]
            by_task.append(_summaries(defined, weights, where))
            if defined:
                names[metric + suffix] = worst_of(defined, where)
            if suffix:
                summaries |= {f"{metric}_{k}{suffix}": value for k, value in by_task[-1].items()}
        for ending in by_task[0] if by_task else ():
            if ending == "scenarios" and len(tasks) > 1:
                continue  # a mean of counts says nothing
            found = [own[ending] for own in by_task if not math.isnan(own[ending])]
            summaries[f"{metric}_{ending}"] = sum(found) / len(found) if found else math.nan
    return summaries, names


def worst_of(values: Mapping[str, float], best: Best) -> str:
    """Name of the worst of some defined values; of equal ones the first.

    A metric that is best at one is worst where it is farthest from it as a ratio: half is as bad as
    double.
    """
    badness: dict[Best, Callable[[float], float]] = {
        "max": lambda value: -value,
        "min": lambda value: value,
        "one": lambda value: abs(math.log(value)) if value > 0 else math.inf,
    }
    return max(values, key=lambda name: badness[best](values[name]))


def split_summary(metric: str) -> tuple[str, str]:
    """Metric and ending of a figure over scenarios: `auc_macro/click` is `auc/click`, `macro`.

    The ending is empty for every other metric.
    """
    name, slash, task = metric.partition("/")
    for ending in SUMMARIES:
        if name.endswith(f"_{ending}"):
            return name.removesuffix(f"_{ending}") + slash + task, ending
    return metric, ""


def _summaries(values: Mapping[str, float], weights: Sequence[int], best: Best) -> dict[str, float]:
    own = np.array(list(values.values()))
    found: dict[str, float] = {}
    if best != "one":
        found["macro"] = float(own.mean()) if values else math.nan
        found["by_rows"] = float(np.average(own, weights=weights)) if values else math.nan
    found["worst"] = values[worst_of(values, best)] if values else math.nan
    return {**found, "scenarios": float(len(values))}
