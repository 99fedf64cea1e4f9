"""Oracles over depths beside noise in their place, as a run's figures hold them."""

import numpy as np
from numpy.typing import ArrayLike

from rankloom.config import Config
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.oracle import (
    NOISES,
    Noise,
    noised_oracle_auc,
    oracle_auc_by_count,
    oracle_auc_of_size,
)
from rankloom.runs.record import Number


class NoiseBand(Config):
    """Oracle AUC over noised copies of one depth, over draws."""

    noise: Noise
    """Which rows exchanged differences."""
    mean: Number
    """Mean."""
    low: Number
    """2.5% quantile of the draws."""
    high: Number
    """97.5% quantile."""


class OracleCount(Config):
    """Oracles over k depths."""

    count: int
    """k."""
    first: Number
    """AUC of the oracle over the first k depths."""
    noise: tuple[NoiseBand, ...]
    """The same over k noised copies of the shallowest: do deeper depths know more than it?"""
    subsets: int
    """Subsets of k depths that were looked at."""
    mean: Number
    """Mean AUC of the oracles over these subsets."""
    least: Number
    """Least of them."""
    largest: Number
    """Largest of them."""


class ReferenceNoise(Config):
    """The oracle over all depths beside that over as many noised copies of the best depth."""

    depth: int
    """The depth that was copied."""
    noise: NoiseBand
    """Oracle AUC over the copies, with joint noise."""
    headroom: Number
    """AUC of the oracle over all depths less the mean of the noise: headroom beyond choice."""


class TaskOracle(Config):
    """Oracles of one task."""

    task: str
    """Name of the task."""
    rows: int
    """Rows whose label is known."""
    positives: int
    """Rows whose label is 1."""
    counts: tuple[OracleCount, ...]
    """k = 1, 2, ... up to all depths."""
    around_reference: ReferenceNoise | None = None
    """All depths beside noise around the reference; none in files older than this figure."""


def measure_oracle(
    task: str,
    scores: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
    reference: int = 0,
) -> TaskOracle:
    """Oracles over every number of depths, and over as many noised copies of the shallowest.

    Over all depths also beside joint noise around another depth, above which gains are measured.

    Args:
        task: name of the task.
        scores: [depths, rows], shallowest first; rows with a known label only.
        labels: [rows], 0 or 1.
        weight: [rows], not negative.
        draws: draws of every noise.
        seed: seed of the draws, and of the subsets where there are too many.
        reference: that depth; to be chosen on other rows, or it is the best by luck too.

    Raises:
        ValueError: as `oracle_auc_by_count` and `noised_oracle_auc`.
    """
    y = np.asarray(labels)
    first = oracle_auc_by_count(scores, y, weight)
    drawn = {
        noise: noised_oracle_auc(scores, y, weight, noise=noise, draws=draws, seed=seed)
        for noise in NOISES
    }
    counts = []
    for count in range(1, len(first) + 1):
        subsets = oracle_auc_of_size(scores, y, count, weight, seed=seed)
        bands = [_band(noise, values[:, count - 1]) for noise, values in drawn.items()]
        counts.append(
            OracleCount(
                count=count,
                first=float(first[count - 1]),
                noise=tuple(bands),
                subsets=len(subsets),
                mean=float(subsets.mean()),
                least=float(subsets.min()),
                largest=float(subsets.max()),
            )
        )
    around = drawn["joint"]
    if reference != 0:
        around = noised_oracle_auc(scores, y, weight, draws=draws, seed=seed, reference=reference)
    band = _band("joint", around[:, -1])
    return TaskOracle(
        task=task,
        rows=len(y),
        positives=int((y == 1).sum()),
        counts=tuple(counts),
        around_reference=ReferenceNoise(
            depth=reference, noise=band, headroom=float(first[-1]) - band.mean
        ),
    )


def _band(noise: Noise, values: FloatArray) -> NoiseBand:
    low, high = np.quantile(values, [0.025, 0.975])
    return NoiseBand(noise=noise, mean=float(values.mean()), low=float(low), high=float(high))
