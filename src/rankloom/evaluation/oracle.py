"""What an oracle would gain that chose, for every row, among a model's depths.

The oracle knows the label: p_oracle = max over depths of p where y = 1, the min where y = 0
(LoopCTR, arXiv:2604.19550, takes the prediction of the smallest loss, which is the same). Its AUC
is a ceiling for every choice by row, but a loose one: any several scores that differ have an oracle
better than each of them, whether or not the differences mean anything. Two things tell headroom
from choice.

- **A fixed number of depths.** An oracle over more depths has more to choose from. The oracle over
  k depths is averaged over the subsets of k, so that models with different numbers of depths are
  compared at equal k.
- **Noised copies.** The depths z_l are replaced by copies of one of them, z'_l = z_0 + d_l', where
  d_l' are the observed differences d_l = z_l - z_0 of other rows. A copy differs from z_0 as much
  as the depth that it stands for, and what it adds has nothing to do with the label. The oracle
  over the copies is what choice alone gives; what the oracle over the depths has beyond it, the
  depths know and z_0 does not. Any depth can stand for z_0: around the shallowest, the question is
  whether deeper depths know more than it; around the best, whether a choice by row could gain
  anything over always taking the best. `Noise` says which rows give differences to which:

    - "joint" (default): rows of nearly equal z_0 (bins of `BIN_ROWS`) exchange all differences of a
      row together. The joint distribution of all scores stays (to the width of a bin), the
      correlation of neighbouring depths with it; only the link to the label beyond z_0 goes. This
      is a draw from the hypothesis that, given z_0, the other depths say nothing of the label.
    - "independent": the same bins, but every depth is permuted on its own. Each copy alone is as
      above; together they are less alike than real depths are, so they offer more choice.
    - "anywhere": every depth on its own over all rows. Differences no longer go with the score, so
      the copies spread otherwise than the depths do.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankloom.evaluation.metrics import FloatArray, auc

Noise = Literal["joint", "independent", "anywhere"]
"""Which rows exchange differences; see the module."""
NOISES: tuple[Noise, ...] = get_args(Noise)
"""All of them."""
BIN_ROWS = 50
"""Rows of nearly equal score that exchange differences."""


def oracle_scores(scores: ArrayLike, labels: ArrayLike) -> FloatArray:
    """The best score of every row, by one who knows the label.

    Args:
        scores: [depths, ...], logits or probabilities.
        labels: [...], 0 or 1; the shape of one depth's scores.

    Returns:
        [...]: the largest score over depths where the label is 1, the least where it is 0.

    Raises:
        ValueError: shapes differ, there is no depth, or a label is not 0 or 1.
    """
    s, y = _checked(scores, labels)
    return np.where(y, s.max(0), s.min(0))


def depth_subsets(
    num_depths: int, size: int, *, most: int = 64, seed: int = 0
) -> list[tuple[int, ...]]:
    """All subsets of `size` depths, or `most` different ones at random where there are more.

    Raises:
        ValueError: `size` is not in 1..num_depths, or `most` is below 1.
    """
    if not 1 <= size <= num_depths:
        raise ValueError(f"size must be in 1..{num_depths}, the depths there are; got {size}")
    if most < 1:
        raise ValueError(f"most must be at least 1; got {most}")
    if comb(num_depths, size) <= most:
        return list(combinations(range(num_depths), size))
    generator = np.random.default_rng(seed)
    found: set[tuple[int, ...]] = set()
    while len(found) < most:
        drawn = generator.choice(num_depths, size, replace=False)
        found.add(tuple(sorted(int(depth) for depth in drawn)))
    return sorted(found)


def oracle_auc_by_count(
    scores: ArrayLike, labels: ArrayLike, weight: ArrayLike | None = None
) -> FloatArray:
    """AUC of the oracle over the first k depths, for every k.

    Args:
        scores: [depths, rows], shallowest first.
        labels: [rows], 0 or 1.
        weight: [rows], not negative.

    Returns:
        [depths]: k = 1, 2, ...; the first is the shallowest depth's own AUC. NaN without rows of
        both classes.

    Raises:
        ValueError: as `oracle_scores` and `auc`.
    """
    s, y = _checked(scores, labels)
    best = np.where(y, np.maximum.accumulate(s, 0), np.minimum.accumulate(s, 0))
    return np.array([auc(y, chosen, weight) for chosen in best])


def oracle_auc_of_size(
    scores: ArrayLike,
    labels: ArrayLike,
    size: int,
    weight: ArrayLike | None = None,
    *,
    most: int = 64,
    seed: int = 0,
) -> FloatArray:
    """AUC of the oracle over every subset of `size` depths (`depth_subsets`).

    Args:
        scores: [depths, rows].
        labels: [rows], 0 or 1.
        size: depths to choose among.
        weight: [rows], not negative.
        most: most subsets; more are sampled.
        seed: seed of the sample.

    Returns:
        [subsets], in the order of `depth_subsets`.

    Raises:
        ValueError: as `oracle_scores`, `depth_subsets` and `auc`.
    """
    s, y = _checked(scores, labels)
    subsets = depth_subsets(s.shape[0], size, most=most, seed=seed)
    return np.array([auc(y, oracle_scores(s[list(subset)], y), weight) for subset in subsets])


def noised_copies(
    scores: ArrayLike,
    noise: Noise,
    generator: np.random.Generator,
    *,
    reference: int = 0,
    bin_rows: int = BIN_ROWS,
) -> FloatArray:
    """As many copies of one depth as there are depths, each as different from it as its depth.

    Args:
        scores: [depths, rows].
        noise: which rows exchange differences; see the module.
        generator: source of the permutations.
        reference: the depth that is copied; its own row stays as it is.
        bin_rows: rows of a bin at least, for the kinds that have bins; none holds twice as many
            unless there are fewer rows than two bins need.

    Returns:
        [depths, rows].

    Raises:
        ValueError: an unknown noise, no such depth, or fewer than two rows to a bin.
    """
    s = np.asarray(scores, np.float64)
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {noise!r}")
    if s.ndim != 2 or not 0 <= reference < len(s):
        raise ValueError(
            f"reference must be one of the depths of scores [depths, rows]; got {reference} for "
            f"shape {s.shape}"
        )
    if bin_rows < 2:
        raise ValueError(f"bin_rows must be at least 2; got {bin_rows}")
    depths, rows = s.shape
    base = s[reference]
    bins = _bins(base, rows if noise == "anywhere" else bin_rows)
    shared = _permutation(bins, generator) if noise == "joint" else None
    copies = np.empty_like(s)
    for depth in range(depths):
        if depth == reference:
            copies[depth] = base
            continue
        order = _permutation(bins, generator) if shared is None else shared
        copies[depth] = base + (s[depth] - base)[order]
    return copies


def noised_oracle_auc(
    scores: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    noise: Noise = "joint",
    draws: int = 20,
    seed: int = 0,
    reference: int = 0,
    bin_rows: int = BIN_ROWS,
) -> FloatArray:
    """AUC of the oracle over the first k of the noised copies of one depth.

    Args:
        scores: [depths, rows], shallowest first.
        labels: [rows], 0 or 1.
        weight: [rows], not negative.
        noise: which rows exchange differences; see the module.
        draws: independent draws of the noise.
        seed: seed of the draws.
        reference: the depth that is copied. Another than the shallowest is not among the first few
            copies; the last column, over all of them, is the one that has it whatever it is.
        bin_rows: as `noised_copies`.

    Returns:
        [draws, depths]: a row per draw, k = 1, 2, ... across; `oracle_auc_by_count` of the depths
        themselves is to be compared with it.

    Raises:
        ValueError: as `noised_copies` and `oracle_auc_by_count`, or no draws.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    generator = np.random.default_rng(seed)
    return np.stack(
        [
            oracle_auc_by_count(
                noised_copies(scores, noise, generator, reference=reference, bin_rows=bin_rows),
                labels,
                weight,
            )
            for _ in range(draws)
        ]
    )


def _bins(base: FloatArray, bin_rows: int) -> Sequence[NDArray[np.intp]]:
    """Row indices in bins of neighbouring scores; ties stand in the order of the rows."""
    order = np.argsort(base, kind="stable")
    return np.array_split(order, max(1, len(order) // max(1, bin_rows)))


def _permutation(
    bins: Sequence[NDArray[np.intp]], generator: np.random.Generator
) -> NDArray[np.intp]:
    """For every row, the row of its bin whose differences it gets."""
    giver = np.empty(sum(map(len, bins)), np.intp)
    for rows in bins:
        giver[rows] = generator.permutation(rows)
    return giver


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    s = np.asarray(scores, np.float64)
    y = np.asarray(labels)
    if s.ndim < 2 or not len(s) or s.shape[1:] != y.shape:
        raise ValueError(
            f"scores must be [depths, ...] over labels [...], a depth at least; got {s.shape} and "
            f"{y.shape}"
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return s, y == 1
