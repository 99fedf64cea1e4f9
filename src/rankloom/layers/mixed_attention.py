"""Attention and networks whose weights some tokens share and others have for themselves.

Source: OneTrans, arXiv:2510.26104, section 3. The tokens are those of a row's events, which come
first and share their weights, then those of its fields, each with weights of its own.

A pass says which of them a layer is given: the whole row, its events alone, or its fields alone.
With causal attention events never read fields, so the second and the third give together what the
first gives, and the events of a request are encoded once for all of its candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rankloom.layers.attention import attention, split_heads
from rankloom.layers.candidates import CandidateRows
from rankloom.layers.mlp import linear
from rankloom.layers.token_mlp import token_linear
from rankloom.layers.tokens.copies import copy_tokens

Tokens = Float[Tensor, "batch tokens dim"]


@runtime_checkable
class Pass(Protocol):
    """The tokens that a stack is run on, and what they attend to."""

    num_own: int
    """How many of the last tokens have weights of their own; the ones before share theirs."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout: float) -> Tensor:
        """What the last tokens (queries [batch, queries, dim]) find in all [batch, tokens, dim]."""


@dataclass(frozen=True)
class WholeRow:
    """Events and fields at once."""

    num_own: int
    """Field tokens."""
    mask: Bool[Tensor, "batch 1 #tokens tokens"] | None = None
    """True where a token (second to last axis) may attend to another; None: everywhere."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout: float) -> Tensor:
        """One attention; the mask's last queries and keys are those of a narrowed stack."""
        mask = self.mask
        if mask is not None:
            first_query = max(mask.shape[-2] - q.shape[1], 0)
            mask = mask[..., first_query:, mask.shape[-1] - k.shape[1] :]
        return attention(q, k, v, num_heads=num_heads, dropout=dropout, mask=mask)


@dataclass(frozen=True)
class EventCache:
    """Events of some requests, encoded: what every layer's fields attend to."""

    keys: tuple[Float[Tensor, "requests _ dim"], ...]
    """Of every layer; a layer after a narrowing one has fewer events."""
    values: tuple[Float[Tensor, "requests _ dim"], ...]
    mask: Bool[Tensor, "requests events"] | None = None
    """True at real events; None: all are."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class EventPass:
    """Events alone; keeps the keys and values of every layer.

    Args:
        mask: True where an event may attend to another.
    """

    num_own = 0

    def __init__(self, mask: Bool[Tensor, "requests 1 events events"] | None) -> None:
        self._row = WholeRow(0, mask)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout: float) -> Tensor:
        """The events' attention among themselves."""
        self._keys.append(k)
        self._values.append(v)
        return self._row.attend(q, k, v, num_heads, dropout)

    def cache(self, mask: Bool[Tensor, "requests events"] | None) -> EventCache:
        """What was kept; `mask` is True at real events."""
        return EventCache(tuple(self._keys), tuple(self._values), mask)


class FieldPass:
    """Fields of candidates alone, each row against the events of its request.

    The candidates of a request attend to its keys and values as they lie, without a copy for each.

    Args:
        cache: the encoded events.
        request: each candidate's row in the cache; any order.
        num_own: field tokens.
        causal: whether a field reads only the fields before it; else it reads all.
    """

    def __init__(
        self,
        cache: EventCache,
        request: Int[Tensor, " candidates"],
        num_own: int,
        *,
        causal: bool = True,
    ) -> None:
        self.num_own = num_own
        self._causal = causal
        self._cache = cache
        self._layer = 0
        self._rows = CandidateRows(request, cache.keys[0].shape[0])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout: float) -> Tensor:
        """One softmax over the request's events and the candidate's own fields."""
        events_k, events_v = (
            split_heads(kept[self._layer], num_heads)  # [requests, heads, events, head_dim]
            for kept in (self._cache.keys, self._cache.values)
        )
        self._layer += 1
        q, k, v = (split_heads(part, num_heads) for part in (q, k, v))
        mask = self._cache.mask
        if mask is not None:
            mask = mask[:, mask.shape[1] - events_k.shape[2] :]
        found = self._rows.attend(q, k, v, events_k, events_v, mask=mask, causal=self._causal)
        return found.transpose(1, 2).flatten(2)  # [candidates, fields, dim]


class MixedTokens(nn.Module):
    """One module for all tokens that share it, another for the last ones, which do not.

    Args:
        shared: called with the first tokens.
        own: called with the last tokens.
    """

    def __init__(self, shared: nn.Module, own: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.own = own

    def forward(self, x: Tokens, num_own: int) -> Float[Tensor, "batch tokens out"]:
        """The tokens after it; the last `num_own` of them go through `own`, if there are any."""
        num_shared = x.shape[1] - num_own
        if num_own == 0:
            return self.shared(x)
        if num_shared == 0:
            return self.own(x)
        first, last = copy_tokens(x, 0, num_shared), x[:, num_shared:]
        return torch.cat([self.shared(first), self.own(last)], dim=1)


class EqualTokens(nn.Module):
    """One module for all tokens."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tokens, num_own: int) -> Float[Tensor, "batch tokens out"]:
        """The tokens after it, all treated alike."""
        return self.shared(x)


def over_tokens(
    build: Callable[[int | None], nn.Module], num_shared: int, num_own: int, *, mixed: bool
) -> nn.Module:
    """A module over tokens of which some share their weights.

    Args:
        build: makes a module for as many tokens, each with its own weights; with None one that
            tokens share.
        num_shared: tokens that share; with none there are no weights for them.
        num_own: tokens that do not.
        mixed: False: all tokens share.

    Returns:
        A module that is called with tokens and the number of its last ones that do not share.
    """
    if not mixed:
        return EqualTokens(build(None))
    return MixedTokens(build(None) if num_shared else nn.Identity(), build(num_own))


class MixedAttention(nn.Module):
    """Attention of a row's last tokens to all: events share projections, each field has its own.

    Q, K and V are without biases; one projection, shared by all tokens, follows.

    Args:
        dim: width of a token.
        num_heads: heads; divides `dim`.
        num_events: event tokens that it is given.
        num_fields: field tokens.
        num_queries: how many of the event tokens attend, the last ones; the others are read only,
            and get no update.
        mixed: False: fields share the events' projections.
        dropout: share of attention weights dropped in training.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or there are more queries than events.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_events: int,
        num_fields: int,
        *,
        num_queries: int,
        mixed: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}")
        if not 0 <= num_queries <= num_events:
            raise ValueError(
                f"num_queries must be 0 to num_events={num_events}; got num_queries={num_queries}"
            )
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.dropout = dropout
        self.query = over_tokens(
            lambda tokens: _projections(tokens, dim, 1), num_queries, num_fields, mixed=mixed
        )
        self.key_value = over_tokens(
            lambda tokens: _projections(tokens, dim, 2), num_events, num_fields, mixed=mixed
        )
        self.out = linear(dim, dim, bias=False)

    def forward(self, x: Tokens, tokens: Pass) -> Float[Tensor, "batch last_tokens dim"]:
        """The update of the tokens that attend."""
        num_own = tokens.num_own
        first_query = max(x.shape[1] - self.num_queries - num_own, 0)
        q = self.query(copy_tokens(x, first_query, x.shape[1]), num_own)
        k, v = self.key_value(x, num_own).chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return self.out(tokens.attend(q, k, v, self.num_heads, dropout))


def _projections(num_tokens: int | None, dim: int, number: int) -> nn.Module:
    """Bias-free projections side by side, each started as the matrix of its own that it is."""
    layer = token_linear(num_tokens, dim, number * dim, bias=False)
    weight = layer.get_parameter("weight").detach()
    matrices = weight.chunk(number, dim=0) if num_tokens is None else weight.chunk(number, dim=2)
    for matrix in matrices:
        for piece in matrix[None] if num_tokens is None else matrix:
            nn.init.xavier_normal_(piece)
    return layer
