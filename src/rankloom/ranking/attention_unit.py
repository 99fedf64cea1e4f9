"""The settings of the network that compares a target with past events."""

from pydantic import Field

from rankloom.config import Config
from rankloom.layers.mlp import ActivationName
from rankloom.layers.target_attention import TargetAttention


class AttentionUnit(Config):
    """DIN's activation unit: a network over target, event, their difference and their product."""

    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers; empty: one linear layer."""
    activation: ActivationName = "dice"
    """Activation of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""

    def build_unit(self, dim: int, *, softmax: bool) -> TargetAttention:
        """The unit.

        Args:
            dim: width of the target, and of what it is compared with.
            softmax: whether the weights of a row add up to one.
        """
        return TargetAttention(
            dim,
            hidden=self.hidden,
            activation=self.activation,
            dropout=self.dropout,
            softmax=softmax,
        )
