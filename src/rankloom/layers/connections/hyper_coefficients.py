"""Coefficients of hyper-connections: what a layer reads of the streams, and how it writes to them.

Sources, equations and open points: `hyper.py`.
"""

import math
from collections.abc import Callable, Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.connections.products import NormName, RMSProduct, normed_product, wide
from rankloom.layers.sinkhorn import sinkhorn_of_many

Mapping = Literal["pre", "post", "res"]
"""What a layer reads of the streams, what it writes to them, and how they mix beside it."""

Streams = Float[Tensor, "batch tokens streams dim"]
Mix = Float[Tensor, "batch tokens 1+streams streams"]
"""H_pre, and below it the rows of H_res."""
Post = Float[Tensor, "batch tokens streams"]
"""H_post."""

DYNAMIC_SCALE = 0.01
"""Where the factors a of what depends on the input start."""


class StaticCoefficients(nn.Module):
    """Learned numbers.

    Args:
        num_streams: streams.
        layer: the layer's number; it starts reading one stream, another than its neighbours.
    """

    def __init__(self, num_streams: int, layer: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(_plain_start(num_streams, layer))
        """[1 + streams + 1, streams]: H_pre, the rows of H_res, H_post."""

    def forward(self, streams: Streams) -> tuple[Mix, Post]:
        """The same coefficients for every token."""
        every = self.bias.expand(*streams.shape[:2], -1, -1)
        return every[:, :, :-1], every[:, :, -1]


class DynamicCoefficients(nn.Module):
    """Learned numbers, and beside them what every stream says about itself.

    Args:
        dim: width of a token.
        num_streams: streams.
        layer: the layer's number; it starts reading one stream, another than its neighbours.
        norm: what normalises a stream.
    """

    def __init__(self, dim: int, num_streams: int, layer: int, *, norm: NormName = "layer") -> None:
        super().__init__()
        self.bias = nn.Parameter(_plain_start(num_streams, layer))
        """[1 + streams + 1, streams]: H_pre, the rows of H_res, H_post."""
        self.product = normed_product(norm, dim, num_streams + 2)
        """theta, in the order of `bias`."""
        self.scale = nn.Parameter(torch.full((3,), DYNAMIC_SCALE))
        """a of H_pre, of H_res and of H_post."""

    def forward(self, streams: Streams) -> tuple[Mix, Post]:
        """Every token's coefficients, in float32."""
        pre, res, post = wide(self.scale).unbind()
        scale = torch.stack([pre, *[res] * streams.shape[2], post])
        dynamic = torch.tanh(self.product(streams)) * scale  # [batch, tokens, streams, 2 + streams]
        every = dynamic.transpose(2, 3) + self.bias
        return every[:, :, :-1], every[:, :, -1]


class ManifoldCoefficients(nn.Module):
    """Coefficients made from all streams together, none negative, H_res near doubly stochastic.

    Args:
        dim: width of a token.
        num_streams: streams; at least 2.
        num_steps: Sinkhorn's steps.
        fixed: what is not learned but fixed: `pre` at 1/n, `post` at 1, `res` at the identity.

    Raises:
        ValueError: fewer than two streams, or nothing is learned.
    """

    def __init__(
        self,
        dim: int,
        num_streams: int,
        *,
        num_steps: int = 20,
        fixed: Collection[Mapping] = (),
    ) -> None:
        super().__init__()
        if num_streams < 2:
            raise ValueError(f"num_streams must be at least 2; got {num_streams}")
        if set(fixed) == {"pre", "post", "res"}:
            raise ValueError(
                "at least one of pre, post and res must be learned; got all three fixed, which is "
                "the identity connection"
            )

        ones, eye = torch.ones(num_streams), torch.eye(num_streams)
        parts = {
            "pre": _Constrained(ones * -math.log(num_streams - 1), torch.sigmoid),
            "res": _Constrained(8 * eye - 8, _Sinkhorn(num_steps)),
            "post": _Constrained(ones * 0, _twice_sigmoid),
        }
        values = {"pre": ones / num_streams, "res": eye, "post": ones}
        self.parts = nn.ModuleDict(
            {name: _Fixed(values[name]) if name in fixed else part for name, part in parts.items()}
        )
        self.widths = [0 if name in fixed else part.bias.numel() for name, part in parts.items()]
        self.product = RMSProduct(num_streams * dim, sum(self.widths))
        """phi, for what is learned."""

    def forward(self, streams: Streams) -> tuple[Mix, Post]:
        """Every token's coefficients, in float32."""
        pieces = self.product(streams.flatten(2)).split(self.widths, -1)
        pre, res, post = (
            part(piece) for part, piece in zip(self.parts.values(), pieces, strict=True)
        )
        return torch.cat([pre.unsqueeze(2), res], 2), post


class _Constrained(nn.Module):
    """constrain(a * logits + b)."""

    def __init__(self, bias: Tensor, constrain: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)
        self.scale = nn.Parameter(torch.tensor(DYNAMIC_SCALE))
        self.constrain = constrain

    def forward(
        self, logits: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens *shape"]:
        shaped = torch.unflatten(logits, -1, self.bias.shape)
        return self.constrain(self.scale * shaped + self.bias)


class _Fixed(nn.Module):
    """A value for every token, whatever the logits, of which there are none."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch tokens 0"]
    ) -> Float[Tensor, "batch tokens *shape"]:
        return self.value.expand(*logits.shape[:2], *self.value.shape)


class _Sinkhorn(nn.Module):
    """Rows and columns that sum to one."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps

    def forward(
        self, logits: Float[Tensor, "batch tokens streams streams"]
    ) -> Float[Tensor, "batch tokens streams streams"]:
        return sinkhorn_of_many(logits, self.num_steps)


def _twice_sigmoid(logits: Tensor) -> Tensor:
    return 2 * torch.sigmoid(logits)


def _plain_start(num_streams: int, layer: int) -> Float[Tensor, "rows streams"]:
    """One stream is read, all stay as they are, and the update goes to all."""
    if num_streams < 1:
        raise ValueError(f"num_streams must be at least 1; got {num_streams}")
    eye = torch.eye(num_streams)
    return torch.cat([eye[layer % num_streams].unsqueeze(0), eye, torch.ones(1, num_streams)])
