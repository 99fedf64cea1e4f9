"""Sequence tokens with their padding, or without it: all real ones of a batch as if of one row.

Histories differ in length, so that much of what a layer computes of padded tokens is thrown away.
What is done to every token by itself needs no rows: it can run on real tokens alone. Attention
needs them; queries, keys and values are put where they belong, and what they find is taken back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

PACK_BELOW = 0.8
"""Share of real tokens from which leaving out the others does not pay."""


class PaddedTokens:
    """Tokens of every row, padding among them.

    Args:
        mask: True at real tokens.
    """

    real: Bool[Tensor, "rows tokens"] | None
    """False at padding among what `take` gives; None: there is none."""

    def __init__(self, mask: Bool[Tensor, "batch tokens"]) -> None:
        self.mask = mask
        self.real = mask

    def take(self, x: Float[Tensor, "batch tokens *rest"]) -> Float[Tensor, "rows taken *rest"]:
        """The tokens that are computed with."""
        return x

    def put_back(
        self, taken: Float[Tensor, "rows taken *rest"]
    ) -> Float[Tensor, "batch tokens *rest"]:
        """What was computed, each at its place; zeros where nothing was."""
        return taken

    def spread(
        self, heads: Float[Tensor, "rows heads taken dim"]
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """What every head has of the tokens taken, each at its place, else zeros."""
        return heads

    def gather(
        self, heads: Float[Tensor, "batch heads tokens dim"]
    ) -> Float[Tensor, "rows heads taken dim"]:
        """What every head has of all tokens, of those that are taken."""
        return heads


class PackedTokens(PaddedTokens):
    """Real tokens of all rows, as one row.

    Args:
        mask: True at real tokens.
    """

    def __init__(self, mask: Bool[Tensor, "batch tokens"]) -> None:
        super().__init__(mask)
        self.real = None
        self._places = mask.flatten().nonzero().squeeze(1)  # [taken]

    def take(self, x: Float[Tensor, "batch tokens *rest"]) -> Float[Tensor, "1 taken *rest"]:
        """As `PaddedTokens.take`."""
        return x.flatten(0, 1).index_select(0, self._places).unsqueeze(0)

    def put_back(
        self, taken: Float[Tensor, "1 taken *rest"]
    ) -> Float[Tensor, "batch tokens *rest"]:
        """As `PaddedTokens.put_back`."""
        padded = taken.new_zeros(self.mask.numel(), *taken.shape[2:])
        padded = padded.index_copy(0, self._places, taken[0])
        return torch.unflatten(padded, 0, self.mask.shape)

    def spread(
        self, heads: Float[Tensor, "1 heads taken dim"]
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """As `PaddedTokens.spread`."""
        return self.put_back(heads.transpose(1, 2)).transpose(1, 2)

    def gather(
        self, heads: Float[Tensor, "batch heads tokens dim"]
    ) -> Float[Tensor, "1 heads taken dim"]:
        """As `PaddedTokens.gather`."""
        return self.take(heads.transpose(1, 2)).transpose(1, 2)


class TokenPacking(nn.Module):
    """Chooses what to compute with: real tokens alone, where that pays.

    What is compiled or exported keeps its padding, since its shapes may not follow the data; so do
    accelerators, which would have to wait for the count.

    Args:
        enabled: whether padding is ever left out.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def forward(self, mask: Bool[Tensor, "batch tokens"]) -> PaddedTokens:
        """The tokens to compute with.

        Args:
            mask: True at real tokens.
        """
        if not self.enabled or mask.device.type != "cpu" or torch.compiler.is_compiling():
            return PaddedTokens(mask)
        if int(mask.sum()) >= PACK_BELOW * mask.numel():
            return PaddedTokens(mask)
        return PackedTokens(mask)


@contextmanager
def without_packing(model: nn.Module) -> Iterator[None]:
    """A model computes with its padding inside the block, every row by itself."""
    packings = [part for part in model.modules() if isinstance(part, TokenPacking)]
    before = [packing.enabled for packing in packings]
    for packing in packings:
        packing.enabled = False
    try:
        yield
    finally:
        for packing, enabled in zip(packings, before, strict=True):
            packing.enabled = enabled
