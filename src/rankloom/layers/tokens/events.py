"""Events of sequence groups to tokens, several groups merged into one sequence.

Source: Zhang et al., 2025, arXiv:2510.26104 (OneTrans), section 3.
Equation: token = MLP_group([members side by side]) + recency + position
The paper does not say: how positions and times enter. Here a learned vector for the place from the
    sequence's end, and one for the power of two that the seconds since the event lie in.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.layers.events import EventEmbedding, PaddedEvents
from rankloom.layers.mlp import MLP
from rankloom.layers.table import INIT_STD, Table
from rankloom.layers.tokens.fields import TokenActivation

NUM_RECENCY_BUCKETS = 33
"""Bucket 0: no time has passed; bucket b > 0: 2^(b-1) seconds and more; the last is open."""


class RowTime(nn.Module):
    """The time of the row: that of the request."""

    def forward(self, time: Tensor | None, events: Sequence[PaddedEvents]) -> Int[Tensor, " batch"]:
        """int64 seconds.

        Raises:
            ValueError: the batch has no time.
        """
        if time is None:
            raise ValueError(
                "event tokens compare events with the row's time, and the batch has none; give it, "
                'or train with events.reference = "latest_event"'
            )
        return time


class LatestEventTime(nn.Module):
    """The time of a row's latest event, 0 where there is none."""

    def forward(self, time: Tensor | None, events: Sequence[PaddedEvents]) -> Int[Tensor, " batch"]:
        """int64 seconds."""
        lowest = torch.iinfo(torch.int64).min
        latest = torch.stack(
            [
                group.time.masked_fill(~group.mask, lowest).amax(1)
                for group in events
                if group.time is not None
            ]
        ).amax(0)
        return torch.where(latest == lowest, 0, latest)


class Recency(nn.Module):
    """A learned vector for how long ago something was, by powers of two of seconds."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_RECENCY_BUCKETS, dim).normal_(std=INIT_STD))
        """[buckets, dim]."""
        bounds = 2 ** torch.arange(NUM_RECENCY_BUCKETS - 1)
        self.register_buffer("_bounds", bounds, persistent=False)
        self._bounds: Tensor

    def forward(self, seconds: Int[Tensor, "batch events"]) -> Float[Tensor, "batch events dim"]:
        """The vectors; what lies in the future counts as now."""
        # Whole numbers are compared: a logarithm may fall beside a power of two.
        return functional.embedding(torch.bucketize(seconds, self._bounds, right=True), self.weight)


class OneSequence(nn.Module):
    """The only group as it is."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        (self.num_events,) = lengths

    def forward(
        self, groups: Sequence[PaddedEvents], separator: Tensor | None = None
    ) -> PaddedEvents:
        """The sequence; it has no separators."""
        return groups[0]


class ByTime(nn.Module):
    """All events in the order of their time; at the same time, in the order of the groups.

    Args:
        lengths: events of each group.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.num_events = sum(lengths)

    def forward(
        self, groups: Sequence[PaddedEvents], separator: Tensor | None = None
    ) -> PaddedEvents:
        """The sequence; it has no separators."""
        x, mask, time = _joined(groups)
        key = cast(Tensor, time).masked_fill(~mask, torch.iinfo(torch.int64).min)
        return _sorted(x, mask, time, key)


class OneAfterAnother(nn.Module):
    """The groups in their order, a learned separator token between two that hold events.

    Args:
        lengths: events of each group.
        dim: width of a token.
    """

    def __init__(self, lengths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.num_events = sum(lengths) + len(lengths) - 1
        self.separator = nn.Parameter(torch.empty(dim).normal_(std=INIT_STD))
        """[dim]."""

    def forward(
        self, groups: Sequence[PaddedEvents], separator: Tensor | None = None
    ) -> PaddedEvents:
        """The sequence; a separator has the time of the event before it.

        Args:
            groups: the groups' events.
            separator: stands between two groups that hold something else than tokens; None: the
                learned one.
        """
        between = self.separator if separator is None else separator
        present = [group.mask[:, -1:] for group in groups]  # the latest event stands last
        parts = [groups[0]]
        for number, group in enumerate(groups[1:], start=1):
            before, later = groups[number - 1], torch.cat(present[number:], dim=1).any(1, True)
            one = between.expand(group.x.shape[0], 1, -1)
            time = None if before.time is None else before.time[:, -1:]
            parts += [PaddedEvents(one, present[number - 1] & later, time), group]
        x, mask, time = _joined(parts)
        return _sorted(x, mask, time, mask.int())


class EventTokens(nn.Module):
    """Tokens of all events of a row, as one sequence.

    A group's network ends in a linear layer of its own, whose bias says which group an event is of.

    Args:
        embeddings: of each group, by its name in the batch.
        dim: width of a token.
        merge: makes one sequence of the groups' tokens.
        reference: the time of a row that its events are compared with; None: no group has times.
        hidden: widths of the hidden layers of each group's network; empty: one linear layer.
        activation: their activation.
        positions: whether a learned vector for the place from the end is added.
        recency: whether a learned vector for the time since the event is added, where it is known.
        bias_std: standard deviation that the last biases of each group's network start with.
    """

    num_events: int
    """Event tokens."""

    def __init__(
        self,
        embeddings: dict[str, EventEmbedding],
        dim: int,
        merge: OneSequence | ByTime | OneAfterAnother,
        reference: RowTime | LatestEventTime | None,
        *,
        hidden: Sequence[int] = (),
        activation: TokenActivation = "gelu",
        positions: bool = True,
        recency: bool = True,
        bias_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_events = merge.num_events
        self.names = tuple(embeddings)
        self.embeddings = nn.ModuleList(embeddings.values())
        self.networks = nn.ModuleList(
            MLP(embedding.width, hidden, out_features=dim, activation=activation)
            for embedding in embeddings.values()
        )
        if bias_std > 0:
            for network in self.networks:
                nn.init.normal_(cast(MLP, network).biases, std=bias_std)
        self.merge = merge
        self.reference = reference
        self.recency = Recency(dim) if recency and reference is not None else None
        self.positions = (
            nn.Parameter(torch.empty(merge.num_events, dim).normal_(std=INIT_STD))
            if positions
            else None
        )
        """[events, dim]; the last is the latest event's."""

    def forward(
        self, batch: Batch, table: Table
    ) -> tuple[PaddedEvents, Int[Tensor, " batch"] | None]:
        """The tokens, zero at padding, and the time of every row, None where events have none."""
        embedded = [
            embedding(batch.sequences[name], table)
            for name, embedding in zip(self.names, self.embeddings, strict=True)
        ]
        now = None if self.reference is None else self.reference(batch.time, embedded)
        groups = [
            PaddedEvents(self._tokens(network, group, now), group.mask, group.time)
            for network, group in zip(self.networks, embedded, strict=True)
        ]
        merged = self.merge(groups)
        x = merged.x if self.positions is None else merged.x + self.positions
        x = x.masked_fill(~merged.mask.unsqueeze(-1), 0.0)
        return PaddedEvents(x, merged.mask, merged.time), now

    def _tokens(
        self, network: nn.Module, group: PaddedEvents, now: Tensor | None
    ) -> Float[Tensor, "batch events dim"]:
        x = network(group.x.flatten(2))
        if self.recency is None or now is None or group.time is None:
            return x
        return x + self.recency(now[:, None] - group.time)


def _joined(groups: Sequence[PaddedEvents]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, masks and times side by side; no times where a group has none."""
    times = [group.time for group in groups if group.time is not None]
    return (
        torch.cat([group.x for group in groups], dim=1),
        torch.cat([group.mask for group in groups], dim=1),
        torch.cat(times, dim=1) if len(times) == len(groups) else None,
    )


def _sorted(x: Tensor, mask: Tensor, time: Tensor | None, key: Tensor) -> PaddedEvents:
    """Everything in the order of a key that is smallest at padding; equal keys keep their order."""
    order = key.argsort(dim=1, stable=True)  # [batch, events]
    return PaddedEvents(
        x.gather(1, order.unsqueeze(-1).expand_as(x)),
        mask.gather(1, order),
        None if time is None else time.gather(1, order),
    )
