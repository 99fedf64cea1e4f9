"""Depths of a run: each alone, the oracle over them, noise in its place, and policies."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.catalog import ENTRIES
from rankloom.data.store import StoredSplit
from rankloom.evaluation.depth_cost import DepthCosts, measure_depth_costs
from rankloom.evaluation.depth_figures import DepthFigures, DepthPoint
from rankloom.evaluation.depth_fit import calibrate, fit_ensemble, fit_halting, mean_of_depths
from rankloom.evaluation.depth_policy import (
    ChangeExit,
    EntropyExit,
    HaltingExit,
    Policy,
    apply_policy,
)
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.oracle import oracle_scores
from rankloom.evaluation.oracle_figures import TaskOracle, measure_oracle
from rankloom.evaluation.protocol import EvaluationConfig, Predictions, evaluate
from rankloom.evaluation.significance import delong_test, holm
from rankloom.protocols import HasDepths
from rankloom.schema import Schema
from rankloom.training.run import Run, score

MOST_POINTS = 100
"""Most mean costs that exits are calibrated to."""
COST_ROWS = 512
"""Most rows that operations are counted on."""


class _AllDepths(nn.Module):
    """The logits of all depths side by side, so that `predict` collects them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, "batch depths_times_tasks"]:
        assert isinstance(self.model, HasDepths)
        logits = self.model.depth_logits(batch)  # [depths, batch, tasks]
        return logits.transpose(0, 1).flatten(1)


def measure_depths(
    run: Run,
    *,
    split: str = "test",
    fitted_on: str = "valid",
    points: int = 7,
    draws: int = 20,
    margin: float = 1e-3,
    seed: int = 0,
) -> DepthFigures:
    """Measure the depths of a run on one split, with policies fitted on another.

    Args:
        run: a run whose model has depths.
        split: split that is reported.
        fitted_on: split that policies are fitted on.
        points: mean costs that exits are calibrated to, evenly spaced between those of the
            shallowest and the deepest depth as policies pay them, both left out. Those above the
            deepest fixed depth are left out too where an exit has another.
        draws: draws of the noise.
        margin: improvement of a row's LogLoss, in nats, that the halting units count as help.
        seed: seed of the noise.

    Raises:
        FileNotFoundError: the data set is not where the recipe says.
        ValueError: the model has no depths or one only, the splits are unknown, empty, without
            labels or the same, points are not in 1..100, or draws below 1.
    """
    model = run.model
    if not isinstance(model, HasDepths):
        raise ValueError(
            f"{run.record.model} has no depths to compare; models that have: "
            f"{', '.join(_models_with_depths()) or 'none yet'}"
        )
    if model.num_depths < 2:
        raise ValueError(f"{run.folder} has one depth only: train with a loop at least")
    if not 1 <= points <= MOST_POINTS:
        raise ValueError(f"points must be 1 to {MOST_POINTS}; got {points}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    if split == fitted_on:
        raise ValueError(f"policies are fitted on {fitted_on}: report another split than that")
    fitting, reporting = (_predictions(run, _split(run, name)) for name in (fitted_on, split))
    costs = _costs(run, _split(run, split))
    schema = run.dataset.schema
    metrics = ("auc", "log_loss") if reporting.group is None else ("auc", "gauc", "log_loss")
    config = EvaluationConfig(metrics=metrics, per_scenario=False)
    by_depth = _by_depth(reporting, schema)
    figures = _Figures(reporting, by_depth, schema, config, costs)
    validation = [
        evaluate(replace(fitting, logits=logits), schema, config).metrics["auc"]
        for logits in _by_depth(fitting, schema)
    ]
    # Without both classes on these rows nothing is better than the shallowest.
    best = 0 if np.isnan(validation).all() else int(np.nanargmax(validation))
    fixed = [figures.fixed(depth) for depth in range(model.num_depths)]
    made = [
        *fixed,
        *(
            figures.policy(name, family, policy)
            for name, family, policy in _policies(fitting, schema, costs, points, margin)
        ),
    ]
    oracle = figures.oracle()
    return DepthFigures(
        run_id=run.record.run_id,
        model=run.record.model,
        seed=run.record.seed,
        dataset=run.record.dataset.name,
        data_hash=run.record.dataset.data_hash,
        split=split,
        fitted_on=fitted_on,
        rows=reporting.rows,
        reference=fixed[best][0].name,
        costs=costs,
        oracle=oracle,
        tasks=tuple(_oracles(reporting, by_depth, schema, draws, seed, best)),
        points=tuple(_against(made, best, oracle["auc"], reporting)),
        draws=draws,
    )


Made = tuple[DepthPoint, FloatArray]
"""A point, and what it predicts [rows, tasks]."""


class _Figures:
    """Makes points out of what is predicted on the reported rows."""

    def __init__(
        self,
        predictions: Predictions,
        by_depth: FloatArray,
        schema: Schema,
        config: EvaluationConfig,
        costs: DepthCosts,
    ) -> None:
        self.predictions = predictions
        self.by_depth = by_depth  # [depths, rows, tasks]
        self.schema = schema
        self.config = config
        self.costs = costs

    def metrics(self, logits: FloatArray) -> dict[str, float]:
        shown = replace(self.predictions, logits=logits.astype(np.float32))
        return evaluate(shown, self.schema, self.config).metrics

    def fixed(self, depth: int) -> Made:
        return self._point(
            f"depth {depth}", "fixed depth", self.by_depth[depth], self.costs.fixed[depth], depth
        )

    def policy(self, name: str, family: str, policy: Policy) -> Made:
        chosen, depth = apply_policy(policy, torch.from_numpy(self.by_depth))
        flops = float(np.asarray(self.costs.adaptive)[depth.numpy()].mean())
        point, logits = self._point(
            name, family, chosen.numpy(), flops, float(depth.double().mean())
        )
        return point.model_copy(update={"policy": policy}), logits

    def oracle(self) -> dict[str, float]:
        labels = self.predictions.labels
        assert labels is not None  # `evaluate` has seen them
        return self.metrics(oracle_scores(self.by_depth, labels))

    def _point(
        self, name: str, family: str, logits: FloatArray, flops: float, depth: float
    ) -> Made:
        nothing = dict.fromkeys(
            ("gap_captured", "auc_difference", "auc_low", "auc_high", "p_adjusted"), float("nan")
        )
        point = DepthPoint(
            name=name,
            family=family,
            flops_per_row=flops,
            mean_depth=depth,
            metrics=self.metrics(logits),
            **nothing,
        )
        return point, logits


def _policies(
    fitting: Predictions, schema: Schema, costs: DepthCosts, points: int, margin: float
) -> Iterator[tuple[str, str, Policy]]:
    """Name, family and policy, fitted."""
    by_depth = _by_depth(fitting, schema)
    num_depths = len(by_depth)
    targets = np.linspace(costs.adaptive[0], costs.adaptive[-1], points + 2)[1:-1]
    exits: list[ChangeExit | EntropyExit | HaltingExit] = [
        ChangeExit(threshold=0),
        EntropyExit(threshold=0),
        HaltingExit(threshold=0, units=fit_halting(by_depth, fitting, margin=margin)),
    ]
    whole = costs.fixed[-1]
    shares = _shares(targets / whole)
    for policy in exits:
        found: dict[float, tuple[str, bool, Policy]] = {}  # by threshold
        for target, share in zip(targets, shares, strict=True):
            fitted = calibrate(policy, by_depth, costs.adaptive, float(target))
            if fitted is not None and fitted.threshold not in found:
                found[fitted.threshold] = share, bool(target <= whole), fitted
        # Reading the logits on the way may cost more than the deepest depth alone.
        worth = any(cheap for _, cheap, _ in found.values())
        for share, cheap, calibrated in found.values():
            if cheap or not worth:
                yield f"{policy.kind} {share}", f"{policy.kind} exit", calibrated
    for count in range(2, num_depths + 1):
        yield f"mean of {count}", "mean of logits", mean_of_depths(count)
        yield f"weighted {count}", "learned weights", fit_ensemble(by_depth[:count], fitting)


def _shares(values: FloatArray) -> list[str]:
    """Different values as percent, with a decimal or as many as tell them apart."""
    for decimals in range(1, 16):
        texts = [f"{value:.{decimals}%}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _against(
    made: list[Made], best: int, oracle_auc: float, predictions: Predictions
) -> Iterator[DepthPoint]:
    """The points with what they are beside the reference."""
    labels, reference = predictions.labels, made[best]
    assert labels is not None
    plain = labels.shape[1] == 1 and predictions.weight is None
    known = slice(None) if predictions.label_mask is None else predictions.label_mask[:, 0]
    base = reference[0].metrics["auc"]
    gap = oracle_auc - base
    tests = []
    for point, logits in made:
        tested = plain and point.name != reference[0].name
        scores = (logits[known, 0], reference[1][known, 0])
        tests.append(delong_test(labels[known, 0], *scores) if tested else None)
    adjusted = holm([float("nan") if test is None else test.p_value for test in tests])
    for (point, _), test, p in zip(made, tests, adjusted, strict=True):
        difference = point.metrics["auc"] - base
        values = {
            "gap_captured": difference / gap if gap > 0 else float("nan"),
            "auc_difference": difference,
            "p_adjusted": float(p),
        }
        if test is not None:
            values |= {"auc_low": test.low, "auc_high": test.high}
        yield point.model_copy(update=values)


def _oracles(
    predictions: Predictions,
    by_depth: FloatArray,
    schema: Schema,
    draws: int,
    seed: int,
    reference: int,
) -> Iterator[TaskOracle]:
    assert predictions.labels is not None
    mask, weight = predictions.label_mask, predictions.weight
    for task, label in enumerate(schema.labels):
        known = np.ones(predictions.rows, np.bool_) if mask is None else mask[:, task]
        yield measure_oracle(
            label.name,
            by_depth[:, known, task],
            predictions.labels[known, task],
            None if weight is None else weight[known],
            draws=draws,
            seed=seed,
            reference=reference,
        )


def _split(run: Run, name: str) -> StoredSplit:
    if name not in run.dataset.splits:
        known = ", ".join(run.dataset.splits)
        raise ValueError(f"no split {name!r} in {run.dataset.folder}; known: {known}")
    stored = run.dataset.split(name)
    if not stored.rows:
        raise ValueError(f"the {name} split of {run.dataset.folder} has no rows")
    return stored


def _predictions(run: Run, split: StoredSplit) -> Predictions:
    """Logits [rows, depths * tasks], with what is known of the rows."""
    found = score(_AllDepths(run.model), split, run.recipe, run.device)
    if found.labels is None:
        raise ValueError(f"the {split.name} split has no labels to measure depths on")
    return found


def _by_depth(predictions: Predictions, schema: Schema) -> FloatArray:
    """[depths, rows, tasks], float64."""
    flat = predictions.logits.astype(np.float64)
    split = flat.reshape(len(flat), -1, schema.num_tasks)
    return np.ascontiguousarray(split.transpose(1, 0, 2))


def _costs(run: Run, split: StoredSplit) -> DepthCosts:
    """Counted on rows spread over the split."""
    count = min(COST_ROWS, split.rows)
    batch = split.gather_ascending(torch.arange(count) * split.rows // count).to(run.device)
    return measure_depth_costs(run.model, batch, precision=run.recipe.training.precision)


def _models_with_depths() -> list[str]:
    return [entry.name for entry in ENTRIES if hasattr(entry.build, "depth_logits")]
