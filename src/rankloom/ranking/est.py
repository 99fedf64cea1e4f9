"""EST: every field asks the events, events meet those of like content, fields never meet.

Source: arXiv:2602.10811, 2026, as notes on it have it; the paper itself was not read.
Equations, with n the field tokens, B the event tokens, and both updates made from the same input:
    cross     n[i] <- n[i] + phi(softmax(q[i] K^T / sqrt(dim)) V) W_O[i], q[i] = Norm(n[i]) W_Q[i],
              K = Norm(B) W_K, V = Norm(B) W_V
    content   B <- B + G Norm(B), G the `num_neighbours` largest of every row of M M^T, M the frozen
              content vectors of the events, within every sequence on its own
    network   n[i] <- n[i] + FFN[i](Norm(n[i])),  B <- B + FFN(Norm(B))
    logits    MLP([mean of B; n[1]; ...; n[F]])
Differs from the paper: events and fields share their norms, so that any connection can stand around
    both at once; a last norm; content vectors are those that the data brings, as they are.
The paper does not say: phi (SiLU), the networks' activation (GELU), how G is scaled (M has rows of
    length one, nothing else), what becomes of events without content (their rows of G are zero)
    and of data without events (the field tokens stand for B as keys and values; nothing meets by
    content).
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.layers.attention import attention
from rankloom.layers.events import PaddedEvents, at_positions, latest_events
from rankloom.layers.mlp import linear
from rankloom.layers.token_mlp import PerTokenLinear, TokenMLP
from rankloom.layers.tokens.copies import copy_tokens
from rankloom.layers.tokens.events import ByTime, OneAfterAnother, OneSequence
from rankloom.ranking.connections import connect, input_norm
from rankloom.ranking.token_network import EventTokenInput, SequenceTokenNetwork
from rankloom.ranking.tokens import ConcatPooling, Pooling
from rankloom.schema import Schema, SequenceField

Tokens = Float[Tensor, "batch tokens dim"]


class ESTConfig(SequenceTokenNetwork):
    """Sizes of the layers, and how content relates events."""

    num_heads: int = Field(1, gt=0)
    """Heads of every cross attention; divides `dim`."""
    expansion: int = Field(4, gt=0)
    """Width of the networks' hidden layer, in widths of a token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights and of hidden units dropped in training."""
    content: dict[str, str] | None = None
    """The vector member that says what an event is about, by sequence group; none: the first one of
    every group. An empty table: events do not meet."""
    num_neighbours: int = Field(5, gt=0)
    """Events of the most similar content, itself among them, that an event takes up."""
    pooling: Pooling = ConcatPooling()
    """How the mean of the events and the field tokens become one vector at the end."""

    def content_of(self, groups: Sequence[SequenceField]) -> dict[str, str]:
        """The vector member of every group that has one.

        Raises:
            ValueError: a name in `content` is no group of events, or no vector member of it.
        """
        members = {group.name: [vector.name for vector in group.vectors] for group in groups}
        if self.content is None:
            return {name: vectors[0] for name, vectors in members.items() if vectors}
        for name, vector in self.content.items():
            if vector not in members.get(name, []):
                known = [f"{group}: {one}" for group, ones in members.items() for one in ones]
                raise ValueError(
                    f"content names no vector of events: {name}: {vector}; there "
                    + (f"are {', '.join(known)}" if known else "is none")
                )
        return self.content


class _CrossAttention(nn.Module):
    """Queries and outputs of each field's own; keys and values that all fields share."""

    def __init__(self, config: ESTConfig, num_fields: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = PerTokenLinear(num_fields, config.dim, config.dim, bias=False)
        self.key = linear(config.dim, config.dim, bias=False)
        self.value = linear(config.dim, config.dim, bias=False)
        self.out = PerTokenLinear(num_fields, config.dim, config.dim, bias=False)

    def forward(
        self,
        fields: Float[Tensor, "batch fields dim"],
        keys: Float[Tensor, "batch keys dim"],
        mask: Bool[Tensor, "batch 1 1 keys"] | None,
    ) -> Float[Tensor, "batch fields dim"]:
        attended = attention(
            self.query(fields),
            self.key(keys),
            self.value(keys),
            num_heads=self.num_heads,
            dropout=self.dropout if self.training else 0.0,
            mask=mask,
        )
        return self.out(functional.silu(attended))


class _Mixing(nn.Module):
    """What fields take from events, and events from events of like content."""

    def __init__(self, config: ESTConfig, num_events: int, num_fields: int) -> None:
        super().__init__()
        self.num_events = num_events
        self.norm = input_norm(config.connection, config.dim)
        self.cross = _CrossAttention(config, num_fields)

    def forward(
        self,
        x: Tokens,
        mask: Bool[Tensor, "batch 1 1 keys"] | None,
        neighbours: Float[Tensor, "batch events events"] | None,
    ) -> Tokens:
        x = self.norm(x)  # DIFF: one norm for events and fields
        keys = copy_tokens(x, 0, self.num_events) if self.num_events else x
        fields = self.cross(x[:, self.num_events :], keys, mask)
        if neighbours is None:  # no events, or none with content
            return functional.pad(fields, (0, 0, self.num_events, 0))
        return torch.cat([neighbours @ keys, fields], dim=1)


class _Network(nn.Module):
    """A network of each field's own, and one for all events where there are any."""

    def __init__(self, config: ESTConfig, num_events: int, num_fields: int) -> None:
        super().__init__()
        self.num_events = num_events
        hidden = config.expansion * config.dim
        self.norm = input_norm(config.connection, config.dim)
        self.fields = TokenMLP(num_fields, config.dim, hidden, dropout=config.dropout)
        self.events = (
            TokenMLP(None, config.dim, hidden, dropout=config.dropout) if num_events else None
        )

    def forward(self, x: Tokens, mask: Tensor | None, neighbours: Tensor | None) -> Tokens:
        x = self.norm(x)
        if self.events is None:
            return self.fields(x)
        events = self.events(copy_tokens(x, 0, self.num_events))
        return torch.cat([events, self.fields(x[:, self.num_events :])], dim=1)


class _Content(nn.Module):
    """Which events are near to each other, by the vectors of their content.

    Args:
        config: the model's settings.
        groups: the groups of events, in the order of the tokens.
        members: the vector member of each that has one.
    """

    def __init__(
        self, config: ESTConfig, groups: Sequence[SequenceField], members: dict[str, str]
    ) -> None:
        super().__init__()
        self.num_neighbours = config.num_neighbours
        self.lengths = {group.name: group.max_length for group in groups}
        self.members = members
        self.width = max(
            vector.width
            for group in groups
            for vector in group.vectors
            if members.get(group.name) == vector.name
        )

    def forward(
        self, batch: Batch, merge: OneSequence | ByTime | OneAfterAnother
    ) -> Float[Tensor, "batch events events"]:
        """G; `merge` makes one sequence of the groups as it does of their tokens."""
        parts = []
        for number, (name, length) in enumerate(self.lengths.items(), start=1):
            events = batch.sequences[name]
            index, mask = latest_events(events, length)
            if name in self.members:
                x = at_positions(index, events.vectors[self.members[name]])
            else:
                x = batch.numeric.new_zeros(*index.shape, 1)
            x = functional.pad(x, (0, self.width - x.shape[2]))
            # The group's number stands beside its vectors: only events of one group meet. It is
            # not zero, which separators have.
            x = torch.cat([x, x.new_full((*index.shape, 1), number)], dim=2)
            time = None if events.time is None else at_positions(index, events.time)
            parts.append(PaddedEvents(x, mask, time))
        merged = merge(parts, parts[0].x.new_zeros(self.width + 1))
        vectors, group = merged.x.split([self.width, 1], dim=2)
        pairs = (group == group.transpose(1, 2)) & merged.mask[:, None]
        return nearest(vectors, pairs, self.num_neighbours)


class EST(nn.Module):
    """Layers in which fields read events, then the mean event beside the fields."""

    def __init__(self, config: ESTConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_events, num_fields = self.tokens.num_events, self.tokens.num_fields
        groups = config.events.chosen(schema)
        members = config.content_of(groups)
        self.content = _Content(config, groups, members) if members else None
        layers: list[list[nn.Module]] = [
            [_Mixing(config, num_events, num_fields), _Network(config, num_events, num_fields)]
            for _ in range(config.num_layers)
        ]
        self.stack = connect(layers, config.connection, config.dim)
        num_pooled = num_fields + (1 if num_events else 0)
        self.head = config.build_head(self.stack.out_dim, num_pooled, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        tokens = self.tokens(batch)
        if tokens.mask is None:
            return self.head(self.stack(tokens.x, None, None))
        real = tokens.mask[:, : tokens.num_events]  # [batch, events]
        neighbours = None
        if self.content is not None:
            merge = cast(EventTokenInput, self.tokens).events.merge
            neighbours = self.content(batch, merge)
        x = self.stack(tokens.x, real[:, None, None], neighbours)
        events, fields = x[:, : tokens.num_events], x[:, tokens.num_events :]
        weight = real.unsqueeze(-1).to(events.dtype)  # [batch, events, 1]
        mean = (events * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return self.head(torch.cat([mean, fields], dim=1))


def nearest(
    vectors: Float[Tensor, "batch events width"],
    pairs: Bool[Tensor, "batch events events"],
    num_neighbours: int,
) -> Float[Tensor, "batch events events"]:
    """The cosines of every event and those nearest to it; zero elsewhere.

    Args:
        vectors: what the events are about; zeros are near to nothing.
        pairs: True where the two events are real and may be neighbours.
        num_neighbours: neighbours of an event at most, itself among them.
    """
    unit = functional.normalize(vectors, dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # [batch, events, events]
    lowest = torch.finfo(cosine.dtype).min
    top, index = cosine.masked_fill(~pairs, lowest).topk(
        min(num_neighbours, vectors.shape[1]), dim=-1
    )
    return torch.zeros_like(cosine).scatter(-1, index, top.masked_fill(top == lowest, 0.0))
