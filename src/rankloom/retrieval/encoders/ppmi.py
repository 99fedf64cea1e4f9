"""Item vectors from co-occurrence: positive pointwise mutual information, reduced by an SVD.

Source: Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, NeurIPS 2014;
    window, smoothed contexts and the exponent 1/2 from Levy, Goldberg and Dagan, Improving
    Distributional Similarity with Lessons Learned from Word Embeddings, TACL 2015.
Equations: n[i, j] pairs of items within the window, p(i, j) = n[i, j] / n;
    q(j) = (sum_i n[i, j])^a / sum_j (sum_i n[i, j])^a;
    M[i, j] = max(0, log(p(i, j) / (p(i) q(j)))); M = U S V'; the vector of item i is row i of
    U S^(1/2).
Differs from the papers: words are items and sentences are the users' training sequences; an item's
    pairs with itself are left out, for they say nothing of other items.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix
from torch import Tensor

from rankloom.retrieval.encoders.encoder import (
    SequenceEncoderBase,
    check_histories,
    singular_vectors,
)
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


class PpmiConfig(SequenceEncoderBase):
    """Collaborative vectors without training: PPMI of the training sequences, and SVD.

    New items have none; as a part of a concatenation, they get zeros.
    """

    kind: Literal["ppmi"] = "ppmi"
    """Which encoder this is."""
    dim: int = Field(64, gt=0)
    """Width of the vectors."""
    window: int = Field(5, gt=0)
    """Items apart, at most, that count as seen together."""
    smoothing: float = Field(0.75, gt=0, le=1)
    """Exponent of the contexts' counts; below 1, rare items weigh less as contexts."""
    normalise: bool = True

    def raw_vectors(
        self, catalogue: Catalogue, histories: Histories | None, seed: int
    ) -> Float[Tensor, "items dim"]:
        """Vectors of the training sequences; zeros for an item that is in none, or alone in it.

        Raises:
            ValueError: there are no sequences.
        """
        counts = pair_counts(check_histories(histories, self.kind), self.window)
        return singular_vectors(ppmi(counts, self.smoothing), self.dim, 0.5, seed)[0]


def pair_counts(histories: Histories, window: int) -> csr_matrix:
    """[items, items] symmetric: how often two different items are at most `window` places apart."""
    users = np.repeat(np.arange(histories.num_users), histories.lengths)
    rows = histories.items - 1
    shape = (histories.num_items, histories.num_items)
    counts = csr_matrix(shape, dtype=np.float64)
    for distance in range(1, window + 1):
        first, second = rows[:-distance], rows[distance:]
        pairs = (users[:-distance] == users[distance:]) & (first != second)
        ones = np.ones(int(pairs.sum()))
        counts = counts + coo_matrix((ones, (first[pairs], second[pairs])), shape).tocsr()
    return (counts + counts.T).tocsr()


def ppmi(counts: csr_matrix, smoothing: float) -> csr_matrix:
    """Positive pointwise mutual information of symmetric counts; the equation stands above."""
    if counts.nnz == 0:
        return counts
    pairs = counts.tocoo()
    seen = np.asarray(counts.sum(1)).reshape(-1)  # [items]
    contexts = seen**smoothing  # 0 ** smoothing is 0: the exponent is above 0
    contexts = contexts / contexts.sum()
    expected = seen[pairs.row] * contexts[pairs.col]
    information = np.maximum(np.log(pairs.data / expected), 0.0)
    return csr_matrix((information, (pairs.row, pairs.col)), counts.shape)
