"""Networks over tokens: the same weights for every token, or weights of each token's own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import ActivationName, activation_builder, linear


class PerTokenLinear(nn.Module):
    """A linear layer of its own for every token, all in one batched matrix product.

    Args:
        num_tokens: tokens.
        in_dim: width of a token.
        out_dim: width of a token after it.
        bias: whether there is a bias.
    """

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, in_dim, out_dim))
        """[tokens, in_dim, out_dim]; xavier-normal for each token."""
        for weight in self.weight.detach():
            nn.init.xavier_normal_(weight)
        self.bias = nn.Parameter(torch.zeros(num_tokens, 1, out_dim)) if bias else None
        """[tokens, 1, out_dim]."""

    def forward(self, x: Float[Tensor, "batch tokens in_dim"]) -> Float[Tensor, "batch tokens out"]:
        """The tokens after it."""
        by_token = x.transpose(0, 1)  # [tokens, batch, in_dim]
        if self.bias is None:
            out = torch.bmm(by_token, self.weight).transpose(0, 1)
        else:
            out = torch.baddbmm(self.bias, by_token, self.weight).transpose(0, 1)
        if torch.compiler.is_exporting():
            # In this layout one row is contiguous and two are not: an exported model that later
            # asked which it is would refuse one row.
            return out.clone(memory_format=torch.contiguous_format)
        return out


def token_linear(
    num_tokens: int | None, in_dim: int, out_dim: int, *, bias: bool = True
) -> nn.Module:
    """A linear layer over tokens: one for each of `num_tokens`, or, with None, one for all."""
    if num_tokens is None:
        return linear(in_dim, out_dim, bias=bias)
    return PerTokenLinear(num_tokens, in_dim, out_dim, bias=bias)


class TokenMLP(nn.Module):
    """W2 act(W1 x + b1) + b2 over every token.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        hidden_dim: width of the hidden layer.
        activation: its activation.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self,
        num_tokens: int | None,
        dim: int,
        hidden_dim: int,
        *,
        activation: ActivationName = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.expand = token_linear(num_tokens, dim, hidden_dim)
        self.activation = activation_builder(activation)(hidden_dim)
        self.dropout = Dropout(dropout)
        self.reduce = token_linear(num_tokens, hidden_dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The tokens after it."""
        return self.reduce(self.dropout(self.activation(self.expand(x))))


class TokenSwiGLU(nn.Module):
    """W_down (SiLU(W_gate x) * (W_up x)) over every token, all with biases.

    Source: Shazeer, 2020, arXiv:2002.05202.

    Args:
        num_tokens: tokens, each with weights of its own; None: all share theirs.
        dim: width of a token.
        hidden_dim: width of the hidden layer.
        dropout: share of hidden units dropped in training.
        down_scale: the starting values of W_down are this much smaller than usual.
    """

    def __init__(
        self,
        num_tokens: int | None,
        dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        down_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.gate = token_linear(num_tokens, dim, hidden_dim)
        self.up = token_linear(num_tokens, dim, hidden_dim)
        self.dropout = Dropout(dropout)
        self.down = token_linear(num_tokens, hidden_dim, dim)
        with torch.no_grad():
            next(self.down.parameters()).mul_(down_scale)  # the weight; the bias is zero

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The tokens after it."""
        return self.down(self.dropout(functional.silu(self.gate(x)) * self.up(x)))
