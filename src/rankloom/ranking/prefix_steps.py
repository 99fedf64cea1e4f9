"""A prefix network's depths one at a time, so that some rows can stop before others.

What a row needs to go on are its own streams: those of its sequence tokens and of its fields. So
any rows of a state are a state.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rankloom.batch import Batch
from rankloom.layers.connections.steps import Streams
from rankloom.ranking.prefix_network import PrefixNetwork
from rankloom.ranking.prefix_parts import (
    AmongEvents,
    EncodedEvents,
    Events,
    NoEvents,
    OwnEvents,
    Trace,
)

PLACE = "here"
"""The name of the layer at hand: no other layer's keys are kept."""


@dataclass(frozen=True)
class SequenceState:
    """Sequence tokens of some rows at a depth."""

    streams: Streams
    """Their residual streams."""
    real: Bool[Tensor, "batch tokens"]
    """False at padding."""


@dataclass(frozen=True)
class DepthState:
    """Some rows at a depth."""

    depth: int
    """Blocks that they have been through."""
    fields: Streams
    """Residual streams of the field tokens."""
    sequence: SequenceState | None
    """The sequence tokens; None where the data has none."""

    def select(self, rows: Int[Tensor, " selected"]) -> "DepthState":
        """Some of the rows, in the given order."""
        sequence = self.sequence
        if sequence is not None:
            streams, real = (
                tensor.index_select(0, rows) for tensor in (sequence.streams, sequence.real)
            )
            sequence = SequenceState(streams, real)
        return DepthState(self.depth, self.fields.index_select(0, rows), sequence)


def start_depths(network: PrefixNetwork, batch: Batch) -> DepthState:
    """All rows after the entry."""
    fields = network.streams.enter(network.tokens.fields(batch))
    tokens = network.tokens.events(batch)
    if tokens is None:
        return DepthState(0, network.entry.fields(fields, NoEvents(), Trace()), None)
    taken = network.packing(tokens.mask)
    entering = network.streams.enter(taken.take(tokens.x))
    streams, kept = network.entry.sequence(entering, taken, Trace())
    events = OwnEvents(EncodedEvents(kept, tokens.mask))
    fields = network.entry.fields(fields, events, Trace())
    return DepthState(0, fields, SequenceState(taken.put_back(streams), tokens.mask))


def next_depth(network: PrefixNetwork, state: DepthState) -> DepthState:
    """The same rows after one more block.

    Raises:
        ValueError: they are at the last depth.
    """
    number = state.depth + 1
    if number >= network.num_depths:
        raise ValueError(f"there are {network.num_depths} depths; got rows at the last one")
    sequence = state.sequence
    events: Events = NoEvents()
    if sequence is not None:
        taken = network.packing(sequence.real)
        among, streams = AmongEvents(taken), taken.take(sequence.streams)
        streams = network.run_block(streams, number, among, taken.real, Trace())
        events = OwnEvents(EncodedEvents({PLACE: among.kept[0]}, sequence.real))
        sequence = SequenceState(taken.put_back(streams), sequence.real)
    fields = network.run_block(state.fields, number, events.beside(PLACE), None, Trace())
    return DepthState(number, fields, sequence)


def state_logits(network: PrefixNetwork, state: DepthState) -> Float[Tensor, "batch tasks"]:
    """What the exit gives of the rows at their depth."""
    sequence = state.sequence
    events: Events = NoEvents()
    if sequence is not None:
        taken = network.packing(sequence.real)
        streams = taken.take(sequence.streams)
        k, v = network.exit.keys_values(streams, taken.real, Trace(), PLACE)
        kept = {PLACE: (taken.spread(k), taken.spread(v))}
        events = OwnEvents(EncodedEvents(kept, sequence.real))
    left = network.exit(state.fields, events.alone(PLACE), None, Trace(), PLACE)
    tokens = network.norm(network.streams.leave(left))
    logits: Tensor = network.head(tokens.flatten(1))
    return logits
