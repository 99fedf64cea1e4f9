"""Settings of the connections that mix earlier outputs, or several residual streams."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankloom.config import Config
from rankloom.layers.connections.dense import ANCRe, DenseFormer
from rankloom.layers.connections.hyper import (
    HyperConnections,
    StreamPool,
    dynamic_hyper_connections,
    manifold_hyper_connections,
    static_hyper_connections,
)
from rankloom.layers.connections.hyper_coefficients import Mapping
from rankloom.layers.connections.layers import Connection
from rankloom.layers.connections.mudd import MUDD
from rankloom.layers.connections.products import NormName
from rankloom.ranking.connection import ConnectionConfig


class DenseFormerConfig(ConnectionConfig):
    """A weighted sum of the input and all earlier outputs, with learned weights."""

    kind: Literal["denseformer"] = "denseformer"
    dilation: int = Field(1, ge=1)
    """An output is mixed with those whose number differs by a multiple of this."""
    period: int = Field(1, ge=1)
    """Every so many layers there is a mixing; at most the number of layers."""

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return DenseFormer(dim, num_layers, dilation=self.dilation, period=self.period)


class ANCReConfig(ConnectionConfig):
    """The skip is a convex combination of everything that layers below have read."""

    kind: Literal["ancre"] = "ancre"
    temperature: float = Field(0.01, gt=0)
    """The softmax's logits are divided by it; small ones make fast choices."""

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return ANCRe(dim, num_layers, temperature=self.temperature)


class StaticConfig(Config):
    """Learned numbers, the same for every token."""

    kind: Literal["static"] = "static"

    def build(
        self, dim: int, num_layers: int, num_streams: int, pool: StreamPool
    ) -> HyperConnections:
        """The connection with such coefficients."""
        return static_hyper_connections(dim, num_layers, num_streams=num_streams, pool=pool)


class DynamicConfig(Config):
    """Learned numbers, and beside them what every stream says about itself."""

    kind: Literal["dynamic"] = "dynamic"
    norm: NormName = "layer"
    """What normalises a stream: LayerNorm as in the paper, or RMSNorm."""

    def build(
        self, dim: int, num_layers: int, num_streams: int, pool: StreamPool
    ) -> HyperConnections:
        """The connection with such coefficients."""
        return dynamic_hyper_connections(
            dim, num_layers, num_streams=num_streams, norm=self.norm, pool=pool
        )


class HyperConnectionsConfig(ConnectionConfig):
    """Several residual streams with learned reading, writing and mixing."""

    kind: Literal["hyper_connections"] = "hyper_connections"
    per_sublayer: bool = True
    """Whether the connection stands around every attention and every network instead of every
    layer."""
    num_streams: int = Field(4, ge=1)
    """Residual streams."""
    coefficients: Annotated[StaticConfig | DynamicConfig, Field(discriminator="kind")] = (
        DynamicConfig()
    )
    """Whether the coefficients depend on the token."""
    pool: StreamPool = "sum"
    """How streams become the output."""

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return self.coefficients.build(dim, num_layers, self.num_streams, self.pool)


class MHCConfig(ConnectionConfig):
    """Several residual streams, mixed by matrices near doubly stochastic ones."""

    kind: Literal["mhc"] = "mhc"
    per_sublayer: bool = True
    """Whether the connection stands around every attention and every network instead of every
    layer."""
    num_streams: int = Field(4, ge=2)
    """Residual streams."""
    num_steps: int = Field(20, ge=1)
    """Sinkhorn's steps."""
    fixed: tuple[Mapping, ...] = ()
    """What is not learned, as in the paper's ablation: reading (pre), writing (post), mixing (res).
    """
    pool: StreamPool = "sum"
    """How streams become the output."""

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return manifold_hyper_connections(
            dim,
            num_layers,
            num_streams=self.num_streams,
            num_steps=self.num_steps,
            fixed=self.fixed,
            pool=self.pool,
        )


class MUDDConfig(ConnectionConfig):
    """A weighted sum of all earlier outputs, with weights that every token makes."""

    kind: Literal["mudd"] = "mudd"
    num_streams: Literal[1, 4] = 4
    """4: an attention's queries, keys and values and the skip each have a sum of their own; 1: all
    share one, which any model can take."""
    hidden_multiple: int = Field(64, ge=1)
    """The width of the weights' hidden layer is widened to the next multiple of this."""

    @model_validator(mode="after")
    def _check_streams(self) -> Self:
        if self.per_sublayer and self.num_streams > 1:
            raise ValueError(
                f"per_sublayer needs num_streams = 1; got {self.num_streams}: a network has no "
                "queries, keys and values"
            )
        return self

    @property
    def separate_streams(self) -> bool:
        """Whether layers are given queries, keys and values of their own."""
        return self.num_streams > 1

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection."""
        return MUDD(
            dim, num_layers, num_streams=self.num_streams, hidden_multiple=self.hidden_multiple
        )
