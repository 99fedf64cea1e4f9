"""Entry, some blocks, exit: what LoopCTR, whose blocks are one, and StackCTR have in common.

Sources and equations stand in `loopctr.py`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankloom.batch import Batch
from rankloom.layers.candidates import CandidateRows
from rankloom.layers.connections.steps import Streams
from rankloom.layers.events import PaddedEvents
from rankloom.layers.losses import ranking_loss
from rankloom.layers.norm import RMSNorm
from rankloom.layers.packing import TokenPacking
from rankloom.layers.routing import balance
from rankloom.protocols import Loss
from rankloom.ranking.prefix_config import PrefixNetworkConfig
from rankloom.ranking.prefix_parts import (
    AmongEvents,
    EncodedEvents,
    Events,
    ExpertLayer,
    KeysValues,
    NoEvents,
    OwnEvents,
    Reach,
    Real,
    RequestEvents,
    Trace,
)
from rankloom.schema import Schema


class DepthVectors(nn.Module):
    """A learned vector for every block, added to the streams that it reads; they start at zero."""

    def __init__(self, num_blocks: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_blocks, dim))
        """[blocks, dim]."""

    def forward(self, streams: Streams, number: int) -> Streams:
        """The streams that the block of a number, from one, reads."""
        return streams + self.weight[number - 1]


class _NoVectors(nn.Module):
    def forward(self, streams: Streams, number: int) -> Streams:
        return streams


_AfterBlock = tuple[Streams, list[KeysValues], Trace]
"""The streams after a block, what fields will read of them there, the experts' choices."""


class PrefixNetwork(nn.Module):
    """An entry layer, blocks that run one after another, and one exit that can follow any of them.

    Depth d is the exit after d blocks; what lies deeper is not run.

    Args:
        config: the settings.
        schema: the data.
        order: which layer every block is; equal numbers share their weights.
        depth_vectors: whether blocks are told apart by a learned vector each.

    Raises:
        ValueError: as `PrefixInput`, `num_heads` does not divide `dim`, or more experts are to
            run than there are.
    """

    def __init__(
        self,
        config: PrefixNetworkConfig,
        schema: Schema,
        order: Sequence[int],
        *,
        depth_vectors: bool = False,
    ) -> None:
        super().__init__()
        sizes = config.layer_sizes()
        self.streams = sizes.streams
        self.order = list(order)
        num_layers = max(self.order, default=-1) + 1
        self.tokens = config.build_tokens(schema)
        self.entry = config.grouping.build(sizes, self.tokens.sizes)
        self.packing = TokenPacking(enabled=self.entry.packs)
        self.layers = nn.ModuleList(ExpertLayer(sizes, 1 + number) for number in range(num_layers))
        self.depth_vectors = (
            DepthVectors(len(self.order), config.dim) if depth_vectors else _NoVectors()
        )
        self.exit = ExpertLayer(sizes, 1 + num_layers)
        self.norm = RMSNorm(config.dim)
        width = self.tokens.num_fields * config.dim
        self.head = config.head.build_network(width, out_features=schema.num_tasks)
        self.balance_weight = config.balance_weight if config.num_experts > 1 else 0.0
        self.checkpoint_loops = config.checkpoint_loops
        self.pools_events = config.events.pooled

    @property
    def num_depths(self) -> int:
        """Depths that it can be left at."""
        return len(self.order) + 1

    def forward(
        self, batch: Batch, depths: Collection[int], trace: Trace | None = None
    ) -> list[Float[Tensor, "batch tasks"]]:
        """Logits at some depths, shallowest first; `trace` takes the experts' choices."""
        trace = Trace() if trace is None else trace
        sequence = self.tokens.events(batch)
        if sequence is None:
            return self._read(self.tokens.fields(batch), NoEvents(), depths, trace)
        encoded = self._encode(sequence, depths, trace)
        return self._read(self.tokens.fields(batch), OwnEvents(encoded), depths, trace)

    def depth_logits(
        self, batch: Batch, num_depths: int | None = None
    ) -> Float[Tensor, "depths batch tasks"]:
        """Logits of the first `num_depths` depths, shallowest first; None: of all.

        Raises:
            ValueError: there are not so many depths.
        """
        wanted = self.num_depths if num_depths is None else num_depths
        if not 1 <= wanted <= self.num_depths:
            raise ValueError(f"num_depths must be 1 to {self.num_depths}; got {wanted}")
        return torch.stack(self(batch, range(wanted)))

    def loss(self, batch: Batch, weights: Sequence[float]) -> Loss:
        """The weighted sum of the losses at all depths, and the experts' balance.

        Parts: `depth_0`, `depth_1` ..., unweighted, of the depths that have a weight, and
        `balance`, weighted.

        Args:
            batch: rows with labels.
            weights: a weight for every depth.

        Raises:
            ValueError: the batch has no labels.
        """
        trace = Trace()
        depths = [depth for depth, weight in enumerate(weights) if weight > 0]
        logits = self(batch, depths, trace)
        parts = {
            f"depth_{depth}": ranking_loss(one, batch).total
            for depth, one in zip(depths, logits, strict=True)
        }
        wanted = [weights[depth] * parts[f"depth_{depth}"] for depth in depths]
        if self.balance_weight > 0:
            each = [balance(routing, mask=real) for routing, real in trace.joined().values()]
            parts["balance"] = self.balance_weight * torch.stack(each).mean()
            wanted.append(parts["balance"])
        return Loss(torch.stack(wanted).sum(), parts)

    def encode_events(self, requests: Batch, depth: int) -> EncodedEvents:
        """What the candidates of requests read of their events at a depth.

        Raises:
            ValueError: events are pooled fields too, or the data has none.
        """
        if self.pools_events:
            raise ValueError(
                "events that are pooled fields too would have to be read for every candidate; got "
                "events.pooled=true, set events.pooled = false"
            )
        sequence = self.tokens.events(requests)
        if sequence is None:
            raise ValueError("there are no events to encode; got none in the schema, call forward")
        return self._encode(sequence, [depth], Trace())

    def score(
        self,
        candidates: Batch,
        encoded: EncodedEvents,
        request: Int[Tensor, " candidates"],
        depth: int,
    ) -> Float[Tensor, "candidates tasks"]:
        """Logits of candidates, each against the encoded events of its request.

        Raises:
            ValueError: the events were encoded for another depth.
        """
        if _exit(depth) not in encoded.kept:
            raise ValueError(
                f"the events were encoded for another depth; got layers {', '.join(encoded.kept)} "
                f"for depth {depth}, call encode_events again"
            )
        rows = CandidateRows(request, encoded.real.shape[0])
        events = RequestEvents(encoded, rows)
        return self._read(self.tokens.fields(candidates), events, [depth], Trace())[0]

    def _encode(
        self, sequence: PaddedEvents, depths: Collection[int], trace: Trace
    ) -> EncodedEvents:
        """The sequence tokens through all layers, down to the deepest of some depths."""
        tokens = self.packing(sequence.mask)
        streams = self.streams.enter(tokens.take(sequence.x))
        streams, kept = self.entry.sequence(streams, tokens, trace)

        def block(streams: Streams, number: int) -> _AfterBlock:
            among, own = AmongEvents(tokens), Trace()
            return self.run_block(streams, number, among, tokens.real, own), among.kept, own

        for depth in range(max(depths) + 1):
            if depth > 0:
                streams, (kept[_block(depth)],), choices = self._run(block, streams, depth)
                trace.extend(choices)
            if depth in depths:
                place = _exit(depth)
                k, v = self.exit.keys_values(streams, tokens.real, trace, place)
                kept[place] = tokens.spread(k), tokens.spread(v)
        return EncodedEvents(kept, sequence.mask)

    def _read(
        self,
        fields: Float[Tensor, "batch fields dim"],
        events: Events,
        depths: Collection[int],
        trace: Trace,
    ) -> list[Float[Tensor, "batch tasks"]]:
        """The field tokens through all layers, and logits at some depths."""
        streams = self.entry.fields(self.streams.enter(fields), events, trace)
        logits = []

        def block(streams: Streams, number: int) -> _AfterBlock:
            reach, own = events.beside(_block(number)), Trace()
            return self.run_block(streams, number, reach, None, own), [], own

        for depth in range(max(depths) + 1):
            if depth > 0:
                streams, _, choices = self._run(block, streams, depth)
                trace.extend(choices)
            if depth in depths:
                place = _exit(depth)
                left = self.exit(streams, events.alone(place), None, trace, place)
                tokens = self.norm(self.streams.leave(left))
                logits.append(self.head(tokens.flatten(1)))  # [batch, fields * dim] to tasks
        return logits

    def run_block(
        self, streams: Streams, number: int, reach: Reach, real: Real, trace: Trace
    ) -> Streams:
        """The streams of tokens after the block of a number, from one; as `ExpertLayer`."""
        streams = self.depth_vectors(streams, number)
        layer = self.layers[self.order[number - 1]]
        return layer(streams, reach, real, trace, _block(number))

    def _run(
        self, block: Callable[[Streams, int], _AfterBlock], streams: Streams, number: int
    ) -> _AfterBlock:
        if self.checkpoint_loops and self.training:
            return cast(_AfterBlock, checkpoint(block, streams, number, use_reentrant=False))
        return block(streams, number)


def _block(number: int) -> str:
    """A block's name among all layers; the first is 1."""
    return f"block_{number}"


def _exit(depth: int) -> str:
    """The exit's name at a depth."""
    return f"exit_{depth}"
