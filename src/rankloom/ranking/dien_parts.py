"""Parts of DIEN: how states are compared with the target, evolve, and predict the next event."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.mlp import MLP, ActivationName, linear
from rankloom.layers.recurrent import AGRU, AIGRU, AUGRU
from rankloom.layers.target_attention import TargetAttention, masked_softmax
from rankloom.ranking.attention_unit import AttentionUnit


class Bilinear(Config):
    """Weights from the products of states and target through a matrix."""

    kind: Literal["bilinear"] = "bilinear"

    def build(self, dim: int, target_dim: int) -> nn.Module:
        """Weights of states of width `dim`."""
        return _Bilinear(dim, target_dim)


class Unit(AttentionUnit):
    """Weights from DIN's activation unit."""

    kind: Literal["unit"] = "unit"

    def build(self, dim: int, target_dim: int) -> nn.Module:
        """Weights of states of width `dim`."""
        return _Unit(self.build_unit(dim, softmax=True), dim, target_dim)


class UpdateGate(Config):
    """The weight scales the update gate."""

    kind: Literal["augru"] = "augru"

    def build(self, dim: int) -> nn.Module:
        """The evolution of states of width `dim`."""
        return AUGRU(dim, dim)


class WholeGate(Config):
    """The weight is the update gate."""

    kind: Literal["agru"] = "agru"

    def build(self, dim: int) -> nn.Module:
        """The evolution of states of width `dim`."""
        return AGRU(dim, dim)


class WeighedInput(Config):
    """The weight scales the input."""

    kind: Literal["aigru"] = "aigru"

    def build(self, dim: int) -> nn.Module:
        """The evolution of states of width `dim`."""
        return AIGRU(dim, dim)


class EventProduct(Config):
    """A state predicts an event by their inner product."""

    kind: Literal["inner_product"] = "inner_product"

    def build(self, dim: int) -> nn.Module:
        """Scores of events of width `dim`."""
        return _InnerProduct()


class EventNetwork(Config):
    """A state predicts an event by a network over both."""

    kind: Literal["network"] = "network"
    hidden: tuple[int, ...] = (100, 50)
    """Widths of the hidden layers."""
    activation: ActivationName = "sigmoid"
    """Activation of the hidden layers."""

    def build(self, dim: int) -> nn.Module:
        """Scores of events of width `dim`."""
        return _Network(MLP(2 * dim, self.hidden, out_features=1, activation=self.activation))


StateAttention = Annotated[Bilinear | Unit, Field(discriminator="kind")]
Evolution = Annotated[UpdateGate | WholeGate | WeighedInput, Field(discriminator="kind")]
Auxiliary = Annotated[EventProduct | EventNetwork, Field(discriminator="kind")]


class _Bilinear(nn.Module):
    def __init__(self, dim: int, target_dim: int) -> None:
        super().__init__()
        self.project = linear(target_dim, dim, bias=False)

    def forward(
        self,
        target: Float[Tensor, "batch target_dim"],
        states: Float[Tensor, "batch events dim"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch events"]:
        query = self.project(target).unsqueeze(2).to(states.dtype)  # [batch, dim, 1]
        return masked_softmax(torch.bmm(states, query).squeeze(2), mask)


class _Unit(nn.Module):
    def __init__(self, unit: TargetAttention, dim: int, target_dim: int) -> None:
        super().__init__()
        self.unit = unit
        # The unit subtracts: where an event has members that the target has not, widths differ.
        self.project = nn.Identity() if dim == target_dim else linear(target_dim, dim)

    def forward(
        self,
        target: Float[Tensor, "batch target_dim"],
        states: Float[Tensor, "batch events dim"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch events"]:
        return self.unit.weights(self.project(target), states, mask)


class _InnerProduct(nn.Module):
    def forward(
        self, states: Float[Tensor, "batch events dim"], events: Float[Tensor, "batch events dim"]
    ) -> Float[Tensor, "batch events"]:
        return (states.float() * events.float()).sum(2)


class _Network(nn.Module):
    def __init__(self, network: MLP) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, states: Float[Tensor, "batch events dim"], events: Float[Tensor, "batch events dim"]
    ) -> Float[Tensor, "batch events"]:
        pairs = torch.cat([states, events], dim=2)  # [batch, events, 2 dim]
        return self.network(pairs.flatten(0, 1)).view(states.shape[:2])
