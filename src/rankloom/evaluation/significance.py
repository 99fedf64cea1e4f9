"""Is the difference real: intervals and tests for metrics.

Two sources of noise are told apart. The rows of one test set: DeLong's interval and paired test for
AUC, the bootstrap for any metric. The seeds of training: t intervals and the paired t-test over
runs. Many comparisons against one reference are corrected with Holm's method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from rankloom.evaluation.metrics import FloatArray, changes


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    """The value on the data at hand."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    standard_error: float
    """Standard error of the estimate, on its own scale."""
    level: float
    """Confidence level, such as 0.95."""


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of a with b."""

    difference: float
    """a minus b."""
    low: float
    """Lower end of the difference's interval."""
    high: float
    """Upper end of the difference's interval."""
    standard_error: float
    """Standard error of the difference."""
    statistic: float
    """z (DeLong) or t (seeds)."""
    p_value: float
    """Two-sided."""
    level: float
    """Confidence level of the interval."""


def auc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    level: float = 0.95,
    scale: Literal["logit", "plain"] = "logit",
) -> Interval:
    """DeLong's confidence interval of the AUC over rows.

    var(AUC) = var(V10) / m + var(V01) / n, where V10 [m positives] and V01 [n negatives] are each
    row's share of pairs won (DeLong et al. 1988), taken from midranks in O(N log N) (Sun and Xu
    2014). On the logit scale the interval is sigmoid(logit(AUC) -+ z se / (AUC (1 - AUC))), which
    stays inside (0, 1); on the plain scale it is AUC -+ z se, cut to [0, 1].

    Args:
        labels: [rows], 0 or 1.
        scores: [rows].
        level: confidence level inside (0, 1).
        scale: where the normal approximation is made.

    Returns:
        The interval. With an AUC of exactly 0 or 1 the variance is zero and so is its width. With
        fewer than two rows of a class the ends are NaN.

    Raises:
        ValueError: bad labels, scores, level or scale.
    """
    if scale not in ("logit", "plain"):
        raise ValueError(f"scale must be logit or plain; got {scale!r}")
    z = _normal_quantile(level)
    area, error = _area_error(*_placements(labels, scores))
    if np.isnan(error):
        low = high = error
    elif error == 0:
        low = high = area
    elif scale == "plain":
        low, high = np.clip([area - z * error, area + z * error], 0, 1)
    else:
        spread = z * error / (area * (1 - area))
        low, high = special.expit(special.logit(area) + np.array([-spread, spread]))
    return Interval(area, float(low), float(high), error, level)


def delong_test(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95
) -> PairedTest:
    """DeLong's test of two AUCs on the same rows.

    z = (AUC_a - AUC_b) / sqrt(var_a + var_b - 2 cov_ab), compared with the normal distribution; the
    root is taken of the variance of the rows' paired differences, which is the same.

    Args:
        labels: [rows], 0 or 1.
        scores_a: [rows], one model's scores.
        scores_b: [rows], the other's, of the same rows in the same order.
        level: confidence level of the difference's interval.

    Returns:
        The test. Scores that order the rows alike give difference 0 and p = 1. With fewer than two
        rows of a class everything but the difference is NaN.

    Raises:
        ValueError: bad labels, scores or level.
    """
    z = _normal_quantile(level)
    (won_a, lost_a), (won_b, lost_b) = (_placements(labels, s) for s in (scores_a, scores_b))
    # The variance of the paired differences: no cancellation when the two models nearly agree.
    difference, error = _area_error(won_a - won_b, lost_a - lost_b)
    statistic = _ratio(difference, error)
    p_value = float(2 * stats.norm.sf(abs(statistic)))
    return PairedTest(
        difference, difference - z * error, difference + z * error, error, statistic, p_value, level
    )


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of a mean, over seeds say.

    mean -+ t[n-1] s / sqrt(n).

    Args:
        values: [n], one value per run.
        level: confidence level inside (0, 1).

    Returns:
        The interval; its ends are NaN for a single value.

    Raises:
        ValueError: no values, a value is NaN, or a bad level.
    """
    x = _finite(values, "values")
    mean, error, quantile = _mean_error(x, level)
    return Interval(mean, mean - quantile * error, mean + quantile * error, error, level)


def paired_t_test(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> PairedTest:
    """Paired t-test over runs that share their seed (and data): is the mean difference zero?

    Args:
        a: [n], one model's metric per seed.
        b: [n], the other's, same seeds in the same order.
        level: confidence level of the difference's interval.

    Returns:
        The test. For one pair everything but the difference is NaN. When all differences are equal
        their variance is zero: p is 1 for differences of zero, 0 for any other.

    Raises:
        ValueError: lengths differ, no values, a value is NaN, or a bad level.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"a and b must hold one value per seed each; got {len(x)} and {len(y)}")
    mean, error, quantile = _mean_error(x - y, level)
    # Differences that are equal but for the rounding of a and b have no variance.
    if error <= 4 * np.finfo(np.float64).eps * max(np.abs(x).max(), np.abs(y).max()):
        error = 0.0
    statistic = _ratio(mean, error)
    p_value = float(2 * stats.t.sf(abs(statistic), len(x) - 1)) if len(x) > 1 else float("nan")
    return PairedTest(
        mean, mean - quantile * error, mean + quantile * error, error, statistic, p_value, level
    )


def bootstrap_interval(
    statistic: Callable[..., float],
    arrays: Sequence[ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of any metric.

    Rows, or whole clusters of rows (users), are drawn with replacement; `statistic(*arrays)` is
    computed on each draw. A cluster drawn twice has its rows twice under the same key, so that a
    uniform GAUC would see it once: bootstrap the per-group values of `grouped_auc` for that.

    Args:
        statistic: metric of the arrays, such as `log_loss`.
        arrays: arrays of equal length, given to `statistic` in this order.
        clusters: [rows], integer keys whose rows are drawn together; None draws single rows.
        samples: number of draws.
        level: confidence level inside (0, 1).
        seed: seed of the draws.

    Returns:
        The interval, its standard error the deviation over draws. Draws on which the metric is not
        defined (NaN) are left out; with fewer than two others the ends are NaN.

    Raises:
        ValueError: lengths differ, no rows, fewer than two samples, or a bad level.
    """
    _check_level(level)
    columns = [np.asarray(array) for array in arrays]
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"arrays must have one length above 0; got {sorted(lengths)}")
    if samples < 2:
        raise ValueError(f"samples must be at least 2; got {samples}")
    draw = _row_drawer(lengths.pop(), clusters)
    generator = np.random.default_rng(seed)
    values = np.empty(samples)
    for sample in range(samples):
        rows = draw(generator)
        values[sample] = statistic(*(column[rows] for column in columns))
    estimate = float(statistic(*columns))
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(estimate, float("nan"), float("nan"), float("nan"), level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), float(values.std(ddof=1)), level)


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's step-down correction: p-values that keep the family-wise error of m comparisons.

    The k-th smallest of m p-values becomes max over j <= k of min(1, (m - j + 1) p_(j)).

    Args:
        p_values: [m]; NaN marks a comparison that could not be made, stays NaN and does not count.

    Returns:
        [m], in the given order.

    Raises:
        ValueError: a p-value lies outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p-values must lie in [0, 1]; got {p.tolist()}")
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return adjusted


def _placements(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """DeLong's structural components by midranks: V10 [positives] and V01 [negatives].

    V10 of a positive row is the share of negatives that it beats, V01 of a negative row the share
    of positives that beat it; ties count one half.
    """
    y = np.asarray(labels)
    s = np.asarray(scores, np.float64)
    if y.ndim != 1 or s.shape != y.shape:
        raise ValueError(f"labels and scores must be [rows]; got {y.shape} and {s.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(s).any():
        raise ValueError(f"scores must be numbers; {int(np.isnan(s).sum())} of {len(s)} are NaN")
    positive = y == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not (num_positive and num_negative):
        return np.full(num_positive, np.nan), np.full(num_negative, np.nan)
    order = np.argsort(s)
    ties = np.flatnonzero(changes(s[order]))  # first row of each run of ties
    wins = np.add.reduceat(positive[order], ties, dtype=np.int64)
    sizes = np.diff(ties, append=len(s))
    # A midrank among all less the midrank in one's own class is the rows of the other class below,
    # ties by half; sums over runs give it with one sort in place of three.
    beaten = np.empty(len(s))
    beaten[order] = np.repeat(np.cumsum(sizes - wins) - (sizes - wins) / 2, sizes)
    passed = np.empty(len(s))
    passed[order] = np.repeat(np.cumsum(wins) - wins / 2, sizes)
    return beaten[positive] / num_negative, 1 - passed[~positive] / num_positive


def _area_error(won: FloatArray, lost: FloatArray) -> tuple[float, float]:
    """Mean of the placements (an AUC, or a difference of two) and its standard error."""
    area = float(won.mean()) if len(won) and len(lost) else float("nan")
    if len(won) < 2 or len(lost) < 2:
        return area, float("nan")
    return area, float(np.sqrt(won.var(ddof=1) / len(won) + lost.var(ddof=1) / len(lost)))


def _mean_error(x: FloatArray, level: float) -> tuple[float, float, float]:
    """Mean, its standard error, and the t quantile of the level; the last two NaN for one value."""
    _check_level(level)
    if len(x) < 2:
        return float(x.mean()), float("nan"), float("nan")
    error = float(x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()), error, float(stats.t.ppf((1 + level) / 2, len(x) - 1))


def _ratio(difference: float, error: float) -> float:
    if error == 0:
        return float(np.sign(difference) * np.inf) if difference else 0.0
    return difference / error


def _row_drawer(
    rows: int, clusters: ArrayLike | None
) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    """A function that draws row indices: single rows, or all rows of drawn clusters."""
    if clusters is None:
        return lambda generator: generator.integers(0, rows, rows)
    keys = np.asarray(clusters)
    if keys.shape != (rows,):
        raise ValueError(f"clusters must be [{rows}], one key per row; got {keys.shape}")
    order = np.argsort(keys, kind="stable")
    _, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)

    def draw(generator: np.random.Generator) -> NDArray[np.int64]:
        drawn = generator.integers(0, len(starts), len(starts))
        lengths = sizes[drawn]
        ends = np.cumsum(lengths)
        shift = np.repeat(starts[drawn] - (ends - lengths), lengths)
        return order[shift + np.arange(len(shift))]

    return draw


def _finite(values: ArrayLike, name: str) -> FloatArray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"{name} must be a list of finite numbers, at least one; got {x.tolist()}")
    return x


def _normal_quantile(level: float) -> float:
    _check_level(level)
    return float(stats.norm.ppf((1 + level) / 2))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1); got {level}")
