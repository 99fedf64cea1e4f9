"""From a model and a data split to figures: per task, per scenario, with row counts.

Two steps: `predict` runs the model over the rows, in order, and `evaluate` computes the metrics of
what it predicted. Rows whose label is missing count for no metric of that task. Row weights, when
the data set has them, enter every metric unless the config says otherwise.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.special import expit
from torch import Tensor, nn

from rankloom.allocator import keep_freed_memory
from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation import metrics as exact
from rankloom.evaluation.by_scenario import Best, over_scenarios, rows_by_scenario
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.significance import auc_interval
from rankloom.schema import Schema

Precision = Literal["float32", "bf16"]

BEST: dict[str, Best] = {
    "auc": "max",
    "log_loss": "min",
    "gauc": "max",
    "gauc_uniform": "max",
    "normalised_entropy": "min",
    "calibration_ratio": "one",
    "ece": "min",
    "brier": "min",
}
"""The metrics a config may name, and where each is best."""

GROUP_METRICS = ("gauc", "gauc_uniform")
"""Metrics that need a group column."""


class EvaluationConfig(Config):
    """Which figures an evaluation reports."""

    metrics: tuple[str, ...] = ("auc", "log_loss")
    """Any of auc, log_loss, gauc (weighted by rows), gauc_uniform, normalised_entropy,
    calibration_ratio, ece, brier."""
    calibration_bins: int = Field(10, gt=0)
    """Bins of equal mass for ece."""
    base_rate: float | None = Field(None, gt=0, lt=1)
    """Constant prediction that normalised_entropy divides by; None: the evaluated rows' mean
    label."""
    per_scenario: bool = True
    """Whether every scenario is reported, and means over them and the worst, when the data set has
    scenarios."""
    least_positives: int = Field(0, ge=0)
    """Scenarios with fewer positives of any task on the evaluated split are reported together, as
    `<pooled>`; 0 pools none."""
    weighted: bool = True
    """Whether row weights, when the data set has them, enter the metrics."""
    intervals: bool = False
    """Whether the AUC of each task comes with DeLong's 95% interval (three more sorts), over all
    rows and in every scenario."""
    switched_off: tuple[str, ...] = ()
    """Fields that the model is not given when rows are scored, such as the position of an
    impression (`rankloom.data.switch_off`). Whoever calls `predict` in Python does that himself."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in BEST]
        if unknown:
            raise ValueError(
                f"unknown metric {', '.join(unknown)}; known metrics: {', '.join(BEST)}"
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated or not names:
            raise ValueError(f"name each metric once, at least one; repeated: {repeated or 'none'}")
        return names


@dataclass(frozen=True)
class Predictions:
    """What a model said of some rows, beside what is known of them; rows in the loader's order."""

    logits: NDArray[np.float32]
    """[rows, tasks]."""
    labels: NDArray[np.float32] | None = None
    """[rows, tasks], 0 where missing; None when the rows have no labels."""
    label_mask: NDArray[np.bool_] | None = None
    """[rows, tasks], True where the label is known; None: all are."""
    weight: NDArray[np.float32] | None = None
    """[rows]."""
    scenario: NDArray[np.int32] | None = None
    """[rows], index into `Schema.scenarios`."""
    group: NDArray[np.int64] | None = None
    """[rows]."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.logits.shape[0]

    @property
    def probabilities(self) -> FloatArray:
        """[rows, tasks]: sigmoid of the logits, in float64."""
        return expit(self.logits.astype(np.float64))

    def select(self, rows: NDArray[np.generic]) -> Self:
        """The given rows (a mask, or indices)."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(
            self, **{name: value[rows] for name, value in parts.items() if value is not None}
        )


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split.

    With one task a metric has its own name; with several, `auc/click` is a task's and `auc` the
    mean over the tasks where it is defined. NaN: not defined on these rows. Where a GAUC is asked
    for, `gauc_coverage` is the share of the row weight in groups that hold both classes.
    """

    metrics: dict[str, float]
    """Figures over all rows; with scenarios also `auc_macro`, `auc_by_rows`, `auc_worst` and
    `auc_scenarios`, as `over_scenarios` defines them for each metric."""
    rows: int
    """Rows evaluated."""
    labelled: dict[str, int]
    """Task -> rows whose label is known."""
    positives: dict[str, int]
    """Task -> rows whose label is 1."""
    scenarios: dict[str, dict[str, float | int]] = field(default_factory=dict)
    """Scenario -> the same figures on its rows, with `rows` and `positives` (one task), or `rows`,
    `labelled/<task>` and `positives/<task>`; with intervals also `auc_low` and `auc_high`. Those
    with few positives stand together under `<pooled>`, with the number of `scenarios`. Scenarios
    without rows are left out."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """`auc` or `auc/<task>` -> DeLong's 95% interval over rows, unweighted; when asked for."""
    worst: dict[str, str] = field(default_factory=dict)
    """Metric (`auc`, or `auc/<task>`) -> the scenario where it is worst."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 autocast, or float32 whatever stands around it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def predict(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> Predictions:
    """Score every row of a loader, in its order.

    The model sees batches as serving does: without labels, weights and groups. It runs in
    evaluation mode and every module's mode is restored, on errors too.

    Args:
        model: a ranker, already on `device`.
        loader: batches; rows are kept in the order in which they come.
        precision: "bf16" runs the model under autocast; logits are float32 either way.
        device: where the batches are moved to.

    Raises:
        ValueError: the loader gives no batch, or the logits are not [batch, tasks].
    """
    place = torch.device(device)
    if place.type == "cpu":
        keep_freed_memory()
    parts: dict[str, list[Tensor]] = {part.name: [] for part in fields(Predictions)}
    with evaluation_mode(model), torch.inference_mode(), autocast(place, precision):
        for batch in loader:
            logits = model(batch.without_labels().to(place, non_blocking=True))
            if logits.ndim != 2 or logits.shape[0] != batch.size:
                raise ValueError(
                    f"a model must return logits [batch, tasks]; got {tuple(logits.shape)} "
                    f"for {batch.size} rows"
                )
            parts["logits"].append(logits.float())
            for name, collected in parts.items():
                value = None if name == "logits" else getattr(batch, name)
                if value is not None:
                    collected.append(value)
    if not parts["logits"]:
        raise ValueError("nothing to predict: the loader gave no batch")
    # One copy from the device at the end: nothing waits for it between batches.
    return Predictions(
        **{name: torch.cat(values).cpu().numpy() for name, values in parts.items() if values}
    )


def evaluate(
    predictions: Predictions, schema: Schema, config: EvaluationConfig | None = None
) -> Evaluation:
    """Compute the metrics of some predictions.

    Args:
        predictions: of any rows, with their labels.
        schema: of the data set; names tasks and scenarios.
        config: what to report; None: AUC and LogLoss, per scenario too.

    Raises:
        ValueError: the predictions have no labels, do not fit the schema, or hold NaN; or a metric
            needs a column that the data set does not have.
    """
    settings = config or EvaluationConfig()
    _check(predictions, schema, settings)
    total, labelled, positives = _figures(predictions, schema, settings)
    scenarios: dict[str, dict[str, float | int]] = {}
    worst: dict[str, str] = {}
    if settings.per_scenario and predictions.scenario is not None and schema.scenarios:
        scenarios, summaries, worst = _scenarios(predictions, schema, settings)
        total |= summaries
    intervals = _intervals(predictions, schema) if settings.intervals else {}
    return Evaluation(total, predictions.rows, labelled, positives, scenarios, intervals, worst)


def _intervals(predictions: Predictions, schema: Schema) -> dict[str, tuple[float, float]]:
    intervals = {}
    assert predictions.labels is not None
    for task, label in enumerate(schema.labels):
        known = _known_rows(predictions, task)
        interval = auc_interval(predictions.labels[known, task], predictions.logits[known, task])
        intervals[_key("auc", label.name, schema)] = (interval.low, interval.high)
    return intervals


def _figures(
    predictions: Predictions, schema: Schema, config: EvaluationConfig
) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Metrics, known labels per task, positives per task."""
    by_task: dict[str, dict[str, float]] = {}
    labelled, positives = {}, {}
    for task, label in enumerate(schema.labels):
        known = _known_rows(predictions, task)
        assert predictions.labels is not None
        y = predictions.labels[known, task]
        weight = predictions.weight if config.weighted else None
        by_task[label.name] = _task_metrics(
            y,
            predictions.logits[known, task],
            None if weight is None else weight[known],
            None if predictions.group is None else predictions.group[known],
            config,
        )
        labelled[label.name], positives[label.name] = len(y), int((y == 1).sum())
    if schema.num_tasks == 1:
        return by_task[schema.labels[0].name], labelled, positives
    merged = {}
    for metric in by_task[schema.labels[0].name]:
        values = np.array([by_task[label.name][metric] for label in schema.labels])
        defined = values[~np.isnan(values)]
        merged[metric] = float(defined.mean()) if len(defined) else float("nan")
        for label, value in zip(schema.labels, values, strict=True):
            merged[_key(metric, label.name, schema)] = float(value)
    return merged, labelled, positives


def _task_metrics(
    y: NDArray[np.float32],
    logits: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    group: NDArray[np.int64] | None,
    config: EvaluationConfig,
) -> dict[str, float]:
    probabilities = expit(logits.astype(np.float64))
    plain: dict[str, Callable[[], float]] = {
        "auc": lambda: exact.auc(y, logits, weight),
        "log_loss": lambda: exact.log_loss(y, logits, weight),
        "normalised_entropy": lambda: exact.normalised_entropy(y, logits, weight, config.base_rate),
        "calibration_ratio": lambda: exact.calibration_ratio(y, probabilities, weight),
        "ece": lambda: exact.expected_calibration_error(
            y, probabilities, weight, config.calibration_bins
        ),
        "brier": lambda: exact.brier_score(y, probabilities, weight),
    }
    grouped = None
    if group is not None and any(name in GROUP_METRICS for name in config.metrics):
        grouped = exact.grouped_auc(y, logits, group, weight)
    result: dict[str, float] = {}
    for name in config.metrics:
        if grouped is not None and name in GROUP_METRICS:
            result[name] = grouped.mean("rows" if name == "gauc" else "uniform")
            result["gauc_coverage"] = grouped.coverage
        else:
            result[name] = plain[name]()
    return result


def _scenarios(
    predictions: Predictions, schema: Schema, config: EvaluationConfig
) -> tuple[dict[str, dict[str, float | int]], dict[str, float], dict[str, str]]:
    """Figures and counts of every reported scenario, figures over them, and the worst ones."""
    assert predictions.labels is not None
    assert predictions.scenario is not None
    positive = predictions.labels == 1  # [rows, tasks]
    if predictions.label_mask is not None:
        positive &= predictions.label_mask
    figures, known, counts = {}, {}, {}
    for part in rows_by_scenario(
        predictions.scenario, schema.scenarios, positive, config.least_positives
    ):
        own = predictions.select(part.rows)
        figures[part.name], known[part.name], positives = _figures(own, schema, config)
        if config.intervals:
            for name, (low, high) in _intervals(own, schema).items():
                metric, slash, task = name.partition("/")
                figures[part.name][f"{metric}_low{slash}{task}"] = low
                figures[part.name][f"{metric}_high{slash}{task}"] = high
        counted = {"rows": own.rows} | ({"scenarios": part.pooled} if part.pooled else {})
        for task, number in positives.items():
            if schema.num_tasks > 1:
                counted[f"labelled/{task}"] = known[part.name][task]
            counted[_key("positives", task, schema)] = number
        counts[part.name] = counted
    summaries, worst = over_scenarios(figures, known, {name: BEST[name] for name in config.metrics})
    return {name: {**figures[name], **counts[name]} for name in figures}, summaries, worst


def _known_rows(predictions: Predictions, task: int) -> NDArray[np.bool_] | slice:
    return slice(None) if predictions.label_mask is None else predictions.label_mask[:, task]


def _key(metric: str, task: str, schema: Schema) -> str:
    return metric if schema.num_tasks == 1 else f"{metric}/{task}"


def _check(predictions: Predictions, schema: Schema, config: EvaluationConfig) -> None:
    shape = (predictions.rows, schema.num_tasks)
    if predictions.labels is None:
        raise ValueError("these rows have no labels; metrics need them")
    if predictions.logits.shape != shape or predictions.labels.shape != shape:
        raise ValueError(
            f"logits and labels must be [rows, {schema.num_tasks} tasks]; got "
            f"{predictions.logits.shape} and {predictions.labels.shape}"
        )
    broken = int(np.isnan(predictions.logits).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"the model's logits are NaN in {broken} of {predictions.rows} rows; its training has "
            "diverged (a smaller learning_rate or clip_norm may help)"
        )
    needs_group = [name for name in config.metrics if name in GROUP_METRICS]
    if needs_group and predictions.group is None:
        raise ValueError(
            f"{needs_group[0]} needs a group per row and the data set has none; "
            "give roles.group in its schema or leave the metric out"
        )
    scenario = predictions.scenario
    if scenario is not None and schema.scenarios and len(scenario):
        largest = int(scenario.max())
        if scenario.min() < 0 or largest >= schema.num_scenarios:
            raise ValueError(
                f"scenario indices must lie below {schema.num_scenarios}; got {largest}"
            )
