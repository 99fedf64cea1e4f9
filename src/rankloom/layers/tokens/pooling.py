"""Tokens to one vector."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MeanTokens(nn.Module):
    """The mean of all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """The vector."""
        return x.mean(1)


class SumTokens(nn.Module):
    """The sum of all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """The vector."""
        return x.sum(1)


class JoinedTokens(nn.Module):
    """All tokens side by side."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.out_dim = dim * num_tokens

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch width"]:
        """The vector."""
        return x.flatten(1)


class OneToken(nn.Module):
    """One token.

    Args:
        dim: width of a token.
        num_tokens: tokens.
        index: its place; negative: from the end.

    Raises:
        ValueError: there is no such token.
    """

    def __init__(self, dim: int, num_tokens: int, index: int) -> None:
        super().__init__()
        if not -num_tokens <= index < num_tokens:
            raise ValueError(
                f"index must be from {-num_tokens} to {num_tokens - 1}; got index={index} for "
                f"{num_tokens} tokens"
            )
        self.out_dim = dim
        self.index = index

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """The vector."""
        return torch.select(x, 1, self.index)
