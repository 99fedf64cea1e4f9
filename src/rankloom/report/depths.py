"""Tables of a run's depths, for the terminal and its page."""

import math

from rankloom.evaluation.depth_figures import DepthFigures, DepthPoint
from rankloom.evaluation.oracle_figures import OracleCount, TaskOracle
from rankloom.report.inspection import signed
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.texts import MISSING, count, number, p_text

SHOWN = ("auc", "gauc", "log_loss")
"""Metrics of tables and charts; depths.json has those of single tasks too."""
NOISE_TEXT = {
    "joint": "rows of nearly equal score exchange all their differences",
    "independent": "the same, depth by depth",
    "anywhere": "all rows exchange differences, depth by depth",
}
"""What each noise does, in words."""


def depth_tables(figures: DepthFigures) -> list[InspectionTable]:
    """Every table, in the order in which they are shown."""
    fixed = [point for point in figures.points if point.policy is None]
    policies = [point for point in figures.points if point.policy is not None]
    return [
        _fixed_table(figures, fixed),
        *(oracle_table(figures, task) for task in figures.tasks),
        _policy_table(figures, policies),
    ]


def oracle_table(figures: DepthFigures, task: TaskOracle) -> InspectionTable:
    """Oracles of a task over k depths, with noise in their place."""
    rows = tuple(
        (
            str(one.count),
            number(one.mean),
            number(one.first),
            signed(round(one.first - one.noise[0].mean, 5) + 0.0),  # no minus before a zero
            f"{number(one.noise[0].low, 4)} to {number(one.noise[0].high, 4)}",
            *(number(band.mean) for band in one.noise),
        )
        for one in task.counts
    )
    names = [band.noise for band in task.counts[0].noise]
    return InspectionTable(
        title=oracle_title(figures, task),
        columns=("k", "any k", "first k", "beyond", "noise, 95%", *names),
        rows=rows,
        notes=(
            f"AUC on {task.rows:,} rows, {task.positives:,} positive, of one who knows the label "
            "and takes the best of k depths: the first k; any k, the mean over subsets.",
            "Noise: as many copies of the shallowest depth, made as different as the depths are. "
            f"{'; '.join(f'{name}: {NOISE_TEXT[name]}' for name in names)}. Means over "
            f"{figures.draws} draws, and the interval of {names[0]}. Beyond: first k less "
            f"{names[0]}; above zero, deeper depths know more than the shallowest.",
            *_headroom_notes(figures, task),
        ),
    )


def _headroom_notes(figures: DepthFigures, task: TaskOracle) -> tuple[str, ...]:
    """What a choice by row could gain over the best depth; nothing in files without it."""
    around = task.around_reference
    if around is None:
        return ()
    band, last = around.noise, task.counts[-1]
    return (
        f"Headroom beyond choice above depth {around.depth}, the best on {figures.fitted_on}: "
        f"{signed(round(around.headroom, 5) + 0.0)}. That is all {last.count} depths, "
        f"{number(last.first)}, less {band.noise} noise around depth {around.depth}, "
        f"{number(band.mean)} (95% {number(band.low, 4)} to {number(band.high, 4)}).",
    )


def oracle_title(figures: DepthFigures, task: TaskOracle) -> str:
    """Heading; it names the task where there are several."""
    several = len(figures.tasks) > 1
    return f"Oracle over depths{f', {task.task}' if several else ''}"


def shown_metrics(figures: DepthFigures) -> list[str]:
    """Metrics that tables and charts have; the means over tasks where there are several."""
    return [name for name in SHOWN if name in figures.oracle]


def noise_mean(one: OracleCount, noise: str) -> float:
    """Mean oracle AUC over the copies of one noise."""
    return next(band.mean for band in one.noise if band.noise == noise)


def _fixed_table(figures: DepthFigures, points: list[DepthPoint]) -> InspectionTable:
    metrics = shown_metrics(figures)
    oracle = ("oracle", *(number(figures.oracle[name]) for name in metrics), "-", "-", "-")
    counted = (
        "Operations of a fixed depth do not count the logits of depths before it."
        if figures.costs.stepped
        else "Operations count the logits of all depths up to it; this model cannot be stepped."
    )
    return InspectionTable(
        title=f"Depths, {figures.split} split",
        columns=("predict with", *metrics, "FLOPs", "Δ auc", "p"),
        rows=(*(_point_cells(point, metrics) for point in points), oracle),
        notes=(
            f"Δ auc: less {figures.reference}, the best depth on {figures.fitted_on}. p: DeLong's "
            "test, Holm's correction over all depths and policies.",
            f"The oracle knows the label: no policy can be expected to reach it. {counted}",
        ),
    )


def _policy_table(figures: DepthFigures, points: list[DepthPoint]) -> InspectionTable:
    metrics = shown_metrics(figures)
    rows = tuple(
        (
            point.name,
            *(number(point.metrics[name]) for name in metrics),
            count(point.flops_per_row),
            number(point.mean_depth, 2),
            signed(point.auc_difference),
            p_text(point.p_adjusted),
            _share(point.gap_captured),
        )
        for point in points
    )
    return InspectionTable(
        title=f"Policies, fitted on {figures.fitted_on}",
        columns=("policy", *metrics, "FLOPs", "depth", "Δ auc", "p", "gap"),
        rows=rows,
        notes=(
            f"FLOPs (per row) and depth: means over the rows of {figures.split}, unweighted. "
            "Percent: of the deepest depth's FLOPs in the table of depths, what an exit was "
            f"calibrated to on {figures.fitted_on}.",
            "Gap: Δ auc as a share of what the oracle over all depths is above "
            f"{figures.reference}; most of that may be choice (notes of the oracle's table).",
            "p takes rows as independent: where they come in groups of one user, it is only a "
            "guide.",
        ),
    )


def _point_cells(point: DepthPoint, metrics: list[str]) -> tuple[str, ...]:
    values = (number(point.metrics[name]) for name in metrics)
    cost = count(point.flops_per_row)
    return (point.name, *values, cost, signed(point.auc_difference), p_text(point.p_adjusted))


def _share(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:+.1%}"
