"""Fit depth policies on validation rows: thresholds, halting units, weights of an ensemble."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rankloom.evaluation.depth_policy import Ensemble, Exit, HaltingUnit, halting_features
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.protocol import Predictions

ExitT = TypeVar("ExitT", bound=Exit)


def exit_signals(policy: Exit, logits: FloatArray) -> FloatArray:
    """Signals of every depth but the last, where every row stops anyway.

    Args:
        policy: any exit; its threshold does not matter.
        logits: [depths, rows, tasks].

    Returns:
        [depths - 1, rows].
    """
    tensor = torch.from_numpy(logits)
    signals = [policy.signal(tensor[:count]) for count in range(1, len(logits))]
    return np.stack([signal.numpy() for signal in signals])


def calibrate(
    policy: ExitT, logits: FloatArray, costs: Sequence[float], target: float
) -> ExitT | None:
    """The policy with the smallest threshold whose mean cost on these rows is at most the target.

    A row goes past depth l when the least of its signals up to l is not below the threshold, so the
    mean cost falls by (costs[l+1] - costs[l]) / rows as the threshold passes that least signal: the
    threshold is a weighted quantile, found exactly.

    Args:
        policy: any exit; its threshold does not matter.
        logits: [depths, rows, tasks] of validation rows, at least one.
        costs: cost per row of stopping at each depth, rising.
        target: mean cost per row, in the same unit.

    Returns:
        The policy; None where it cannot be so cheap.

    Raises:
        ValueError: costs do not rise, or are not one per depth; or there are no rows.
    """
    depths, rows = logits.shape[:2]
    steps = np.diff(np.asarray(costs, np.float64))
    if len(costs) != depths or not (steps > 0).all():
        raise ValueError(f"costs must rise, one for each of {depths} depths; got {list(costs)}")
    if not rows:
        raise ValueError("a threshold needs rows to be calibrated on; got none")
    least = np.minimum.accumulate(exit_signals(policy, logits), 0).ravel()
    order = np.argsort(least, kind="stable")
    saved = np.repeat(steps / rows, rows)[order].cumsum()
    # Rounding of the sums must not make the cheapest target unreachable.
    needed = costs[-1] - target - 1e-9 * costs[-1]
    if needed <= 0:
        return policy.model_copy(update={"threshold": 0.0})
    place = int(np.searchsorted(saved, needed))
    if place == len(saved) or not np.isfinite(least[order[place]]):
        return None
    passed = float(np.nextafter(least[order[place]], np.inf))
    return policy.model_copy(update={"threshold": passed})


def fit_halting(
    logits: FloatArray, predictions: Predictions, *, margin: float = 1e-3, inverse_l2: float = 1.0
) -> tuple[HaltingUnit, ...]:
    """A logistic regression for every depth but the last: will the next depth help this row?

    The target is 1 where the next depth's LogLoss, the mean over the row's known tasks, lies more
    than `margin` below this depth's. Features are standardised for the fit. Where all rows have one
    answer, the unit gives its smoothed rate. Rows of weight 0 count as unknown.

    Args:
        logits: [depths, rows, tasks] of validation rows.
        predictions: labels, their mask and weights of the same rows.
        margin: improvement in nats that going on is worth.
        inverse_l2: scikit-learn's C.

    Raises:
        ValueError: the rows have no labels, or none is known and counts.
    """
    losses = row_losses(logits, predictions)  # [depths, rows]
    known = ~np.isnan(losses[0])
    if not known.any():
        raise ValueError("halting units need rows of weight whose label is known; got none")
    weight = None if predictions.weight is None else predictions.weight[known]
    tensor = torch.from_numpy(logits)[:, torch.from_numpy(known)]
    units = []
    for depth in range(len(logits) - 1):
        helps = losses[depth + 1, known] < losses[depth, known] - margin
        features = halting_features(tensor[: depth + 1])
        units.append(_fit_unit(features, helps, weight, inverse_l2))
    return tuple(units)


def fit_ensemble(logits: FloatArray, predictions: Predictions) -> Ensemble:
    """Weights of the depths, not negative, with the least LogLoss on these rows.

    The loss is convex in the weights. Where the best weights are all zero (logits that are worse
    than none), the plain mean is returned. Rows of weight 0 count as unknown.

    Args:
        logits: [depths, rows, tasks] of validation rows.
        predictions: labels, their mask and weights of the same rows.

    Raises:
        ValueError: the rows have no labels, or none is known and counts.
    """
    labels, known = _known(predictions)
    if not known.any():
        raise ValueError("an ensemble needs rows of weight whose label is known; got none")
    z = logits[:, known].astype(np.float64)  # [depths, known labels]
    signs = np.where(labels[known] == 1, 1.0, -1.0)
    share = np.ones(known.shape)
    if predictions.weight is not None:
        share = share * predictions.weight[:, None]
    mass = share[known] / share[known].sum()

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        margins = signs * (weights @ z)
        value = float(mass @ np.logaddexp(0.0, -margins))
        return value, -z @ (mass * signs * expit(-margins))

    count = len(z)
    found = minimize(
        loss, np.full(count, 1 / count), jac=True, method="L-BFGS-B", bounds=[(0, None)] * count
    )
    weights = np.maximum(found.x, 0.0)
    return Ensemble(weights=tuple(weights.tolist())) if weights.any() else mean_of_depths(count)


def mean_of_depths(num_depths: int) -> Ensemble:
    """The plain mean of the first depths' logits."""
    return Ensemble(weights=(1 / num_depths,) * num_depths)


def row_losses(logits: FloatArray, predictions: Predictions) -> FloatArray:
    """LogLoss of every row at every depth, the mean over its known tasks.

    Args:
        logits: [depths, rows, tasks].
        predictions: labels, their mask and weights.

    Returns:
        [depths, rows]; NaN where no label of the row is known, or its weight is 0.

    Raises:
        ValueError: the rows have no labels.
    """
    labels, known = _known(predictions)
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits).astype(np.float64))
    counts = known.sum(1)
    sums = np.where(known, losses, 0.0).sum(2)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _known(predictions: Predictions) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Labels [rows, tasks], and where they are known and count: not at a weight of 0."""
    if predictions.labels is None:
        raise ValueError("these rows have no labels; depth policies are fitted on them")
    known = predictions.label_mask
    if known is None:
        known = np.ones(predictions.labels.shape, np.bool_)
    if predictions.weight is not None:
        known = known & (predictions.weight > 0)[:, None]
    return predictions.labels, known


def _fit_unit(
    features: Tensor,
    helps: NDArray[np.bool_],
    weight: NDArray[np.float32] | None,
    inverse_l2: float,
) -> HaltingUnit:
    x = features.numpy()  # [rows, features]
    if helps.all() or not helps.any():
        mass = np.ones(len(helps)) if weight is None else weight.astype(np.float64)
        rate = (mass[helps].sum() + 0.5) / (mass.sum() + 1)
        return HaltingUnit(weights=(0.0,) * x.shape[1], bias=float(logit(rate)))
    mean, deviation = x.mean(0), x.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    fitted = LogisticRegression(C=inverse_l2, max_iter=1000)
    fitted.fit((x - mean) / scale, helps, sample_weight=weight)
    weights = fitted.coef_[0] / scale
    return HaltingUnit(
        weights=tuple(weights.tolist()), bias=float(fitted.intercept_[0] - weights @ mean)
    )
