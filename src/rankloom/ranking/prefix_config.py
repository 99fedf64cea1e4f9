"""Settings that LoopCTR and StackCTR share."""

from pydantic import Field

from rankloom.layers.connections.steps import residual_streams
from rankloom.ranking.network import Network
from rankloom.ranking.prefix_entries import Grouping, SharedGroups
from rankloom.ranking.prefix_parts import LayerSizes
from rankloom.ranking.prefix_tokens import PrefixTokens


class PrefixNetworkConfig(PrefixTokens):
    """Tokens, sizes of all layers, and the network at the end."""

    expansion: int = Field(4, gt=0)
    """Width of an expert's hidden layer, in widths of a token."""
    num_experts: int = Field(4, ge=1)
    """Experts of every attention and of every network; 1: no experts."""
    num_active: int = Field(2, ge=1)
    """Experts that run for a token; with one expert there is nothing to choose."""
    balance_weight: float = Field(0.01, ge=0)
    """Weight of the loss that keeps the experts' loads equal, mean over sublayers and depths."""
    num_streams: int = Field(2, ge=1)
    """Residual streams of hyper-connections around every sublayer; 1: the plain residual."""
    grouping: Grouping = SharedGroups()
    """Which tokens attend to which in the entry layer: shared, own or none."""
    head: Network = Network(hidden=(256, 64), dropout=0.1)
    """The network over all field tokens at the end."""
    checkpoint_loops: bool = False
    """In training, forget what happens within a block and do it again for the gradient."""

    def layer_sizes(self) -> LayerSizes:
        """Sizes of every layer."""
        return LayerSizes(
            dim=self.dim,
            num_heads=self.num_heads,
            hidden_dim=self.expansion * self.dim,
            num_experts=self.num_experts,
            num_active=1 if self.num_experts == 1 else self.num_active,
            dropout=self.dropout,
            streams=residual_streams(self.num_streams),
        )
