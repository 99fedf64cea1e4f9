"""How much compute one model saves another: where their scaling lines are equally good."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rankloom.config import Config
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.scaling import NoCurve, ScalingFit


class EqualCompute(Config):
    """The compute at which a reference is as good as a model at some size."""

    kind: Literal["equal"] = "equal"
    """Kind of the result."""
    compute: float
    """Compute that the reference needs."""
    ratio: float
    """That over the model's compute: above 1 the model saves compute."""
    low: float | None
    """Lower end of the ratio's bootstrap interval; None: below the reference's smallest size."""
    high: float | None
    """Upper end; None: above the reference's largest size."""


class NotReached(Config):
    """The reference is not as good as the model, or not as bad, at any size of its grid."""

    kind: Literal["not reached"] = "not reached"
    """Kind of the result."""
    reason: str
    """Why, in a sentence."""


def equal_compute(
    compute: float, values: Sequence[float], reference: ScalingFit, *, seed: int = 0
) -> EqualCompute | NotReached:
    """The compute at which a reference reaches what a model has at one size.

    The reference is read off its fitted line between its smallest and its largest size, nowhere
    beyond. The interval draws the model's seeds with replacement together with the bootstrap draws
    of the reference; draws in which the reference does not get there count as beyond its end.

    Args:
        compute: the model's compute, in the unit of the reference's.
        values: the model's metric, one per seed.
        reference: fit of the reference.
        seed: seed of the draws.

    Raises:
        ValueError: no values, or a number is not finite or not above 0.
    """
    runs = np.asarray(values, np.float64)
    if not runs.size or not np.isfinite(runs).all() or not 0 < compute < np.inf:
        raise ValueError(f"a size needs compute above 0 and values; got {compute}, {runs.tolist()}")
    if reference.parameters is None:
        assert isinstance(reference.result, NoCurve)
        return NotReached(reason=f"the reference has no line: {reference.result.reason}")
    needed = _compute_for(runs.mean(), reference.parameters[None], reference)[0]
    if np.isposinf(needed):
        return NotReached(reason="not reached within the grid of the reference")
    if needed == 0:
        return NotReached(reason="the smallest size of the reference is better already")
    generator = np.random.default_rng(seed)
    drawn = generator.choice(runs, (len(reference.draws), len(runs))).mean(axis=1)
    found = _compute_for(drawn, reference.draws, reference)
    # Order statistics: draws beyond the grid are ordered, but cannot be averaged.
    tail = (1 - reference.level) / 2
    low = float(np.quantile(found, tail, method="lower"))
    high = float(np.quantile(found, 1 - tail, method="higher"))
    return EqualCompute(
        compute=float(needed),
        ratio=float(needed / compute),
        low=low / compute if low > 0 else None,
        high=high / compute if high < np.inf else None,
    )


def _compute_for(value: FloatArray, parameters: FloatArray, fit: ScalingFit) -> FloatArray:
    """Compute at which each line [draws, 3] has a value; 0 and infinity outside the fit's sizes."""
    alpha, beta, gamma = parameters.T
    gap = (1 if fit.higher_is_better else -1) * (alpha - value)
    with np.errstate(divide="ignore", invalid="ignore"):  # a flat draw has beta 0
        log_c = np.where(gap > 0, (np.log(beta) - np.log(gap)) / gamma, np.inf)
    edge = 1e-9  # a value at the grid's end is inside whatever its rounding
    log_c = np.where(log_c > np.log(fit.compute[-1]) + edge, np.inf, log_c)
    return np.exp(np.where(log_c < np.log(fit.compute[0]) - edge, -np.inf, log_c))
