"""Settings of the connections that attend over depth: attention residuals and DeRes.

What the papers leave open stands in `rankloom.ranking.deres`.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from rankloom.config import Config
from rankloom.layers.connections.attention_residual import AttentionResidual
from rankloom.layers.connections.block_path import (
    BlockPath,
    Compression,
    NoBlockPath,
    ValueScale,
)
from rankloom.layers.connections.depth_attention import (
    DepthActivation,
    InputQueries,
    KeyGain,
    Queries,
    StaticQueries,
)
from rankloom.layers.connections.deres import FullDeRes, HalfDeRes
from rankloom.layers.connections.layers import Connection
from rankloom.layers.connections.path_gates import (
    BlockPathOnly,
    DiagonalGate,
    GatedPaths,
    IdentityPathOnly,
    LinearGate,
    LowRankGate,
    StaticGate,
    SummedPaths,
)
from rankloom.layers.connections.skips import SkipKind, build_skips
from rankloom.ranking.connection import ConnectionConfig

START_STD = 0.02
"""Standard deviation of queries that may not start at zero."""


class DepthConfig(ConnectionConfig):
    """Blocks of layers, and attention to them."""

    block_size: int = Field(2, ge=1)
    """Layers of a block (or sublayers, where the connection stands around those)."""
    activation: DepthActivation = "softmax"
    """What turns scores into weights."""
    compression: Compression = "sum"
    """What summarises a block's outputs; `linear` is a learned map of their sum."""
    running_block: bool = True
    """Whether a layer also attends to the block it belongs to, as far as that is."""
    query: Literal["static", "input"] = "static"
    """Queries that are learned as they are, or made from what a layer read."""
    query_std: float | None = Field(None, ge=0)
    """Standard deviation that queries start with; none: 0, or .02 where queries at zero would never
    learn."""
    num_depth_heads: int = Field(1, gt=0)
    """Heads of the attention over depth."""
    key_gain: KeyGain = "per_layer"
    """Whose gains normalised keys are multiplied with."""
    scaled: bool = False
    """Divide scores by the square root of a depth head's width."""
    value_scale: ValueScale = "plain"
    """Values as they are, normalised as keys are, or divided by the number of blocks."""

    @property
    def dead_at_zero(self) -> bool:
        """Whether queries at zero, all of whose scores are zero, receive no gradient."""
        return self.activation in {"relu", "clipped_silu"}

    def build_path(self, in_dim: int, dim: int, num_layers: int) -> BlockPath:
        """The blocks of values `dim` wide, for layers that read tokens `in_dim` wide."""
        std = self.query_std
        if std is None:
            std = START_STD if self.dead_at_zero else 0.0
        make: Callable[..., Queries] = StaticQueries
        if self.query == "input":
            make = partial(InputQueries, in_dim)
        queries = make(
            dim,
            num_layers,
            num_heads=self.num_depth_heads,
            key_gain=self.key_gain,
            scaled=self.scaled,
            std=std,
        )
        return BlockPath(
            queries,
            dim,
            num_layers,
            block_size=self.block_size,
            compression=self.compression,
            running_block=self.running_block,
            activation=self.activation,
            value_scale=self.value_scale,
        )


class AttentionResidualConfig(DepthConfig):
    """AttnRes: layers read attention over blocks. With `block_size` 1 it is the full form."""

    kind: Literal["attention_residual"] = "attention_residual"
    per_sublayer: bool = True

    @property
    def dead_at_zero(self) -> bool:
        """As `DepthConfig.dead_at_zero`; with SiLU every layer would read zeros for ever."""
        return self.activation == "silu" or super().dead_at_zero

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.running_block:
            raise ValueError(
                "attention residuals have no other path: with running_block=false nobody would "
                "read the last block"
            )
        return self

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return AttentionResidual(dim, self.build_path(dim, dim, num_layers))


class _Gate(Config):
    bias: float | None = None
    """Where the gate's bias starts; none: 2 where nothing scales the identity path, 4 where the
    gate does so in every layer."""

    def build(self, dim: int, default_bias: float) -> nn.Module:
        """What joins paths of width `dim`."""
        return GatedPaths(self.gate(dim, default_bias if self.bias is None else self.bias))

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        raise NotImplementedError


class Diagonal(_Gate):
    """A gate for every dimension, from the same dimension of both paths."""

    kind: Literal["diagonal"] = "diagonal"

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        return DiagonalGate(dim, bias)


class LowRank(_Gate):
    """A gate for every dimension, from both paths through a narrow layer."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(8, gt=0)
    """Width of that layer."""

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        return LowRankGate(dim, bias, self.rank)


class Dense(_Gate):
    """A gate for every dimension, from all of both paths."""

    kind: Literal["dense"] = "dense"

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        return LinearGate(dim, bias, dim)


class Scalar(_Gate):
    """One gate for a token, from all of both paths."""

    kind: Literal["scalar"] = "scalar"

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        return LinearGate(dim, bias, 1)


class Static(_Gate):
    """A gate for every dimension, the same for every token."""

    kind: Literal["static"] = "static"

    def gate(self, dim: int, bias: float) -> nn.Module:
        """The gate."""
        return StaticGate(dim, bias)


class Add(Config):
    """The sum of both paths."""

    kind: Literal["add"] = "add"

    def build(self, dim: int, default_bias: float) -> nn.Module:
        """What joins the paths."""
        return SummedPaths()


class IdentityOnly(Config):
    """The identity path alone; settings of blocks have no effect then.

    With half width the other half of every layer's output is read by nobody.
    """

    kind: Literal["identity_only"] = "identity_only"

    def build(self, dim: int, default_bias: float) -> nn.Module:
        """What joins the paths."""
        return IdentityPathOnly()


class BlockOnly(Config):
    """The block path alone."""

    kind: Literal["block_only"] = "block_only"

    def build(self, dim: int, default_bias: float) -> nn.Module:
        """What joins the paths."""
        return BlockPathOnly()


Fusion = Annotated[
    Diagonal | LowRank | Dense | Scalar | Static | Add | IdentityOnly | BlockOnly,
    Field(discriminator="kind"),
]


class Half(Config):
    """Tokens split by channel: half for the identity path, half for the blocks."""

    kind: Literal["half"] = "half"
    chained: bool = False
    """Whether the identity path goes on from a layer's fused output instead of its own."""


class Full(Config):
    """Whole tokens for both paths; takes any stack as it is."""

    kind: Literal["full"] = "full"


class DeResConnection(DepthConfig):
    """DeRes: an identity path and a block path, joined by a gate in every layer."""

    kind: Literal["deres"] = "deres"
    activation: DepthActivation = "silu"
    width: Annotated[Half | Full, Field(discriminator="kind")] = Half()
    """What of a token each path has: half or full."""
    fusion: Fusion = Diagonal()
    """What joins the paths: diagonal, low_rank, dense, scalar or static gates, add, identity_only
    or block_only."""
    skip: SkipKind = "identity"
    """The identity path's own map: none, or a learned weight that starts as one."""

    @property
    def dead_at_zero(self) -> bool:
        """As `DepthConfig.dead_at_zero`; the block path alone would also give zeros for ever."""
        alone = self.fusion.kind == "block_only" and self.activation == "silu"
        return alone or super().dead_at_zero

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fusion.kind == "block_only" and self.skip != "identity":
            raise ValueError(
                f"with fusion block_only there is no identity path to learn a skip of; "
                f"got skip={self.skip}"
            )
        if self.fusion.kind == "block_only" and not self.running_block:
            raise ValueError(
                "with fusion block_only and running_block=false nobody would read the last block"
            )
        return self

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        path_dim = dim // 2 if isinstance(self.width, Half) else dim
        pure = isinstance(self.width, Half) and not self.width.chained
        fusions = [self.fusion.build(path_dim, 2.0 if pure else 4.0) for _ in range(num_layers)]
        skips = build_skips(self.skip, path_dim, num_layers)
        path: BlockPath | NoBlockPath = NoBlockPath()
        if self.fusion.kind != "identity_only":
            path = self.build_path(dim, path_dim, num_layers)
        if isinstance(self.width, Half):
            return HalfDeRes(dim, path, fusions, skips, chained=self.width.chained)
        return FullDeRes(dim, path, fusions, skips)
