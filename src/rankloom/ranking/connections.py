"""Settings of the connections between layers, for every model that is a stack of token layers."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from rankloom.layers.connections.layers import ConnectedStack
from rankloom.layers.connections.layers import Connection as ConnectionModule
from rankloom.layers.connections.residual import (
    Identity,
    Learnable,
    PostNorm,
    SiameseNorm,
)
from rankloom.layers.connections.skips import build_skips
from rankloom.layers.norm import RMSNorm
from rankloom.ranking.connection import ConnectionConfig
from rankloom.ranking.deres_parts import AttentionResidualConfig, DeResConnection
from rankloom.ranking.mixed_connections import (
    ANCReConfig,
    DenseFormerConfig,
    HyperConnectionsConfig,
    MHCConfig,
    MUDDConfig,
)


class IdentityConfig(ConnectionConfig):
    """x + f(x)."""

    kind: Literal["identity"] = "identity"

    def build(self, dim: int, num_layers: int) -> ConnectionModule:
        """The connection."""
        return Identity(dim)


class LearnableConfig(ConnectionConfig):
    """W x + f(x)."""

    kind: Literal["learnable"] = "learnable"
    weight: Literal["scalar", "vector", "matrix"] = "scalar"
    """What W is; it starts as one."""

    def build(self, dim: int, num_layers: int) -> ConnectionModule:
        """The connection."""
        return Learnable(build_skips(self.weight, dim, num_layers), dim)


class PostNormConfig(ConnectionConfig):
    """LayerNorm(x + f(x))."""

    pre_norm: ClassVar[bool] = False
    kind: Literal["post_norm"] = "post_norm"
    per_sublayer: bool = True

    def build(self, dim: int, num_layers: int) -> ConnectionModule:
        """The connection."""
        return PostNorm([nn.LayerNorm(dim) for _ in range(num_layers)], dim)


class SiameseNormConfig(ConnectionConfig):
    """Two streams, one normalised at every layer and one never."""

    pre_norm: ClassVar[bool] = False
    kind: Literal["siamese_norm"] = "siamese_norm"

    def build(self, dim: int, num_layers: int) -> ConnectionModule:
        """The connection."""
        norms = [RMSNorm(dim) for _ in range(num_layers + 1)]
        return SiameseNorm(norms, [RMSNorm(dim) for _ in range(num_layers)], dim)


Connection = Annotated[
    IdentityConfig
    | LearnableConfig
    | PostNormConfig
    | SiameseNormConfig
    | DenseFormerConfig
    | HyperConnectionsConfig
    | MHCConfig
    | MUDDConfig
    | ANCReConfig
    | AttentionResidualConfig
    | DeResConnection,
    Field(discriminator="kind"),
]


def input_norm(connection: ConnectionConfig, dim: int) -> nn.Module:
    """The norm that a sublayer begins with."""
    return RMSNorm(dim) if connection.pre_norm else nn.Identity()


def connect(
    layers: Sequence[Sequence[nn.Module]],
    connection: ConnectionConfig,
    dim: int,
    *,
    takes_streams: bool = False,
) -> ConnectedStack:
    """Put a connection between layers.

    Args:
        layers: the sublayers of every layer.
        connection: its settings.
        dim: width of a token.
        takes_streams: whether the first sublayer of every layer can be given tokens `query`, `key`
            and `value` of their own.

    Raises:
        ValueError: the connection gives such tokens to layers that do not take them, or there is
            no layer for it.
    """
    if not layers and not isinstance(connection, IdentityConfig | PostNormConfig):
        raise ValueError("this connection needs layers to stand between; got none, set more layers")
    if connection.separate_streams and not takes_streams:
        raise ValueError(
            "this connection gives queries, keys and values of their own, which this model's "
            "layers do not take; use num_streams = 1"
        )
    units = sum(map(len, layers)) if connection.per_sublayer else len(layers)
    built = connection.build(dim, units)
    norm = RMSNorm(built.out_dim) if connection.pre_norm else None
    return ConnectedStack(layers, built, per_sublayer=connection.per_sublayer, norm=norm)
