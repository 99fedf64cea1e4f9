"""The Criteo-shaped data that every library trains on, and the sizes that every library is given.

39 id fields, 1.0 million feature values. Ids follow a power law within each field; the label comes
from planted first- and second-order effects, so that validation AUC says whether a faster
arithmetic still learns.
"""

from dataclasses import dataclass
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
AFM_ATTENTION_DIM = 16
CIN_LAYERS = (64, 64)
ATTENTION_LAYERS = 3
ATTENTION_HEADS = 2
ATTENTION_DIM = 64
SAM_LAYERS = 3
LOG_NEURONS = 400
MASK_BLOCKS = 3
MASK_BLOCK_DIM = 64
MASK_REDUCTION = 2
SENET_REDUCTION = 3
GATE_HIDDEN = (400,)
TOKEN_LAYERS = 3
TOKENS = 16
TOKEN_RANK = 8
TOKEN_HIDDEN = (400,)


@dataclass(frozen=True)
class Case:
    """One row of the zoo's table: a model, and who beside us has it at these sizes."""

    model: str
    """Name in the catalog."""
    sizes: str
    """What is not the same for all models, in words."""
    peers: tuple[str, ...]
    """Libraries; `fuxictr` is assembled from the parts in its wheel."""
    wheel_has_layer: bool = True
    """Whether FuxiCTR's wheel holds the model's interaction layer; else it is written out."""


FUXI, DEEPCTR, RECHUB = "fuxictr", "deepctr-torch", "torch-rechub"
CASES: dict[str, Case] = {
    "lr": Case("lr", "", (FUXI, DEEPCTR)),
    "fm": Case("fm", "", (FUXI, DEEPCTR)),
    "dnn": Case("dnn", "", (FUXI, DEEPCTR)),
    "wide_deep": Case("wide_deep", "", (FUXI, DEEPCTR, RECHUB)),
    "ipnn": Case("ipnn", "", (FUXI, DEEPCTR)),
    "afm": Case("afm", "attention 16", (FUXI, DEEPCTR)),
    "deepfm": Case("deepfm", "", (FUXI, DEEPCTR, RECHUB)),
    "dcn": Case("dcn", "3 crosses, parallel", (FUXI, DEEPCTR, RECHUB)),
    "xdeepfm": Case("xdeepfm", "CIN 64, 64", (FUXI, DEEPCTR)),
    "autoint": Case("autoint", "3 layers, 2 heads, width 64, with network", (FUXI,)),
    "autoint_16": Case(
        "autoint", "3 layers, 2 heads, width 16, with network", (FUXI, DEEPCTR, RECHUB)
    ),
    "fibinet": Case("fibinet", "a matrix per pair, SENET ratio 3", (FUXI, DEEPCTR, RECHUB)),
    "dlrm": Case("dlrm", "dot products, no numeric fields", (FUXI,)),
    "afn": Case("afn", "400 neurons", (FUXI, DEEPCTR), wheel_has_layer=False),
    "dcnv2": Case("dcnv2", "3 crosses, parallel", (FUXI, DEEPCTR, RECHUB)),
    "sam": Case("sam", "SAM3A, 3 layers, residual", (FUXI,), wheel_has_layer=False),
    "edcn": Case("edcn", "3 layers, product bridge, regulation, norm", (FUXI,)),
    "masknet": Case("masknet", "parallel, 3 blocks of 64, ratio 2", (FUXI,), wheel_has_layer=False),
    "finalmlp": Case("finalmlp", "2 networks, gates 400", (FUXI,), wheel_has_layer=False),
    "gdcn": Case("gdcn", "3 crosses, parallel", (FUXI,), wheel_has_layer=False),
    "finalnet": Case("finalnet", "2 blocks, field gate", (FUXI,), wheel_has_layer=False),
    "dcnv3": Case("dcnv3", "3 deep, 3 shallow crosses", (FUXI,), wheel_has_layer=False),
    "wukong": Case("wukong", "3 layers, 16 + 16 tokens, rank 8", (FUXI,), wheel_has_layer=False),
    "dlf": Case("dlf", "3 layers, 16 tokens a block, rank 8", ()),
    "dlf_code": Case("dlf_code", "3 layers, 16 tokens a block, rank 8, no attention", ()),
}
"""Everything else is common: embedding 16, network 3x400 where a model has one, no dropout."""


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
