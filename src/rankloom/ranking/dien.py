"""DIEN: interests as the states of a GRU, and how those that concern the target evolve.

Source: Zhou et al., AAAI 2019, arXiv:1809.03672, section 4.
Equations, for every history with events x[1..T] and target t:
    interests  h[j] = GRU(x[j], h[j-1])
    weights    a = softmax over events of h[j]^T W t
    evolution  s[j] = AUGRU(h[j], s[j-1], a[j]):  s[j] = (1 - a[j] u) * s[j-1] + a[j] u * s~
    logits     = MLP([fields; s[T] of every history])
    loss       = L(labels) + w L_aux,
    L_aux      = -mean over j of log sigmoid(h[j] . x[j+1]) + log(1 - sigmoid(h[j] . x'[j+1]))
Differs from the paper: the negative x' is an event of another row of the batch, drawn evenly from
    all of them at every step; the paper draws from all items. L_aux is a mean over steps as in the
    authors' code; the paper's formula sums them. The gates have torch's two biases.
The paper does not say: the width of the states, here that of an event; the weight w, here one as in
    the authors' code; the network's activation, here Dice as in DIN. Data without a history gives a
    network over fields.
    `unit` in place of W, and `network` in place of the inner product, are the authors' code's.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.event_search import events_at
from rankloom.layers.losses import next_event_loss, ranking_loss
from rankloom.layers.mlp import ActivationName
from rankloom.layers.recurrent import GRU, align_left
from rankloom.protocols import Loss
from rankloom.ranking.dien_parts import (
    Auxiliary,
    Bilinear,
    EventProduct,
    Evolution,
    StateAttention,
    UpdateGate,
)
from rankloom.ranking.histories import History, HistoryNetwork, HistoryShape
from rankloom.schema import Schema


class DIENConfig(HistoryNetwork):
    """Sizes of the embeddings and the network, and the parts of every history's own."""

    activation: ActivationName = "dice"
    """Activation of the hidden layers."""
    attention: StateAttention = Bilinear()
    """How states are compared with the target: bilinear or unit."""
    evolution: Evolution = UpdateGate()
    """Where attention enters the second GRU: augru, agru or aigru."""
    auxiliary: Auxiliary = EventProduct()
    """How states predict the next event: inner_product or network."""
    auxiliary_weight: float = Field(1.0, ge=0)
    """Weight of the auxiliary loss beside the labels'."""


@dataclass(frozen=True)
class _Interests:
    """A history after it was read; padding comes last."""

    evolved: Float[Tensor, "batch dim"]
    states: Float[Tensor, "batch events dim"]
    events: Float[Tensor, "batch events dim"]
    mask: Bool[Tensor, "batch events"]


class _InterestUnit(nn.Module):
    """What is made of one history."""

    def __init__(self, config: DIENConfig, shape: HistoryShape) -> None:
        super().__init__()
        self.extract = GRU(shape.dim, shape.dim)
        self.attention = config.attention.build(shape.dim, shape.target_dim)
        self.evolve = config.evolution.build(shape.dim)
        self.auxiliary = config.auxiliary.build(shape.dim)

    def forward(self, history: History) -> _Interests:
        places, mask = align_left(history.mask)
        events = events_at(places, history.events)
        states = self.extract(events)
        weights = self.attention(history.target, states, mask)
        return _Interests(self.evolve(states, weights, mask), states, events, mask)

    def next_event_loss(self, read: _Interests, weight: Tensor | None) -> Float[Tensor, ""]:
        """What the states miss of the next events, a mean over steps; rows have weights."""
        # DIFF: negatives are other rows' events
        return next_event_loss(read.states, read.events, read.mask, self.auxiliary, weight=weight)


class DIEN(nn.Module):
    """One network over the fields and the evolved interest of every history."""

    def __init__(self, config: DIENConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema)
        shapes = self.input.shapes
        self.units = nn.ModuleList([_InterestUnit(config, shape) for shape in shapes])
        self.auxiliary_weight = config.auxiliary_weight
        width = self.input.width + sum(shape.dim for shape in shapes)
        self.network = config.build_network(width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self._read(batch)[0]

    def loss(self, batch: Batch) -> Loss:
        """The labels' loss and, weighed, how badly the states predict the next events.

        Negatives are drawn from torch's global generator. Parts, where the second has a weight:
        `labels`, summed over tasks, and `next_event`, the weighted mean over histories.

        Raises:
            ValueError: the batch has no labels.
        """
        logits, interests = self._read(batch)
        labels = ranking_loss(logits, batch)
        if not interests or self.auxiliary_weight == 0:
            return labels
        each = [
            cast(_InterestUnit, unit).next_event_loss(read, batch.weight)
            for unit, read in zip(self.units, interests, strict=True)
        ]
        next_event = self.auxiliary_weight * torch.stack(each).mean()
        parts = {"labels": labels.total, "next_event": next_event}
        return Loss(labels.total + next_event, labels.parts | parts)

    def _read(self, batch: Batch) -> tuple[Tensor, list[_Interests]]:
        """Logits [batch, tasks], and what was made of every history."""
        fields, histories = self.input(batch)
        interests = [unit(history) for unit, history in zip(self.units, histories, strict=True)]
        vectors = [read.evolved for read in interests]
        return self.network(torch.cat([fields.flatten(1), *vectors], dim=1)), interests
