"""Metrics of scored rows: exact, in numpy, one pure function each.

Labels are 0 or 1. Rows may carry weights; None means that every row counts once. AUC and GAUC take
any score that orders the rows (logits or probabilities); LogLoss and normalised entropy take
logits; the calibration metrics and the Brier score take probabilities.

Where a metric is not defined (no rows, or one class only where both are needed) the value is NaN.
NaN in an input is an error, never a value.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Weighting = Literal["rows", "uniform"]


@dataclass(frozen=True)
class GroupedAuc:
    """AUC of every group; groups stand in ascending order of their key."""

    groups: NDArray[np.int64]
    """[groups]: the keys."""
    rows: NDArray[np.int64]
    """[groups]: rows of each group."""
    weight: FloatArray
    """[groups]: summed weight of each group's rows; the row count without weights."""
    auc: FloatArray
    """[groups]: AUC inside the group; NaN where it holds one class only."""

    @property
    def defined(self) -> NDArray[np.bool_]:
        """[groups]: True where the group holds both classes."""
        return ~np.isnan(self.auc)

    @property
    def coverage(self) -> float:
        """Share of the weight (of the rows, without weights) that lies in groups with an AUC."""
        total = self.weight.sum()
        return float(self.weight[self.defined].sum() / total) if total > 0 else float("nan")

    @property
    def one_class_groups(self) -> float:
        """Share of the groups that hold one class only and are skipped."""
        return float(1 - self.defined.mean()) if len(self.auc) else float("nan")

    def mean(self, weighting: Weighting = "rows") -> float:
        """GAUC: the mean AUC over the groups that have one; NaN when none has.

        Raises:
            ValueError: `weighting` is neither rows nor uniform.
        """
        if weighting not in ("rows", "uniform"):
            raise ValueError(f"weighting must be rows or uniform; got {weighting!r}")
        kept = self.defined
        if not kept.any():
            return float("nan")
        weight = self.weight[kept] if weighting == "rows" else None
        return float(np.average(self.auc[kept], weights=weight))


def auc(labels: ArrayLike, scores: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve, exact.

    AUC = sum over pairs (i positive, j negative) of w_i w_j (1[s_i > s_j] + 1[s_i = s_j] / 2),
    divided by the weight of all such pairs: a tie counts one half (midranks). Without weights the
    numerator is an integer, so the value carries no rounding but that of one division.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows], any numbers that order the rows.
        weight: [rows], not negative.

    Returns:
        The AUC; NaN with no rows or one class only.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a weight is negative, an input is NaN.
    """
    y, s, w = _checked(labels, scores, weight, "scores")
    group = np.zeros(len(y), np.int64)
    result = _auc_by_group(y, s, group, w)
    return float(result.auc[0]) if len(result.auc) else float("nan")


def grouped_auc(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weight: ArrayLike | None = None
) -> GroupedAuc:
    """AUC inside every group, with one sort over all rows.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows], any numbers that order the rows.
        groups: [rows], integer keys in any order.
        weight: [rows], not negative.

    Raises:
        ValueError: as `auc`; or the groups are not integers.
    """
    y, s, w = _checked(labels, scores, weight, "scores")
    keys = np.asarray(groups)
    if keys.shape != y.shape:
        raise ValueError(f"groups must have the labels' shape {y.shape}; got {keys.shape}")
    if not np.issubdtype(keys.dtype, np.integer) and keys.size:
        raise ValueError(f"groups must be integer keys; got {keys.dtype}")
    return _auc_by_group(y, s, keys.astype(np.int64, copy=False), w)


def gauc(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    weighting: Weighting = "rows",
    weight: ArrayLike | None = None,
) -> float:
    """Mean of the AUC inside each group (user, session, query).

    GAUC = sum_g a_g AUC_g / sum_g a_g over the groups g that hold both classes; groups of one
    class are skipped, and `grouped_auc(...).coverage` is the share of rows that remains.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows], any numbers that order the rows.
        groups: [rows], integer keys in any order.
        weighting: "rows": a_g is the number of rows (impressions) of the group, their summed weight
            when weights are given (FuxiCTR's gAUC); "uniform": a_g = 1.
        weight: [rows], not negative.

    Returns:
        The GAUC; NaN when no group holds both classes.

    Raises:
        ValueError: as `grouped_auc`, or an unknown weighting.
    """
    return grouped_auc(labels, scores, groups, weight).mean(weighting)


def log_loss(labels: ArrayLike, logits: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean negative log likelihood in nats, from logits.

    LogLoss = sum_i w_i log(1 + exp(-(2 y_i - 1) z_i)) / sum_i w_i. Computed from logits it needs
    no clipping, and none is done: a logit of 50 on a negative costs 50, where libraries that clip
    float32 probabilities report about 16. An infinite logit on the wrong side costs infinity.

    Args:
        labels: [rows], 0 or 1.
        logits: [rows].
        weight: [rows], not negative.

    Returns:
        The loss; NaN with no rows.

    Raises:
        ValueError: as `auc`.
    """
    y, z, w = _checked(labels, logits, weight, "logits")
    return _mean(np.logaddexp(0.0, np.where(y, -z, z)), w)


def normalised_entropy(
    labels: ArrayLike,
    logits: ArrayLike,
    weight: ArrayLike | None = None,
    base_rate: float | None = None,
) -> float:
    """LogLoss divided by the LogLoss of a constant prediction (He et al. 2014).

    NE = LogLoss / -(m log p + (1 - m) log(1 - p)), with m the mean label of these rows and p the
    constant prediction: m itself (the paper's background rate) unless `base_rate` is given, such as
    the training split's. Below 1 is better than knowing the rate only.

    Args:
        labels: [rows], 0 or 1.
        logits: [rows].
        weight: [rows], not negative.
        base_rate: the constant prediction, inside (0, 1); None: the mean label of these rows.

    Returns:
        The ratio; NaN with no rows, or with one class only and no `base_rate`.

    Raises:
        ValueError: as `auc`; or `base_rate` is not inside (0, 1).
    """
    if base_rate is not None and not 0 < base_rate < 1:
        raise ValueError(f"base_rate must lie inside (0, 1); got {base_rate}")
    y, _, w = _checked(labels, logits, weight, "logits")
    mean = _mean(y.astype(np.float64), w)
    rate = mean if base_rate is None else base_rate
    if not 0 < rate < 1:
        return float("nan")
    entropy = -(mean * np.log(rate) + (1 - mean) * np.log1p(-rate))
    return float(log_loss(labels, logits, weight) / entropy)


def calibration_ratio(
    labels: ArrayLike, probabilities: ArrayLike, weight: ArrayLike | None = None
) -> float:
    """Predicted over observed clicks (PCOC): 1 is calibrated, above 1 predicts too much.

    PCOC = sum_i w_i p_i / sum_i w_i y_i.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows], in [0, 1].
        weight: [rows], not negative.

    Returns:
        The ratio; NaN without a positive row.

    Raises:
        ValueError: as `auc`; or a probability lies outside [0, 1].
    """
    y, p, w = _checked_probabilities(labels, probabilities, weight)
    observed = _total(y.astype(np.float64), w)
    return float(_total(p, w) / observed) if observed > 0 else float("nan")


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    weight: ArrayLike | None = None,
    bins: int = 10,
) -> float:
    """Mean gap between predicted and observed rate over bins of equal mass.

    ECE = sum_b W_b |mean p in b - mean y in b| / sum_b W_b, W_b the weight of bin b. Rows are
    ordered by probability; a row whose midpoint of cumulated weight lies at share q of the total
    goes to bin floor(q * bins). Rows of equal probability stay together, so the order of rows never
    matters, and a constant prediction fills one bin. Bins without rows do not count.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows], in [0, 1].
        weight: [rows], not negative.
        bins: number of bins.

    Returns:
        The error; NaN with no rows.

    Raises:
        ValueError: as `calibration_ratio`; or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    y, p, w = _checked_probabilities(labels, probabilities, weight)
    mass = np.ones(len(y)) if w is None else w
    total = mass.sum()
    if not total > 0:
        return float("nan")
    order = np.argsort(p)
    starts = np.flatnonzero(changes(p[order]))
    tied = np.add.reduceat(mass[order], starts)  # [distinct probabilities]
    middle = (np.cumsum(tied) - tied / 2) / total
    bin_of = np.minimum((middle * bins).astype(np.int64), bins - 1)
    gap = np.add.reduceat((mass * (p - y))[order], starts)
    return float(np.abs(np.bincount(bin_of, gap, bins)).sum() / total)


def brier_score(
    labels: ArrayLike, probabilities: ArrayLike, weight: ArrayLike | None = None
) -> float:
    """Mean squared error of the probabilities: sum_i w_i (p_i - y_i)^2 / sum_i w_i.

    Args:
        labels: [rows], 0 or 1.
        probabilities: [rows], in [0, 1].
        weight: [rows], not negative.

    Returns:
        The score; NaN with no rows.

    Raises:
        ValueError: as `calibration_ratio`.
    """
    y, p, w = _checked_probabilities(labels, probabilities, weight)
    return _mean((p - y) ** 2, w)


def _auc_by_group(
    y: NDArray[np.bool_], s: FloatArray, keys: NDArray[np.int64], w: FloatArray | None
) -> GroupedAuc:
    if len(y) == 0:
        none = np.zeros(0, np.int64)
        return GroupedAuc(none, none, np.zeros(0), np.zeros(0))
    one_group = bool((keys == keys[0]).all())
    order = np.argsort(s) if one_group else np.lexsort((s, keys))
    s, keys, y = s[order], keys[order], y[order]
    # int64 without weights: pair counts stay exact up to 4e9 rows of one group.
    mass = np.ones(len(y), np.int64) if w is None else w[order]
    new_group = changes(keys)
    first_tie = np.flatnonzero(new_group | changes(s))
    positive = np.add.reduceat(np.where(y, mass, 0), first_tie)  # [ties]
    negative = np.add.reduceat(np.where(y, 0, mass), first_tie)
    group_rows = np.flatnonzero(new_group)  # first row of each group
    group_ties = np.searchsorted(first_tie, group_rows)  # first tie of each group
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[group_ties], np.diff(group_ties, append=len(first_tie)))
    twice = np.add.reduceat(positive * (2 * below + negative), group_ties)
    positives = np.add.reduceat(positive, group_ties)
    negatives = np.add.reduceat(negative, group_ties)
    pairs = 2.0 * positives * negatives
    area = np.full(len(group_rows), np.nan)
    np.divide(twice, pairs, out=area, where=pairs > 0)
    return GroupedAuc(
        groups=keys[group_rows],
        rows=np.diff(group_rows, append=len(y)),
        weight=(positives + negatives).astype(np.float64),
        auc=area,
    )


def changes(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a value differs from the one before it; the first always does."""
    changed = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def _total(values: FloatArray, w: FloatArray | None) -> float:
    return float(values.sum() if w is None else values @ w)


def _mean(values: FloatArray, w: FloatArray | None) -> float:
    mass = len(values) if w is None else w.sum()
    return _total(values, w) / float(mass) if mass > 0 else float("nan")


def _checked(
    labels: ArrayLike, values: ArrayLike, weight: ArrayLike | None, name: str
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray | None]:
    y = np.asarray(labels)
    s = np.asarray(values, np.float64)
    if y.ndim != 1 or s.shape != y.shape:
        raise ValueError(
            f"labels and {name} must be [rows] of equal length; got {y.shape} and {s.shape}"
        )
    wrong = (y != 0) & (y != 1)
    if wrong.any():
        raise ValueError(f"labels must be 0 or 1; got {y[wrong][0]}")
    unknown = int(np.isnan(s).sum())
    if unknown:
        raise ValueError(f"{name} must be numbers; {unknown} of {len(s)} are NaN")
    if weight is None:
        return y == 1, s, None
    w = np.asarray(weight, np.float64)
    if w.shape != y.shape:
        raise ValueError(f"weight must have the labels' shape {y.shape}; got {w.shape}")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("weight must be finite and not negative")
    return y == 1, s, w


def _checked_probabilities(
    labels: ArrayLike, probabilities: ArrayLike, weight: ArrayLike | None
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray | None]:
    y, p, w = _checked(labels, probabilities, weight, "probabilities")
    outside = (p < 0) | (p > 1)
    if outside.any():
        raise ValueError(
            f"probabilities must lie in [0, 1]; got {p[outside][0]} (logits need a sigmoid first)"
        )
    return y, p, w
