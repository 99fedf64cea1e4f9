"""What the settings of every connection between layers have in common."""

from typing import ClassVar

from rankloom.config import Config
from rankloom.layers.connections.layers import Connection


class ConnectionConfig(Config):
    """What the settings of all connections say about themselves."""

    pre_norm: ClassVar[bool] = True
    """Whether layers normalise what they read, and the stack its output."""
    per_sublayer: bool = False
    """Whether the connection stands around every attention and every network instead of every
    layer."""

    @property
    def separate_streams(self) -> bool:
        """Whether layers are given queries, keys and values of their own."""
        return False

    def build(self, dim: int, num_layers: int) -> Connection:
        """The connection of `num_layers` layers (or sublayers) over tokens of width `dim`."""
        raise NotImplementedError
