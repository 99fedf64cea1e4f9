"""Layers of LoopCTR's blocks, and which tokens each of them reads.

The sequence tokens of a row never read its field tokens. So they go through all layers first, and
what fields will read of them, keys and values, is kept; then the fields follow. That is the same
for a row with its own events and for many candidates of one request.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.candidates import CandidateRows
from rankloom.layers.connections.steps import OneStream, SeveralStreams, Streams
from rankloom.layers.expert_attention import ExpertAttention
from rankloom.layers.experts import TokenExperts
from rankloom.layers.norm import RMSNorm
from rankloom.layers.packing import PaddedTokens
from rankloom.layers.routing import Routing, TopKRouter
from rankloom.layers.token_mlp import TokenMLP

Tokens = Float[Tensor, "batch tokens dim"]
KeysValues = tuple[
    Float[Tensor, "batch heads events head_dim"], Float[Tensor, "batch heads events head_dim"]
]
"""What an attention reads of the sequence tokens."""
Reach = Callable[[ExpertAttention, Tokens], tuple[Tokens, Routing | None]]
"""Lets tokens attend to those in their reach: their update, and the experts that they chose."""
Real = Bool[Tensor, "batch tokens"] | None
"""False at padding; None: all tokens are real."""


@dataclass(frozen=True)
class Trace:
    """Which experts tokens chose, by sublayer and depth; sequence tokens and fields apart."""

    choices: dict[str, list[tuple[Routing, Real]]] = field(default_factory=dict)

    def add(self, place: str, routing: Routing | None, real: Real) -> None:
        """Note a choice, if there was one to make."""
        if routing is not None:
            self.choices.setdefault(place, []).append((routing, real))

    def extend(self, other: "Trace") -> None:
        """Note what another one has noted."""
        for place, choices in other.choices.items():
            self.choices.setdefault(place, []).extend(choices)

    def joined(self) -> dict[str, tuple[Routing, Bool[Tensor, "1 tokens"]]]:
        """The choices of all tokens of every sublayer as of one row, and which are real."""
        return {place: _join(parts) for place, parts in self.choices.items()}


def _join(parts: list[tuple[Routing, Real]]) -> tuple[Routing, Bool[Tensor, "1 tokens"]]:
    masks = [
        routing.gates.new_ones(routing.gates.shape[:2], dtype=torch.bool) if real is None else real
        for routing, real in parts
    ]
    gates, scores, mask = (
        torch.cat([part.flatten(0, 1) for part in each]).unsqueeze(0)
        for each in (
            [routing.gates for routing, _ in parts],
            [routing.scores for routing, _ in parts],
            masks,
        )
    )
    return Routing(gates, scores, shared=True), mask


class _OneNetwork(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.network = TokenMLP(None, dim, hidden_dim, dropout=dropout)

    def forward(self, x: Tokens) -> tuple[Tokens, None]:
        return self.network(x), None


class _ExpertNetwork(nn.Module):
    def __init__(
        self, dim: int, hidden_dim: int, num_experts: int, num_active: int, dropout: float
    ) -> None:
        super().__init__()
        self.router = TopKRouter(None, dim, num_experts, num_active, normalised=True, bias=False)
        self.experts = TokenExperts(None, num_experts, dim, hidden_dim, dropout=dropout)

    def forward(self, x: Tokens) -> tuple[Tokens, Routing]:
        routing = self.router(x)
        return self.experts(x, routing.gates), routing


@dataclass(frozen=True)
class LayerSizes:
    """What all layers of a model have in common."""

    dim: int
    """Width of a token."""
    num_heads: int
    """Heads; divides `dim`."""
    hidden_dim: int
    """Width of an expert's hidden layer."""
    num_experts: int
    """Experts of attention, and as many of the network; 1: none to choose from."""
    num_active: int
    """Experts that run for a token."""
    dropout: float
    """Share of attention weights and of hidden units dropped in training."""
    streams: OneStream | SeveralStreams
    """Residual streams."""


class ExpertLayer(nn.Module):
    """Attention, then a network, both with experts; a step between streams around each.

    Args:
        sizes: sizes of the layer.
        number: the layer's number within the model.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or more experts are to run than there are.
    """

    def __init__(self, sizes: LayerSizes, number: int) -> None:
        super().__init__()
        dim, dropout = sizes.dim, sizes.dropout
        num_experts, num_active = sizes.num_experts, sizes.num_active
        self.attention_step = sizes.streams.build_step(dim, 2 * number)
        self.attention_norm = RMSNorm(dim)
        self.attention = ExpertAttention(
            dim, sizes.num_heads, num_experts, num_active, dropout=dropout
        )
        self.network_step = sizes.streams.build_step(dim, 2 * number + 1)
        self.network_norm = RMSNorm(dim)
        self.network: nn.Module
        if num_experts == 1:
            self.network = _OneNetwork(dim, sizes.hidden_dim, dropout)
        else:
            self.network = _ExpertNetwork(dim, sizes.hidden_dim, num_experts, num_active, dropout)

    def forward(
        self, streams: Streams, reach: Reach, real: Real, trace: Trace, place: str
    ) -> Streams:
        """The streams after the layer.

        Args:
            streams: of all tokens.
            reach: what they attend to.
            real: False at padding, which is not counted among the experts' choices.
            trace: where these are noted.
            place: the layer's name there.
        """

        def attend(x: Tokens) -> Tokens:
            update, routing = reach(self.attention, self.attention_norm(x))
            trace.add(f"{place}.attention", routing, real)
            return update

        def transform(x: Tokens) -> Tokens:
            update, routing = self.network(self.network_norm(x))
            trace.add(f"{place}.network", routing, real)
            return update

        return self.network_step(self.attention_step(streams, attend), transform)

    def keys_values(self, streams: Streams, real: Real, trace: Trace, place: str) -> KeysValues:
        """What the attention reads of tokens that do not attend themselves; as `forward`."""
        kept: list[KeysValues] = []

        def keep(x: Tokens) -> Tokens:
            x = self.attention_norm(x)
            routing = self.attention.route(x)
            trace.add(f"{place}.attention", routing, real)
            kept.append(self.attention.keys_values(x, routing))
            return x[:, :0]  # an update of no token

        self.attention_step(streams, keep)
        return kept[0]


def among_fields(attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
    """Fields of rows attend to each other."""
    routing = attention.route(x)
    return attention.attend(x, routing, *attention.keys_values(x, routing)), routing


class AmongEvents:
    """Sequence tokens attend to each other.

    Args:
        tokens: those that are computed with.
        allowed: True where one may attend to another, beside its being real; None: everywhere.
    """

    def __init__(
        self, tokens: PaddedTokens, allowed: Bool[Tensor, "tokens tokens"] | None = None
    ) -> None:
        self._tokens = tokens
        mask = tokens.mask[:, None, None]
        self._mask = mask if allowed is None else mask & allowed
        self.kept: list[KeysValues] = []
        """The keys and values of every call, those of padding among them."""

    def __call__(self, attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
        """The tokens' update."""
        routing = attention.route(x)
        own = attention.keys_values(x, routing)
        q, k, v = (self._tokens.spread(part) for part in (attention.queries(x), *own))
        self.kept.append((k, v))
        found = self._tokens.gather(attention.find(q, k, v, self._mask))
        return attention.outputs(found, routing), routing


@dataclass(frozen=True)
class EncodedEvents:
    """Sequence tokens of some rows or requests, as the fields of every layer read them."""

    kept: dict[str, KeysValues]
    """Keys and values by the layer's name: those that fields read."""
    real: Bool[Tensor, "requests events"]
    """False at padding."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for pair in self.kept.values() for tensor in pair)


class NoEvents:
    """Fields of rows that have no sequence tokens: they read each other, everywhere."""

    def beside(self, place: str) -> Reach:
        """What fields read in the layer of a name where they also read each other."""
        return among_fields

    def alone(self, place: str) -> Reach:
        """What fields read where they do not, if there is something else."""
        return among_fields


class OwnEvents:
    """Fields of rows, and the sequence tokens of the same rows.

    Args:
        encoded: the sequence tokens.
    """

    def __init__(self, encoded: EncodedEvents) -> None:
        self._encoded = encoded

    def beside(self, place: str) -> Reach:
        """Fields read the row's sequence tokens and each other."""
        kept, real = self._encoded.kept[place], self._encoded.real

        def reach(attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
            routing = attention.route(x)
            own = attention.keys_values(x, routing)
            k, v = (torch.cat(pair, dim=2) for pair in zip(kept, own, strict=True))
            mask = torch.cat([real, real.new_ones(x.shape[:2])], dim=1)
            return attention.attend(x, routing, k, v, mask[:, None, None]), routing

        return reach

    def alone(self, place: str) -> Reach:
        """Fields read the row's sequence tokens; nothing where it has none."""
        kept, real = self._encoded.kept[place], self._encoded.real

        def reach(attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
            routing = attention.route(x)
            return attention.attend(x, routing, *kept, real[:, None, None]), routing

        return reach


class RequestEvents:
    """Fields of candidates, and the sequence tokens of their requests, which are not copied.

    Attention weights are not dropped: candidates are scored, not trained on.

    Args:
        encoded: the sequence tokens.
        rows: the candidates.
    """

    def __init__(self, encoded: EncodedEvents, rows: CandidateRows) -> None:
        self._encoded = encoded
        self._rows = rows

    def beside(self, place: str) -> Reach:
        """Fields read the request's sequence tokens and those of their own candidate."""
        kept, real = self._encoded.kept[place], self._encoded.real

        def reach(attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
            routing = attention.route(x)
            own = attention.keys_values(x, routing)
            found = self._rows.attend(attention.queries(x), *own, *kept, mask=real)
            return attention.outputs(found, routing), routing

        return reach

    def alone(self, place: str) -> Reach:
        """Fields read the request's sequence tokens; nothing where it has none."""
        kept, real = self._encoded.kept[place], self._encoded.real

        def reach(attention: ExpertAttention, x: Tokens) -> tuple[Tokens, Routing | None]:
            routing = attention.route(x)
            found = self._rows.read(attention.queries(x), *kept, mask=real)
            return attention.outputs(found, routing), routing

        return reach


Events = NoEvents | OwnEvents | RequestEvents
"""What fields read beside each other, or alone."""
