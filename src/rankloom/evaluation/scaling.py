"""A scaling law: how a metric grows with compute.

The law is metric(C) = alpha - beta C^(-gamma) for a metric where higher is better, and
alpha + beta C^(-gamma) for one where lower is better. Doubling C shrinks the distance to alpha by
1 - 2^(-gamma). The exponent does not depend on the unit of C, beta does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankloom.config import Config
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.power_law import (
    FEWEST_SIZES,
    GAMMA_BOUNDS,
    at_bound,
    fit_power_law,
    resample,
    size_groups,
)

FLAT_P_VALUE = 0.05
"""A trend with a larger p-value counts as none."""
FLAT_SPREAD = 1e-9
"""Means within this distance are equal but for rounding."""


class Estimate(Config):
    """A fitted value and its bootstrap interval."""

    value: float
    """The value on all points."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class ScalingCurve(Config):
    """A scaling law that the points decide."""

    kind: Literal["curve"] = "curve"
    """Kind of the result."""
    alpha: Estimate
    """What the metric tends to with unlimited compute, in the metric's unit."""
    beta: Estimate
    """Distance to alpha at C = 1, above 0."""
    gamma: Estimate
    """Exponent."""
    r2: float
    """Share of the variance of the points' means that the curve explains."""
    share_at_bound: float
    """Share of bootstrap draws in which alpha or gamma lay at a bound; a large one says that the
    points hardly decide the curve."""


class NoCurve(Config):
    """Points that decide no scaling law."""

    kind: Literal["none"] = "none"
    """Kind of the result."""
    reason: str
    """Why, in a sentence."""


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fit, with what comparisons between models need."""

    compute: FloatArray
    """[points], ascending."""
    means: FloatArray
    """[points], mean of the metric over seeds."""
    higher_is_better: bool
    """Direction of the metric."""
    result: ScalingCurve | NoCurve
    """The law, or why there is none."""
    parameters: FloatArray | None
    """[3] alpha, beta and gamma. There without a law too when the only trouble is a bound: between
    the points the line is as good as any."""
    draws: FloatArray
    """[samples, 3] the same of every bootstrap draw."""
    level: float
    """Confidence level of intervals."""

    def at(self, compute: FloatArray) -> FloatArray:
        """The fitted line at some amounts of compute.

        Raises:
            ValueError: there is no line.
        """
        if self.parameters is None:
            raise ValueError("the fit has no line; its result says why")
        return _line(self.parameters, compute, _sign(self.higher_is_better))


def gap_shrinkage(gamma: float, factor: float = 2.0) -> float:
    """Share of the distance to alpha that `factor` times the compute takes away."""
    return 1 - factor**-gamma


def fit_scaling(
    compute: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    higher_is_better: bool = True,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ScalingFit:
    """Fit the scaling law to the sizes of one model.

    Every run counts once, so a size weighs as much as it has seeds. Bounds: alpha between the best
    mean and the metric's best value (1, or 0 where lower is better), beta above 0, gamma in
    `GAMMA_BOUNDS`. A bootstrap draw takes as many points with replacement, of each as many of its
    seeds with replacement. The noise of seeds is in both steps, so that the intervals are wider
    than their level asks for, above all with few seeds: of planted curves with three seeds a size,
    nearly all lie in a 95% interval. Points alone would make it too narrow where sizes are few.

    There is no law, and a reason instead, when there are too few sizes, when the metric gets worse
    with compute, when the best curve explains no more than the noise of seeds (of the points about
    it, where no size has two seeds) by an F-test, and when gamma or alpha ends at a bound.

    Args:
        compute: [points], above 0, in any unit.
        values: metric of each run, by point; at least one each, in [0, 1] where higher is better.
        higher_is_better: direction of the metric.
        samples: bootstrap draws.
        level: confidence level of the intervals.
        seed: seed of the draws.

    Raises:
        ValueError: lengths differ, a point has no value, a number is not finite or out of range,
            fewer than two samples, or a bad level.
    """
    ordered, per_point = _checked(compute, values, higher_is_better)
    if samples < 2:
        raise ValueError(f"samples must be at least 2; got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1); got {level}")
    sign = _sign(higher_is_better)
    means = np.array([runs.mean() for runs in per_point])
    weights = np.array([float(len(runs)) for runs in per_point])
    # Lower is better: the negative metric, whose best value is 0, follows the same law.
    ceiling = 1.0 if higher_is_better else 0.0
    reason = _unfit(ordered, per_point, sign)
    if reason is None:
        fitted = fit_power_law(ordered[None], sign * means[None], weights[None], ceiling)
        fitted[:, 0] *= sign
        reason = _flat(per_point, _line(fitted[0], ordered, sign))
    if reason is not None:
        return ScalingFit(
            ordered, means, higher_is_better, NoCurve(reason=reason), None, np.empty((0, 3)), level
        )
    c, y, w = resample(ordered, per_point, samples, np.random.default_rng(seed))
    draws = fit_power_law(c, sign * y, w, ceiling)
    draws[:, 0] *= sign
    bounds = at_bound(fitted, ceiling)[0]
    share = float(at_bound(draws, ceiling).any(axis=1).mean())
    result: ScalingCurve | NoCurve
    if bounds.any():
        result = NoCurve(reason=_bound_reason(bounds, ceiling))
    else:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        alpha, beta, gamma = (
            Estimate(value=float(value), low=float(below), high=float(above))
            for value, below, above in zip(fitted[0], low, high, strict=True)
        )
        residuals = means - _line(fitted[0], ordered, sign)
        spread = means - np.average(means, weights=weights)
        r2 = 1 - float(weights @ residuals**2 / (weights @ spread**2))
        result = ScalingCurve(alpha=alpha, beta=beta, gamma=gamma, r2=r2, share_at_bound=share)
    return ScalingFit(ordered, means, higher_is_better, result, fitted[0], draws, level)


def _sign(higher_is_better: bool) -> int:
    return 1 if higher_is_better else -1


def _line(parameters: FloatArray, compute: FloatArray, sign: int) -> FloatArray:
    alpha, beta, gamma = parameters
    return alpha - sign * beta * compute**-gamma


def _checked(
    compute: Sequence[float], values: Sequence[Sequence[float]], higher_is_better: bool
) -> tuple[FloatArray, list[FloatArray]]:
    """Compute in ascending order, and the runs of each point."""
    c = np.asarray(compute, np.float64)
    runs = [np.asarray(point, np.float64) for point in values]
    if c.ndim != 1 or len(runs) != len(c) or not all(point.size for point in runs):
        raise ValueError(
            f"every amount of compute needs values, at least one; got {len(c)} amounts and "
            f"{[point.size for point in runs]} values"
        )
    if not (np.isfinite(c).all() and (c > 0).all()):
        raise ValueError(f"compute must be above 0 and finite; got {c.tolist()}")
    top = 1.0 if higher_is_better else np.inf
    if not all(((point >= 0) & (point <= top) & np.isfinite(point)).all() for point in runs):
        raise ValueError(
            f"values must be finite and lie in [0, {top:g}]; got {[p.tolist() for p in runs]}"
        )
    order = np.argsort(c, kind="stable")
    return c[order], [runs[place] for place in order]


def _unfit(compute: FloatArray, runs: Sequence[FloatArray], sign: int) -> str | None:
    """Why the points are not worth a fit; None when they are."""
    distinct = 1 + int(size_groups(compute)[-1]) if len(compute) else 0
    if distinct < FEWEST_SIZES:
        return (
            f"{distinct} distinct amounts of compute; a law of three parameters needs at least "
            f"{FEWEST_SIZES}"
        )
    means = np.array([point.mean() for point in runs])
    if np.ptp(means) <= FLAT_SPREAD:
        return "flat: all sizes have the same value"
    weights = np.array([len(point) for point in runs])
    x = np.log(compute)
    x = x - np.average(x, weights=weights)
    slope = (weights * x) @ means / (weights @ x**2)
    line = np.average(means, weights=weights) + slope * x
    if sign * slope < 0 and _p_value(runs, line, num_parameters=2) <= FLAT_P_VALUE:
        return "the metric gets worse with compute"
    return None


def _flat(runs: Sequence[FloatArray], curve: FloatArray) -> str | None:
    """Why a fitted curve [points] counts as level; None when it does not."""
    p_value = _p_value(runs, curve, num_parameters=3)
    if p_value <= FLAT_P_VALUE:
        return None
    noise = "seeds" if max(map(len, runs)) > 1 else "the points about the best curve"
    return f"flat: the rise with compute is within the noise of {noise} (p = {p_value:.2f})"


def _p_value(runs: Sequence[FloatArray], curve: FloatArray, num_parameters: int) -> float:
    """F-test of a fitted curve [points] against a constant.

    The noise is that of seeds within sizes, and where no size has two seeds that of the points
    about the curve.
    """
    means, weights = np.array([point.mean() for point in runs]), np.array(list(map(len, runs)))
    unexplained = weights @ (means - curve) ** 2
    explained = weights @ (means - np.average(means, weights=weights)) ** 2 - unexplained
    freedom = int((weights - 1).sum())
    noise = sum(len(point) * point.var() for point in runs)
    if not freedom:
        freedom, noise = len(runs) - num_parameters, unexplained
    if explained <= 0:
        return 1.0
    if noise == 0:
        return 0.0
    ratio = explained / (num_parameters - 1) / (noise / freedom)
    return float(stats.f.sf(ratio, num_parameters - 1, freedom))


def _bound_reason(bounds: NDArray[np.bool_], ceiling: float) -> str:
    if bounds[2]:
        return f"gamma ends at its bound {GAMMA_BOUNDS[1]:g}: the metric is level after few sizes"
    name, bound = ("alpha", ceiling) if bounds[0] else ("gamma", GAMMA_BOUNDS[0])
    return f"{name} ends at its bound {bound:g}: the points do not say where the metric levels off"
