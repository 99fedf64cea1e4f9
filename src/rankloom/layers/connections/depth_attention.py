"""Attention over depth: what a layer reads is a weighted sum of what earlier blocks gave.

Source: Attention Residuals, arXiv:2603.15031, section on the block form; DeRes, arXiv:2606.07980.
Equations, for the values B_1 ... B_N of one token and layer l:
    s_n = w_l . RMSNorm(B_n),  a = softmax(s) or, entry by entry, SiLU(s),  d_l = sum_n a_n B_n

A query w_l that is learned as it is can be scored against a block as soon as that is complete, and
so can all queries still to come: one matrix product per block, its values normalised once.
`RMSNorm(B) = g * B / rms(B)`, so w . RMSNorm(B) = ((w * g) . B) / rms(B), and no normalised copy is
ever made.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.connections.layers import Tokens
from rankloom.layers.connections.products import EPS, wide

DepthActivation = Literal["silu", "softmax", "sigmoid", "relu", "clipped_silu"]
"""What turns scores into weights; `clipped_silu` is SiLU without its negative part."""

KeyGain = Literal["per_layer", "shared", "none"]
"""Whose gains normalised values are multiplied with, before they meet a query."""


class Block(NamedTuple):
    """What one block of layers gave, and what queries need of it."""

    value: Tokens
    """The block's outputs, compressed."""
    inverse_rms: Float[Tensor, "batch tokens 1"]
    """One over the root mean square of the value."""
    scores: Float[Tensor, "batch tokens layers*depth_heads"] | None
    """Scores for layers to come, where they are known when the value is; heads run fastest."""
    first: int
    """The first layer that has scores."""

    def last(self, num_tokens: int) -> "Block":
        """The last tokens of the block."""
        skipped = self.value.shape[1] - num_tokens
        if not skipped:
            return self
        scores = None if self.scores is None else self.scores[:, skipped:]
        return Block(self.value[:, skipped:], self.inverse_rms[:, skipped:], scores, self.first)


@runtime_checkable
class Queries(Protocol):
    """Scores blocks for layers."""

    def block(self, value: Tokens, first: int, num_layers: int) -> Block:
        """A value that the `num_layers` layers from `first` on will be scored against."""

    def __call__(
        self, layer: int, x: Tokens, blocks: Sequence[Block]
    ) -> Float[Tensor, "batch tokens depth_heads blocks"]:
        """The scores of blocks for a layer that read `x`."""


def inverse_rms(value: Tokens) -> Float[Tensor, "batch tokens 1"]:
    """1 / sqrt(mean of squares + EPS), in float32 at least."""
    return torch.rsqrt(wide(value).square().mean(-1, keepdim=True) + EPS)


class _Gains(nn.Module):
    """Queries times the gains of the keys' norm."""

    def __init__(self, dim: int, num_layers: int, key_gain: KeyGain) -> None:
        super().__init__()
        rows = {"per_layer": num_layers, "shared": 1, "none": 0}[key_gain]
        self.gain = nn.Parameter(torch.ones(rows, dim)) if rows else None

    def forward(
        self, queries: Float[Tensor, "layers dim"], first: int
    ) -> Float[Tensor, "layers dim"]:
        if self.gain is None:
            return queries
        if self.gain.shape[0] == 1:
            return queries * self.gain
        return queries * self.gain[first : first + queries.shape[0]]


class StaticQueries(nn.Module):
    """A learned query for every layer.

    Args:
        dim: width of a value.
        num_layers: layers.
        num_heads: depth heads; each scores and weighs its own piece of a value. Divides `dim`.
        key_gain: the gains of the keys' norm.
        scaled: whether scores are divided by the square root of a head's width.
        std: standard deviation of the queries' starting values.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        *,
        num_heads: int = 1,
        key_gain: KeyGain = "per_layer",
        scaled: bool = False,
        std: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = _head_scale(dim, num_heads, scaled)
        self.weight = nn.Parameter(torch.empty(num_layers, dim).normal_(std=std))
        """[layers, dim]."""
        self.gains = _Gains(dim, num_layers, key_gain)

    def block(self, value: Tokens, first: int, num_layers: int) -> Block:
        """The value with its scores for every layer."""
        queries = self.gains(self.weight[first : first + num_layers], first) * self.scale
        if self.num_heads > 1:
            # [layers * heads, dim]: every head's query is zero outside its piece.
            pieces = torch.eye(self.num_heads, device=value.device, dtype=queries.dtype)
            pieces = pieces.repeat_interleave(value.shape[-1] // self.num_heads, dim=1)
            queries = (queries[:, None] * pieces).flatten(0, 1)
        norm = inverse_rms(value)
        return Block(value, norm, functional.linear(value, queries) * norm, first)

    def forward(
        self, layer: int, x: Tokens, blocks: Sequence[Block]
    ) -> Float[Tensor, "batch tokens depth_heads blocks"]:
        """The scores."""
        scores = []
        for block in blocks:
            assert block.scores is not None  # `block` has made them
            start = (layer - block.first) * self.num_heads
            scores.append(block.scores[..., start : start + self.num_heads])
        return torch.stack(scores, dim=-1)


class InputQueries(nn.Module):
    """Queries made from what a layer read: W_l x.

    Args:
        in_dim: width of what a layer read.
        dim: width of a value.
        num_layers: layers.
        num_heads: depth heads; divides `dim`.
        key_gain: the gains of the keys' norm.
        scaled: whether scores are divided by the square root of a head's width.
        std: standard deviation of the starting values of W.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        num_layers: int,
        *,
        num_heads: int = 1,
        key_gain: KeyGain = "per_layer",
        scaled: bool = False,
        std: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = _head_scale(dim, num_heads, scaled)
        self.weight = nn.Parameter(torch.empty(num_layers, dim, in_dim).normal_(std=std))
        """[layers, dim, in_dim]."""
        self.gains = _Gains(dim, num_layers, key_gain)

    def block(self, value: Tokens, first: int, num_layers: int) -> Block:
        """The value and what normalises it."""
        return Block(value, inverse_rms(value), None, first)

    def forward(
        self, layer: int, x: Tokens, blocks: Sequence[Block]
    ) -> Float[Tensor, "batch tokens depth_heads blocks"]:
        """The scores."""
        gains = self.gains(self.weight.new_ones(1, self.weight.shape[1]), layer) * self.scale
        queries = functional.linear(x, self.weight[layer]) * gains  # [batch, tokens, dim]
        scores = []
        for block in blocks:
            products = torch.unflatten(queries * block.value, -1, (self.num_heads, -1))
            scores.append(products.sum(-1) * block.inverse_rms)
        return torch.stack(scores, dim=-1)


class DepthWeights(nn.Module):
    """Scores of one layer to weights of blocks; a module of its own, so that it can be watched.

    Args:
        activation: what turns scores into weights.
    """

    def __init__(self, activation: DepthActivation) -> None:
        super().__init__()
        self.activate = _ACTIVATIONS[activation]

    def forward(
        self, scores: Float[Tensor, "batch tokens depth_heads blocks"]
    ) -> Float[Tensor, "batch tokens depth_heads blocks"]:
        """The weights."""
        return self.activate(scores)


def weighted_sum(
    weights: Float[Tensor, "batch tokens depth_heads blocks"], values: Sequence[Tokens]
) -> Tokens:
    """The values' weighted sum; every head weighs its own piece of them."""
    num_heads = weights.shape[2]
    total = None
    for weight, value in zip(weights.unbind(-1), values, strict=True):
        # One head needs no reshaping: its weight is [batch, tokens, 1].
        piece = value if num_heads == 1 else torch.unflatten(value, -1, (num_heads, -1))
        factor = (weight if num_heads == 1 else weight[..., None]).to(value.dtype)
        total = factor * piece if total is None else torch.addcmul(total, factor, piece)
    assert total is not None
    return total if num_heads == 1 else total.flatten(-2)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _clipped_silu(scores: Tensor) -> Tensor:
    return functional.silu(scores).relu()


_ACTIVATIONS: dict[DepthActivation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "softmax": _softmax,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "clipped_silu": _clipped_silu,
}


def _head_scale(dim: int, num_heads: int, scaled: bool) -> float:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}")
    return (dim // num_heads) ** -0.5 if scaled else 1.0
