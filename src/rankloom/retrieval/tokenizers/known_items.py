"""Codes of the fitted items, found again by their vectors.

Some tokenizers give an item codes that its vector alone does not tell: clusters of equal size, an
attribute, a number among equals. `assign` sees vectors only; so the codes are kept beside a
fingerprint of each vector.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SEED = 0x5DEECE66D
"""Of the multipliers of a fingerprint; another one would lose the codes of saved tokenizers."""
OFFSET = 0x9E3779B9
"""Added to every number's bits, so that zeros count too."""
BLOCK_ROWS = 4096
"""Vectors that are read at once."""


class KnownItems(nn.Module):
    """Fingerprints and codes of items; empty until `remember`.

    Args:
        num_levels: codes of an item.
    """

    fingerprints: Tensor
    codes: Tensor

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.register_buffer("fingerprints", torch.empty(0, dtype=torch.int64))
        """[items] ascending."""
        self.register_buffer("codes", torch.empty(0, num_levels, dtype=torch.int64))
        """[items, levels] in their order, equal fingerprints in that of the items."""

    def remember(
        self, vectors: Float[Tensor, "items width"], codes: Int[Tensor, "items levels"]
    ) -> None:
        """Keep the codes of items."""
        prints = fingerprints(vectors)
        order = prints.argsort(stable=True)
        self.fingerprints = prints[order]
        self.codes = codes[order].to(self.fingerprints.device, torch.int64)

    def find(self, vectors: Float[Tensor, "items width"]) -> Int[Tensor, "items levels"]:
        """Codes of the items that had these vectors; -1 where none had.

        The n-th of equal vectors is taken for the n-th item that had that vector, so that the
        vectors of the whole catalogue find their own codes.
        """
        prints = fingerprints(vectors)
        if len(self.fingerprints) == 0 or len(prints) == 0:
            return prints.new_full((len(prints), self.codes.shape[1]), -1)
        first = torch.searchsorted(self.fingerprints, prints)
        count = torch.searchsorted(self.fingerprints, prints, right=True) - first
        order = prints.argsort(stable=True)
        starts = torch.searchsorted(prints[order], prints[order])
        nth = torch.empty_like(order)
        nth[order] = torch.arange(len(order), device=order.device) - starts
        row = (first + nth % count.clamp(min=1)).clamp(max=len(self.codes) - 1)
        return torch.where(count[:, None] > 0, self.codes[row], -1)


def fingerprints(vectors: Float[Tensor, "items width"]) -> Int[Tensor, " items"]:
    """An int64 for each vector: equal for equal ones, and for others by a chance of one in 2^64.

    The numbers' bits, each times a multiplier of its place, are added up modulo 2^64.
    """
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(-(2**63), 2**63, vectors.shape[1], dtype=np.int64) | 1
    factors = torch.from_numpy(drawn).to(vectors.device)
    prints = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for begin in range(0, len(vectors), BLOCK_ROWS):
        rows = slice(begin, begin + BLOCK_ROWS)
        # Adding zero makes minus zero zero.
        bits = (vectors[rows].detach().float() + 0.0).contiguous().view(torch.int32)
        mixed = (bits.to(torch.int64) + OFFSET).mul_(factors)
        prints[rows] = mixed.bitwise_xor_(mixed >> 29).sum(1)
    return prints
