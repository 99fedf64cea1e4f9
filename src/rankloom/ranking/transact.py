"""TransAct: an encoder over recent actions, each of which stands beside the target.

Source: Xia et al., KDD 2023, arXiv:2306.00248, section 3.3, and its published code.
Equations, for one history of events e[1..n], oldest first, and the target t:
    x[j] = [e[j]; t]                                   what was done is a member of the event
    z    = Norm(x + Dropout(W_O Attention(x)))
    x'   = Norm(z + Dropout(W2 ReLU(W1 z + b1) + b2))  per layer
    v    = [x[n-K+1]; ...; x[n]; W max_j x[j] + b]
    logits = MLP(Cross([fields; v of every history]))
    In training no event attends to those of the last T seconds before the request, but for the
    latest one; T is drawn uniformly up to a day in every step.
Differs from the paper: every member of an event is as wide as a field, the action too. The
    projections of attention have no biases. Padding is zero in v, where the published code keeps
    what the layers make of it. The paper's ranking model crosses [fields; v] by DCN V2 before its
    network: `num_crosses`, none by default, so that the network is that of the other rankers.
The paper does not say: what becomes of events after the request; the published code, and this one,
    lets nobody attend to them either, but for the latest event.
Without the times of events, or of rows, all events are attended to. Data without a history leaves a
network over fields.
"""

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.encoder import EncoderLayer
from rankloom.layers.interaction import CrossNetwork
from rankloom.layers.mlp import linear
from rankloom.layers.tokens.copies import copy_tokens
from rankloom.ranking.histories import History, HistoryNetwork, HistoryShape
from rankloom.schema import Schema


class TransActConfig(HistoryNetwork):
    """Sizes of the encoder, and what the network reads of it."""

    num_layers: int = Field(2, gt=0)
    """Layers."""
    num_heads: int = Field(2, gt=0)
    """Heads of every layer; divides the width of an event and the target side by side."""
    layer_hidden: int = Field(32, gt=0)
    """Width of the hidden units of a layer's network."""
    layer_dropout: float = Field(0.1, ge=0, lt=1)
    """Share dropped in training of a layer's attention weights, hidden units and outputs."""
    num_latest: int = Field(10, ge=0)
    """Latest events that the network reads each by itself, beside the maximum over all."""
    time_window_seconds: int = Field(86_400, ge=0)
    """Longest time before the request, in seconds, that training may hide; it has an effect where
    events and rows have times."""
    num_crosses: int = Field(0, ge=0)
    """Cross layers of DCN V2 between the inputs and the network."""


class _AllEvents(nn.Module):
    """All real events may be attended to."""

    def forward(
        self, history: History, row_time: Int[Tensor, " batch"] | None
    ) -> Bool[Tensor, "batch events"]:
        return history.mask


class _TimeWindow(nn.Module):
    """Events from before a random time before the request, and the latest one."""

    def __init__(self, length: int, seconds: int) -> None:
        super().__init__()
        self.seconds = seconds
        latest = torch.arange(length) == length - 1
        self.register_buffer("latest", latest, persistent=False)
        self.latest: Tensor
        """[events]."""

    def forward(
        self, history: History, row_time: Int[Tensor, " batch"] | None
    ) -> Bool[Tensor, "batch events"]:
        if row_time is None or history.time is None:
            raise ValueError(
                "events are compared with the row's time, and the batch has none; the schema says "
                "it has"
            )
        passed = row_time[:, None] - history.time
        # One window for a whole step, as in the paper; drawn where the events are.
        hidden = torch.rand((), device=passed.device) * self.seconds if self.training else 0
        return history.mask & ((passed >= hidden) | self.latest)


class _RecentActions(nn.Module):
    """The vector of one history."""

    width: int
    """Width of that vector."""

    def __init__(self, config: TransActConfig, shape: HistoryShape, schema: Schema) -> None:
        super().__init__()
        dim = shape.dim + shape.target_dim
        self.visible = (
            _TimeWindow(shape.length, config.time_window_seconds)
            if shape.has_time and schema.has_time
            else _AllEvents()
        )
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                config.num_heads,
                config.layer_hidden,
                attention_dropout=config.layer_dropout,
                dropout=config.layer_dropout,
                hidden_dropout=config.layer_dropout,
            )
            for _ in range(config.num_layers)
        )
        self.summary = linear(dim, dim)
        self.first_latest = max(0, shape.length - config.num_latest)
        self.width = (shape.length - self.first_latest + 1) * dim

    def forward(
        self, history: History, row_time: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch width"]:
        length = history.mask.shape[1]
        target = history.target.unsqueeze(1).expand(-1, length, -1)
        x = torch.cat([history.events, target], dim=2)  # [batch, events, dim]
        visible = self.visible(history, row_time)[:, None, None]
        for layer in self.layers:
            x = layer(x, visible)
        # DIFF: the published code also reads what stands at padding.
        padding = ~history.mask.unsqueeze(2)
        most = x.masked_fill(padding, torch.finfo(x.dtype).min).amax(1)  # [batch, dim]
        most = most.masked_fill(padding.all(1), 0)
        latest = copy_tokens(x.masked_fill(padding, 0), self.first_latest, length)
        return torch.cat([latest.flatten(1), self.summary(most)], dim=1)


class TransAct(nn.Module):
    """An encoder over every history and its target, then a network over all of it."""

    def __init__(self, config: TransActConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema)
        units = [_RecentActions(config, shape, schema) for shape in self.input.shapes]
        self.histories = nn.ModuleList(units)
        width = self.input.width + sum(unit.width for unit in units)
        crosses = config.num_crosses
        self.cross = CrossNetwork(width, crosses) if crosses else nn.Identity()
        self.network = config.build_network(width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        fields, histories = self.input(batch)
        read = [
            unit(history, batch.time)
            for unit, history in zip(self.histories, histories, strict=True)
        ]
        return self.network(self.cross(torch.cat([fields.flatten(1), *read], dim=1)))
