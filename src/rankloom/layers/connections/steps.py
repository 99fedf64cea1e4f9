"""Residual streams one sublayer at a time, for models that decide what runs next.

`HyperConnections` and `Identity` run a whole stack; here a step stands around one sublayer f, with

    one stream     x' = x + f(x)
    n streams      X' = H_res X + H_post^T f(H_pre X), dynamic, with RMSNorm: `hyper.py`

At the start H_pre reads one stream, H_res is the identity and H_post is one: with all streams equal
that is one stream.
"""

from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.connections.hyper import hyper_step
from rankloom.layers.connections.hyper_coefficients import DynamicCoefficients
from rankloom.layers.connections.layers import Layer, last_tokens
from rankloom.layers.connections.products import wide

Streams = Float[Tensor, "batch tokens *streams_and_dim"]
"""Residual streams of every token: [batch, tokens, dim] if there is one, else
[batch, tokens, streams, dim]."""
LastStreams = Float[Tensor, "batch last_tokens *streams_and_dim"]
"""The streams of as many tokens as a sublayer's update has."""


class PlainStep(nn.Module):
    """x + f(x)."""

    def forward(self, streams: Streams, layer: Layer) -> LastStreams:
        """The streams after a sublayer, of the tokens that it gives an update for."""
        update = layer(streams)
        return last_tokens(streams, update) + update


class HyperStep(nn.Module):
    """Dynamic hyper-connections around one sublayer.

    Args:
        dim: width of a token.
        num_streams: streams.
        number: the sublayer's number; it starts reading one stream, another than its neighbours.
    """

    def __init__(self, dim: int, num_streams: int, number: int) -> None:
        super().__init__()
        self.coefficients = DynamicCoefficients(dim, num_streams, number, norm="rms")

    def forward(self, streams: Streams, layer: Layer) -> LastStreams:
        """The streams after a sublayer, of the tokens that it gives an update for."""
        return hyper_step(streams, layer, self.coefficients)


class OneStream:
    """The plain residual: a token's only stream is the token."""

    def build_step(self, dim: int, number: int) -> nn.Module:
        """The step around the sublayer of a number, over tokens of width `dim`."""
        return PlainStep()

    def enter(self, x: Float[Tensor, "batch tokens dim"]) -> Streams:
        """The streams of tokens, not rounded below float32."""
        return wide(x)

    def leave(self, streams: Streams) -> Float[Tensor, "batch tokens dim"]:
        """The tokens of streams."""
        return streams


class SeveralStreams:
    """Residual streams that start as copies of the token and end as their mean.

    Args:
        num_streams: streams.
    """

    def __init__(self, num_streams: int) -> None:
        self.num_streams = num_streams

    def build_step(self, dim: int, number: int) -> nn.Module:
        """The step around the sublayer of a number, over tokens of width `dim`."""
        return HyperStep(dim, self.num_streams, number)

    def enter(self, x: Float[Tensor, "batch tokens dim"]) -> Streams:
        """The streams of tokens."""
        return wide(x).unsqueeze(2).expand(-1, -1, self.num_streams, -1)

    def leave(self, streams: Streams) -> Float[Tensor, "batch tokens dim"]:
        """The tokens of streams."""
        return streams.mean(2)


def residual_streams(num_streams: int) -> OneStream | SeveralStreams:
    """What makes steps between so many streams.

    Raises:
        ValueError: fewer than one stream.
    """
    if num_streams < 1:
        raise ValueError(f"num_streams must be at least 1; got {num_streams}")
    return OneStream() if num_streams == 1 else SeveralStreams(num_streams)
