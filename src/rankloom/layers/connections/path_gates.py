"""How DeRes's two paths become one: r, the identity path, and d, the block path.

Source: DeRes, arXiv:2606.07980. A gate gives g in (0, 1), and x = g * r + (1 - g) * d. The paper
has a gate for every hidden dimension and does not say what computes it. The diagonal form is ours;
it keeps the connection under the paper's five percent of operations, which a dense one does not.
"""

import torch
from torch import nn

from rankloom.layers.connections.layers import Tokens


class DiagonalGate(nn.Module):
    """sigmoid(a * r + c * d + b), element by element; a and c start at zero.

    Args:
        dim: width of both paths.
        bias: where b starts.
    """

    def __init__(self, dim: int, bias: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(dim))
        self.c = nn.Parameter(torch.zeros(dim))
        self.b = nn.Parameter(torch.full((dim,), bias))

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The gate, as wide as the paths."""
        return torch.addcmul(torch.addcmul(self.b, self.a, r), self.c, d).sigmoid()


class LinearGate(nn.Module):
    """sigmoid(W [r; d] + b); W starts at zero.

    Args:
        dim: width of both paths.
        bias: where b starts.
        out_dim: `dim`, or 1 for one gate per token.
    """

    def __init__(self, dim: int, bias: float, out_dim: int) -> None:
        super().__init__()
        self.joint = _zero_linear(2 * dim, out_dim, bias)

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The gate, `out_dim` wide."""
        return self.joint(torch.cat([r, d], dim=-1)).sigmoid()


class LowRankGate(nn.Module):
    """sigmoid(U V [r; d] + b); U starts at zero.

    Args:
        dim: width of both paths.
        bias: where b starts.
        rank: columns of U.
    """

    def __init__(self, dim: int, bias: float, rank: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(2 * dim, rank, bias=False)
        self.expand = _zero_linear(rank, dim, bias)

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The gate, as wide as the paths."""
        return self.expand(self.reduce(torch.cat([r, d], dim=-1))).sigmoid()


class StaticGate(nn.Module):
    """sigmoid(b): the same for every token.

    Args:
        dim: width of both paths.
        bias: where b starts.
    """

    def __init__(self, dim: int, bias: float) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.full((dim,), bias))

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The gate, as wide as the paths."""
        return self.b.sigmoid().expand_as(r)


class GatedPaths(nn.Module):
    """g * r + (1 - g) * d.

    Args:
        gate: called with (r, d), gives g.
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The fused tokens."""
        return torch.lerp(d, r, self.gate(r, d).to(r.dtype))


class SummedPaths(nn.Module):
    """r + d."""

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The sum."""
        return r + d


class IdentityPathOnly(nn.Module):
    """r, without the block path."""

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The identity path."""
        return r


class BlockPathOnly(nn.Module):
    """d, without the identity path."""

    def forward(self, r: Tokens, d: Tokens) -> Tokens:
        """The block path."""
        return d


def _zero_linear(in_features: int, out_features: int, bias: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer
