"""Compressed interactions between two sets of tokens: what Wukong and DLF are made of."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TokenLinear(nn.Module):
    """Tokens that are weighted sums of the given ones; no bias, the features stay apart.

    Wukong's linear compression block.
    """

    def __init__(self, in_tokens: int, out_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_tokens, in_tokens))
        """[out_tokens, in_tokens]."""
        nn.init.kaiming_uniform_(self.weight)

    def forward(
        self, x: Float[Tensor, "batch in_tokens dim"]
    ) -> Float[Tensor, "batch out_tokens dim"]:
        """The weighted sums."""
        return torch.matmul(self.weight, x)


def token_projection(in_tokens: int, out_tokens: int) -> nn.Module:
    """Bring tokens to another number; nothing at all when the number is right."""
    return nn.Identity() if in_tokens == out_tokens else TokenLinear(in_tokens, out_tokens)


class FactorizationBlock(nn.Module):
    """All inner products between two sets of tokens, compressed and mapped to tokens.

    Source: Zhang et al., ICML 2024, arXiv:2403.02545, section 3 (there both sets are the same):
        network(LayerNorm(flatten(left (x^T W))))

    `left x^T` holds the products of every pair of tokens. Multiplying `x^T W` first never builds
    it: `rank` columns take the place of `tokens` of them.

    Args:
        left_tokens: tokens of the left set.
        in_tokens: tokens of the right set, which W compresses.
        dim: width of a token.
        rank: columns of W; no more than `in_tokens` are made.
        out_tokens: tokens that the block gives.
        network: makes the network, given the width of its input; it must give out_tokens * dim.
    """

    def __init__(
        self,
        left_tokens: int,
        in_tokens: int,
        dim: int,
        *,
        rank: int,
        out_tokens: int,
        network: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        rank = min(rank, in_tokens)
        self.compress = TokenLinear(in_tokens, rank)
        """W^T."""
        self.norm = nn.LayerNorm(left_tokens * rank)
        self.network = network(left_tokens * rank)
        self._out = (out_tokens, dim)

    def forward(
        self,
        left: Float[Tensor, "batch left_tokens dim"],
        x: Float[Tensor, "batch in_tokens dim"],
    ) -> Float[Tensor, "batch out_tokens dim"]:
        """The block's tokens."""
        products = torch.bmm(left, self.compress(x).mT)  # [batch, left_tokens, rank]
        out = self.network(self.norm(products.flatten(1)))
        return torch.unflatten(out, 1, self._out)
