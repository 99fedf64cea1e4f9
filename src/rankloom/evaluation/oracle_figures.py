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
    """Oracle AUC over noised copies of the shallowest depth, over draws."""

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
    """The same over k noised copies."""
    subsets: int
    """Subsets of k depths that were looked at."""
    mean: Number
    """Mean AUC of the oracles over these subsets."""
    least: Number
    """Least of them."""
    largest: Number
    """Largest of them."""


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


def measure_oracle(
    task: str,
    scores: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
) -> TaskOracle:
    """Oracles over every number of depths, and over as many noised copies of the shallowest.

    Args:
        task: name of the task.
        scores: [depths, rows], shallowest first; rows with a known label only.
        labels: [rows], 0 or 1.
        weight: [rows], not negative.
        draws: draws of every noise.
        seed: seed of the draws, and of the subsets where there are too many.

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
    positives = int((y == 1).sum())
    return TaskOracle(task=task, rows=len(y), positives=positives, counts=tuple(counts))


def _band(noise: Noise, values: FloatArray) -> NoiseBand:
    low, high = np.quantile(values, [0.025, 0.975])
    return NoiseBand(noise=noise, mean=float(values.mean()), low=float(low), high=float(high))
