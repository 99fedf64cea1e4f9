"""SIM: search a long history for what the target asks for, then attend to what was found.

Source: Pi et al., CIKM 2020, arXiv:2006.05639, section 3, and the public code of FuxiCTR (LongCTR),
    which has the soft search.
Equations, for every history, with target t, the parts k[j] of its events e[j] that a target has
    too, D[j] the time between event and row, and A multi-head target attention:
    r[j]    = 1 if the event's category is the target's, else not found     (hard search)
    r[j]    = (W_b k[j]) . (W_a t)                                          (soft search)
    found   = the events with the highest r, the latest of equals
    z[j]    = [e[j]; gap(D[j])]
    logits  = MLP([fields; A_short(t, latest events); A_long(t, z of found)])
    loss    = L(logits) + alpha L(MLP_search([fields; sum over j of r[j] e[j]]))
    The second loss trains the soft search, which gets no gradient from the first.
Differs from the paper: heads read values through W_v and their results go through W_o, and the
    latest events are read by target attention, as in the public code (paper: values as they are,
    and DIEN). The network of the search's loss reads all fields, as in the public code (paper:
    the target). Embeddings are shared by search, attention and fields.
The paper does not say: how the time between is cut into buckets (here powers of two of seconds,
    since the row's time, or the latest event's where rows have none).
Data without a history leaves a network over fields.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.event_search import best_events, events_at
from rankloom.layers.losses import ranking_loss
from rankloom.layers.multi_head_target import MultiHeadTargetAttention
from rankloom.layers.tokens.events import Recency
from rankloom.protocols import Loss
from rankloom.ranking.histories import History, HistoryShape
from rankloom.ranking.long_histories import LongHistoryNetwork, MultiHead, side_by_side
from rankloom.ranking.sim_search import Relevance, Search, SoftSearch
from rankloom.schema import Schema


class SIMConfig(LongHistoryNetwork):
    """Sizes of the embeddings, the search, both attentions and the network."""

    search: Search = SoftSearch()
    """How the long history is searched: hard or soft."""
    num_found: int = Field(50, gt=0)
    """Events that the search finds."""
    long: MultiHead = MultiHead()
    """How the events that were found are read."""


class _RowTime(nn.Module):
    def forward(self, batch: Batch, history: History) -> Int[Tensor, " batch"]:
        if batch.time is None:
            raise ValueError("SIM compares events with the row's time, and the batch has none")
        return batch.time


class _LatestEventTime(nn.Module):
    def forward(self, batch: Batch, history: History) -> Int[Tensor, " batch"]:
        return cast(Tensor, history.time)[:, -1]  # the latest event stands last


class _FoundEvents(nn.Module):
    """What is known of the events that were found."""

    def forward(
        self, batch: Batch, history: History, index: Int[Tensor, "batch found"]
    ) -> Float[Tensor, "batch found dim"]:
        return events_at(index, history.events)


class _TimedFoundEvents(nn.Module):
    """The same, and the time since each of them."""

    def __init__(self, dim: int, now: nn.Module) -> None:
        super().__init__()
        self.gap = Recency(dim)
        self.now = now

    def forward(
        self, batch: Batch, history: History, index: Int[Tensor, "batch found"]
    ) -> Float[Tensor, "batch found timed_dim"]:
        time = cast(Tensor, history.time).gather(1, index)
        seconds = self.now(batch, history).unsqueeze(1) - time  # [batch, found]
        return torch.cat([events_at(index, history.events), self.gap(seconds)], dim=2)


class _LongInterest(nn.Module):
    """Attention to the events with the highest scores."""

    def __init__(
        self, num_found: int, found: nn.Module, attention: MultiHeadTargetAttention
    ) -> None:
        super().__init__()
        self.num_found = num_found
        self.found = found
        self.attention = attention

    def forward(
        self, batch: Batch, history: History, relevance: Relevance
    ) -> Float[Tensor, "batch dim"]:
        index, mask = best_events(relevance.scores, relevance.allowed, self.num_found)
        return self.attention(history.target, self.found(batch, history, index), mask)


class SIM(nn.Module):
    """A network over fields, and the short and the long interest of every history.

    Raises:
        ValueError: a category that cannot be compared, or heads that do not divide their width.
    """

    def __init__(self, config: SIMConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema, with_ids=True)
        shapes = self.input.shapes
        # DIFF: target attention in place of DIEN
        self.short = nn.ModuleList(config.build_short(shape) for shape in shapes)
        self.search = config.search.build(shapes)
        self.long = nn.ModuleList(_long_interest(config, shape, schema) for shape in shapes)
        self.network = config.build_top(self.input, schema.num_tasks)
        self.auxiliary_weight = config.search.auxiliary_weight if shapes else 0.0
        width = self.input.width + sum(shape.dim for shape in shapes)
        self.auxiliary = (
            config.build_network(width, out_features=schema.num_tasks)
            if self.auxiliary_weight > 0
            else None
        )
        """The network of the search's own loss."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        fields, histories = self.input(batch)
        return self._logits(batch, fields, histories, self._relevance(histories))

    def loss(self, batch: Batch) -> Loss:
        """The labels' loss of the logits, and where the search is trained that of its own.

        Parts, where there are two: `labels` and `search`, the latter weighted.

        Raises:
            ValueError: the batch has no labels.
        """
        fields, histories = self.input(batch)
        found = self._relevance(histories)
        labels = ranking_loss(self._logits(batch, fields, histories, found), batch)
        if self.auxiliary is None:
            return labels
        pooled = [
            # Events are zero at padding.
            (one.scores.unsqueeze(1) @ history.events).squeeze(1)
            for one, history in zip(found, histories, strict=True)
        ]
        logits = self.auxiliary(side_by_side(fields, pooled))  # DIFF: the paper reads no fields
        search = self.auxiliary_weight * ranking_loss(logits, batch).total
        parts = {"labels": labels.total, "search": search}
        return Loss(labels.total + search, labels.parts | parts)

    def _relevance(self, histories: list[History]) -> list[Relevance]:
        return [search(one) for search, one in zip(self.search, histories, strict=True)]

    def _logits(
        self, batch: Batch, fields: Tensor, histories: list[History], relevance: list[Relevance]
    ) -> Float[Tensor, "batch tasks"]:
        short = [unit(one) for unit, one in zip(self.short, histories, strict=True)]
        long = [
            unit(batch, one, scores)
            for unit, one, scores in zip(self.long, histories, relevance, strict=True)
        ]
        return self.network(side_by_side(fields, [*short, *long]))


def _long_interest(config: SIMConfig, shape: HistoryShape, schema: Schema) -> _LongInterest:
    # DIFF: the attention has W_v and W_o
    if not shape.has_time:
        return _LongInterest(config.num_found, _FoundEvents(), config.long.build(shape))
    now = _RowTime() if schema.has_time else _LatestEventTime()
    dim = config.embedding_dim
    found = _TimedFoundEvents(dim, now)
    return _LongInterest(config.num_found, found, config.long.build(shape, extra=dim))
