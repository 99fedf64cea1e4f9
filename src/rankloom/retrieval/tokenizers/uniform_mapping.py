"""LC-Rec's uniform semantic mapping: items that collide share out the codes of the last level.

Source: Zheng et al., ICDE 2024, arXiv:2311.09049, section III-A; the rounds are those of the
official code. For any tokenizer whose last level quantises a residual: RQ-VAE, LETTER, residual
k-means.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.layers.nearest import squared_distances
from rankloom.layers.sinkhorn_codes import sinkhorn_codes

IntArray = npt.NDArray[np.int32]

BLOCK_ENTRIES = 2**22
"""Distances that are held at once."""


@runtime_checkable
@runtime_checkable
class ResidualTokenizer(Protocol):
    """What the mapping asks of a tokenizer."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""

    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items dim"]:
        """What is left of each vector for the last level to quantise."""

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"] | None:
        """The codes of a level, in the space of the residuals."""


def uniform_mapping(
    tokenizer: ResidualTokenizer,
    vectors: Float[Tensor, "items width"],
    codes: IntArray,
    *,
    epsilon: float = 0.003,
    num_steps: int = 50,
    num_rounds: int = 20,
) -> IntArray:
    """New last codes for the items that collide.

    In each round every group of items with one id is quantised again on the last level alone, by
    Sinkhorn's iteration over the group: its items spread over the codes at little cost. They may
    meet other items there; so it is repeated until no ids are shared, or `num_rounds` times. What
    collides then still does; so do items whose residuals are equal, which no code tells apart.

    Args:
        tokenizer: what made the codes.
        vectors: the items' vectors.
        codes: [items, levels] from 0, all ids of full length, as the tokenizer's nearest codes.
        epsilon: Sinkhorn's regularisation; smaller keeps closer to the nearest codes.
        num_steps: Sinkhorn's steps.
        num_rounds: most rounds.

    Returns:
        [items, levels]; only last codes of items that collided differ.

    Raises:
        ValueError: an id is shorter than the levels, or the last level has no vectors.
    """
    centres = tokenizer.code_vectors(len(tokenizer.level_sizes) - 1)
    if centres is None:
        raise ValueError("uniform_mapping needs a tokenizer whose last level has code vectors")
    if codes.size and codes.min() < 0:
        raise ValueError("uniform_mapping needs ids of full length; some end before the last level")
    new_codes = codes.copy()
    if not len(codes):
        return new_codes
    residuals: Tensor | None = None
    for _ in range(num_rounds):
        _, group, sizes = np.unique(new_codes, axis=0, return_inverse=True, return_counts=True)
        group = group.reshape(-1)
        if sizes.max() == 1:
            break
        if residuals is None:
            residuals = tokenizer.last_residuals(vectors)
        order = np.argsort(group, kind="stable")
        begins = np.cumsum(sizes) - sizes
        # Groups of one size are computed together, as many as fit a block.
        for size in np.unique(sizes[sizes > 1]):
            groups = np.flatnonzero(sizes == size)
            members = order[begins[groups][:, None] + np.arange(size)]  # [groups, size]
            num_together = max(1, BLOCK_ENTRIES // (int(size) * len(centres)))
            for begin in range(0, len(groups), num_together):
                rows = members[begin : begin + num_together]
                distances = squared_distances(residuals[torch.from_numpy(rows)], centres)
                chosen = sinkhorn_codes(distances, epsilon, num_steps)  # [groups, size]
                new_codes[rows, -1] = chosen.cpu().numpy()
    return new_codes
