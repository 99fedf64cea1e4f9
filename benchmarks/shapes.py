"""The Criteo-shaped data that every library trains on: 39 id fields, 1.0 million feature values.

Ids follow a power law within each field; the label comes from planted first- and second-order
effects, so that validation AUC says whether a faster arithmetic still learns.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_FIELDS = 39
FEATURE_VALUES = 1_000_000
EMBEDDING_DIM = 16
HIDDEN = (400, 400, 400)
BATCH_SIZE = 10_000
EMBEDDING_L2 = 1e-5
LEARNING_RATE = 1e-3
CROSS_LAYERS = 3


def cardinalities() -> list[int]:
    """Distinct values per field: many small fields and a few large ones, FEATURE_VALUES in all."""
    shape = np.geomspace(4, 250_000, NUM_FIELDS)
    sizes = np.maximum(4, (shape / shape.sum() * FEATURE_VALUES)).astype(int)
    sizes[-1] += FEATURE_VALUES - int(sizes.sum())
    return [int(size) for size in sizes]


def make_rows(rows: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids [rows, fields] counted from 0 within each field, and labels [rows]."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(12345)  # the same world for every seed of rows
    ids = np.empty((rows, NUM_FIELDS), np.int32)
    score = np.full(rows, -1.2)
    latent = np.zeros((rows, 4))
    squares = np.zeros((rows, 4))
    for field, size in enumerate(cardinalities()):
        uniform = random.random(rows)
        # Inverse of a truncated power law with exponent 1.1.
        power = -0.1
        ids[:, field] = np.minimum(
            (1 + uniform * ((size + 1.0) ** power - 1)) ** (1 / power) - 1, size - 1
        ).astype(np.int32)
        first = truth.normal(0, 0.15, size)
        second = truth.normal(0, 0.18, (size, 4))
        score += first[ids[:, field]]
        vectors = second[ids[:, field]]
        latent += vectors
        squares += vectors**2
    score += 0.5 * (latent**2 - squares).sum(1)
    labels = random.random(rows) < 1 / (1 + np.exp(-score))
    return ids, labels.astype(np.float32)


def write_npz(path: Path, ids: NDArray[np.int32], labels: NDArray[np.float32]) -> None:
    """Columns C1..C39 and label, ids counted from 1, as the peers read them."""
    columns = {f"C{field + 1}": ids[:, field] + 1 for field in range(NUM_FIELDS)}
    np.savez(path, label=labels.astype(np.int64), **columns)
