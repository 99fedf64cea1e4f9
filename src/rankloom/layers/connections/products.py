"""What connections with learned mixing share: products with normalised tokens, and weighted sums.

`RMSNorm(x) W = (x W) / rms(x)`, and LayerNorm is the same with the mean taken out of x, which is to
take it out of W's columns. So no normalised copy of x is made or kept for the backward pass. The
norms have no gain, which would only stand beside W, and no bias.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-6
"""Added to the mean square, or the variance, before its root."""

NormName = Literal["rms", "layer"]
"""RMSNorm or LayerNorm."""


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in float32, or in what it has where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


class RMSProduct(nn.Module):
    """RMSNorm(x) W, in float32; W starts at zero.

    Args:
        in_dim: width of x.
        out_dim: columns of W.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_dim, out_dim))
        """[in_dim, out_dim]."""

    def forward(self, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows out_dim"]:
        """The products."""
        x = wide(x)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        return (x @ wide(self.weight)) * torch.rsqrt(square + EPS)


class LayerNormProduct(nn.Module):
    """LayerNorm(x) W, in float32; W starts at zero.

    Args:
        in_dim: width of x.
        out_dim: columns of W.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_dim, out_dim))
        """[in_dim, out_dim]."""

    def forward(self, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows out_dim"]:
        """The products."""
        x, weight = wide(x), wide(self.weight)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        # The other form of the variance, sum((x - mean)^2), would make and keep a copy of x.
        variance = (square - x.mean(-1, keepdim=True).square()).clamp_min(0)
        return (x @ (weight - weight.mean(0))) * torch.rsqrt(variance + EPS)


def normed_product(norm: NormName, in_dim: int, out_dim: int) -> nn.Module:
    """The product of width `out_dim` with the normalised input."""
    return {"rms": RMSProduct, "layer": LayerNormProduct}[norm](in_dim, out_dim)


def mixture(
    values: Sequence[Float[Tensor, "batch tokens dim"]], weights: Iterable[Tensor]
) -> Float[Tensor, "*streams batch tokens dim"]:
    """The sum of values times weights, one for each, that broadcast against them.

    Term by term: values stacked side by side would be copied, and kept, at every layer again.
    """
    total = None
    for value, weight in zip(values, weights, strict=True):
        factor = weight.to(value.dtype)
        total = value * factor if total is None else torch.addcmul(total, value, factor)
    if total is None:
        raise ValueError("a mixture needs a value; got none")
    return total
