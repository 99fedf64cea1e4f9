"""What models of long histories share: attention to the latest events, beside their search."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.mlp import MLP
from rankloom.layers.multi_head_target import MultiHeadTargetAttention
from rankloom.layers.target_attention import TargetAttention
from rankloom.layers.tokens.copies import copy_tokens
from rankloom.ranking.attention_unit import AttentionUnit
from rankloom.ranking.histories import History, HistoryInput, HistoryNetwork, HistoryShape


class MultiHead(Config):
    """Scaled dot-product attention of the target to the events, with several heads."""

    kind: Literal["multi_head"] = "multi_head"
    dim: int = Field(64, gt=0)
    """Width of queries, keys and values over all heads."""
    num_heads: int = Field(1, gt=0)
    """Heads; divides `dim`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""

    def build(self, shape: HistoryShape, *, extra: int = 0) -> MultiHeadTargetAttention:
        """The attention to events of a history.

        Args:
            shape: the history.
            extra: width of what else is known of an event, beside its members.
        """
        return MultiHeadTargetAttention(
            shape.target_dim,
            shape.dim + extra,
            shape.dim,
            dim=self.dim,
            num_heads=self.num_heads,
            dropout=self.dropout,
        )

    def build_short(self, shape: HistoryShape) -> nn.Module:
        """The attention to the latest events, given as a history."""
        return _MultiHeadInterest(self.build(shape))


class ActivationUnit(AttentionUnit):
    """DIN's unit: a network that reads target and event weighs the event."""

    kind: Literal["activation_unit"] = "activation_unit"
    softmax: bool = False
    """Whether the weights of a row add up to one."""

    def build_short(self, shape: HistoryShape) -> nn.Module:
        """The unit over the latest events, given as a history."""
        return _UnitInterest(self.build_unit(shape.target_dim, softmax=self.softmax))


class LongHistoryNetwork(HistoryNetwork):
    """A network over the row's fields, and over two interests for every history."""

    short_length: int = Field(50, gt=0)
    """Latest events that target attention of their own reads; the search reads all."""
    short: Annotated[MultiHead | ActivationUnit, Field(discriminator="kind")] = MultiHead()
    """How the latest events are read: multi_head or activation_unit."""

    def build_short(self, shape: HistoryShape) -> nn.Module:
        """The part that reads the latest events of a history."""
        return ShortInterest(self.short.build_short(shape), self.short_length)

    def build_top(self, source: HistoryInput, num_tasks: int) -> MLP:
        """The network over all fields and two interests, each as wide as its events."""
        width = source.width + 2 * sum(shape.dim for shape in source.shapes)
        return self.build_network(width, out_features=num_tasks)


class ShortInterest(nn.Module):
    """What attention makes of the latest events of a history.

    Args:
        unit: from a history to a vector.
        length: events that it reads.
    """

    def __init__(self, unit: nn.Module, length: int) -> None:
        super().__init__()
        self.unit = unit
        self.length = length

    def forward(self, history: History) -> Float[Tensor, "batch dim"]:
        """The vector, as wide as an event; zeros for a row without events."""
        length = history.events.shape[1]
        first = max(0, length - self.length)
        events = copy_tokens(history.events, first, length)
        return self.unit(History(events, history.target, history.mask[:, first:]))


class _MultiHeadInterest(nn.Module):
    def __init__(self, attention: MultiHeadTargetAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, history: History) -> Float[Tensor, "batch dim"]:
        return self.attention(history.target, history.events, history.mask)


class _UnitInterest(nn.Module):
    def __init__(self, unit: TargetAttention) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, history: History) -> Float[Tensor, "batch dim"]:
        return self.unit(history.target, history.keys, history.events, history.mask)


def comparable(history: History) -> Bool[Tensor, "batch events"]:
    """True at real events whose row has a target: a vector of zeros lies on no side of a plane."""
    return history.mask & (history.target != 0).any(1, keepdim=True)


def side_by_side(
    fields: Float[Tensor, "batch fields dim"], interests: list[Tensor]
) -> Float[Tensor, "batch width"]:
    """Everything that the network reads of a row.

    Args:
        fields: the fields' vectors.
        interests: vectors [batch, any width].
    """
    return torch.cat([fields.flatten(1), *interests], dim=1)
