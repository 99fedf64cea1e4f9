"""Hyper-connections: several residual streams, and what each layer reads from and writes to them.

Sources: Zhu et al., ICLR 2025, arXiv:2409.19606 (HC); Xie et al., arXiv:2512.24880 (mHC); the
    public package hyper-connections, for starting values.
Equations, X the n streams [n, dim] of one token, f the layer's update:
    X' = H_res X + H_post^T f(H_pre X)
    HC    H = a tanh(theta LayerNorm(X)^T) + b, every row of X by itself; static HC: H = b
    mHC   h = a (RMSNorm(vec X) phi) + b,  H_pre = sigmoid(h_pre),  H_post = 2 sigmoid(h_post),
          H_res = Sinkhorn(h_res): rows and columns of positive numbers that sum to one
The input is repeated in all streams; the output is their sum, or their mean.
Differs from the papers: the norms have no gain, which phi and theta would take up, and LayerNorm
    has no bias.
Not known: the starting biases of mHC. Here it starts as the identity connection on equal streams:
    H_pre = 1/n, H_post = 1 and H_res = I up to exp(-8).
"""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.connections.hyper_coefficients import (
    DynamicCoefficients,
    ManifoldCoefficients,
    Mapping,
    Mix,
    StaticCoefficients,
    Streams,
)
from rankloom.layers.connections.layers import LastTokens, Layer, Tokens, last_tokens
from rankloom.layers.connections.products import NormName, without_autocast

StreamPool = Literal["sum", "mean"]
"""How streams become the output."""

LastStreams = Float[Tensor, "batch last_tokens streams dim"]
"""The streams of as many tokens as a layer's update has."""


class HyperConnections(nn.Module):
    """The loop over layers with several residual streams.

    Args:
        dim: width of a token.
        num_streams: streams.
        coefficients: for every layer a module from the streams to H_pre above H_res, and H_post.
        pool: how streams become the output.
    """

    def __init__(
        self,
        dim: int,
        num_streams: int,
        coefficients: Sequence[nn.Module],
        *,
        pool: StreamPool = "sum",
    ) -> None:
        super().__init__()
        self.out_dim = dim
        self.num_streams = num_streams
        self.coefficients = nn.ModuleList(coefficients)
        self.pool = {"sum": torch.sum, "mean": torch.mean}[pool]

    def forward(self, x: Tokens, layers: Sequence[Layer]) -> LastTokens:
        """The stack's output."""
        streams = x.unsqueeze(2).expand(-1, -1, self.num_streams, -1)
        for layer, coefficients in zip(layers, self.coefficients, strict=True):
            streams = hyper_step(streams, layer, coefficients)
        return self.pool(streams, 2)


def hyper_step(streams: Streams, layer: Layer, coefficients: nn.Module) -> LastStreams:
    """One layer between residual streams.

    Args:
        streams: all tokens' streams.
        layer: reads one mix of every token's streams, and gives an update for all or the last ones.
        coefficients: from the streams to H_pre above H_res, and H_post.

    Returns:
        The streams of the tokens that have an update.
    """
    with without_autocast(streams):  # the streams would be rounded anew at every layer
        mix, post = coefficients(streams)
        # One product makes what the layer reads and what stays beside it.
        mixed = _mixed(mix.to(streams.dtype), streams)
    update = layer(mixed[:, :, 0])
    return torch.addcmul(
        last_tokens(mixed[:, :, 1:], update),
        last_tokens(post, update).to(streams.dtype).unsqueeze(-1),
        update.to(streams.dtype).unsqueeze(2),
    )


def _mixed(mix: Mix, streams: Streams) -> Float[Tensor, "batch tokens 1+streams dim"]:
    """The product of every token's two small matrices."""
    if torch.compiler.is_compiling():  # one pass, together with what stands before and behind it
        return (mix.unsqueeze(-1) * streams.unsqueeze(2)).sum(3)
    return mix @ streams


def static_hyper_connections(
    dim: int, num_layers: int, *, num_streams: int = 4, pool: StreamPool = "sum"
) -> HyperConnections:
    """Static hyper-connections.

    Args:
        dim: width of a token.
        num_layers: layers.
        num_streams: residual streams.
        pool: how streams become the output.
    """
    coefficients = [StaticCoefficients(num_streams, layer) for layer in range(num_layers)]
    return HyperConnections(dim, num_streams, coefficients, pool=pool)


def dynamic_hyper_connections(
    dim: int,
    num_layers: int,
    *,
    num_streams: int = 4,
    norm: NormName = "layer",
    pool: StreamPool = "sum",
) -> HyperConnections:
    """Dynamic hyper-connections.

    Args:
        dim: width of a token.
        num_layers: layers.
        num_streams: residual streams.
        norm: what normalises a stream.
        pool: how streams become the output.
    """
    coefficients = [
        DynamicCoefficients(dim, num_streams, layer, norm=norm) for layer in range(num_layers)
    ]
    return HyperConnections(dim, num_streams, coefficients, pool=pool)


def manifold_hyper_connections(
    dim: int,
    num_layers: int,
    *,
    num_streams: int = 4,
    num_steps: int = 20,
    fixed: Collection[Mapping] = (),
    pool: StreamPool = "sum",
) -> HyperConnections:
    """Manifold-constrained hyper-connections.

    Args:
        dim: width of a token.
        num_layers: layers.
        num_streams: residual streams.
        num_steps: Sinkhorn's steps.
        fixed: what is not learned, as in `ManifoldCoefficients`.
        pool: how streams become the output.
    """
    coefficients = [
        ManifoldCoefficients(dim, num_streams, num_steps=num_steps, fixed=fixed)
        for _ in range(num_layers)
    ]
    return HyperConnections(dim, num_streams, coefficients, pool=pool)
