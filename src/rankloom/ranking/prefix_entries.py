"""Settings of LoopCTR's entry layer: which tokens attend to which before the first loop."""

from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.connections.steps import Streams
from rankloom.layers.packing import PaddedTokens
from rankloom.layers.tokens.copies import copy_tokens
from rankloom.ranking.prefix_parts import (
    AmongEvents,
    Events,
    ExpertLayer,
    KeysValues,
    LayerSizes,
    Trace,
    among_fields,
)


class Entry(Protocol):
    """The entry layer, first over sequence tokens, then over fields."""

    packs: bool
    """Whether it can do without the padding of sequence tokens."""

    def sequence(
        self, streams: Streams, tokens: PaddedTokens, trace: Trace
    ) -> tuple[Streams, dict[str, KeysValues]]:
        """The sequence tokens' streams after it, and what fields will read of them in it."""

    def fields(self, streams: Streams, events: Events, trace: Trace) -> Streams:
        """The fields' streams after it."""


class _SharedGroups(nn.Module):
    """One layer; tokens attend within their group."""

    packs = True

    def __init__(self, layer: ExpertLayer, groups: Mapping[str, int]) -> None:
        super().__init__()
        self.layer = layer
        number = torch.repeat_interleave(torch.tensor(list(groups.values()), dtype=torch.int64))
        same = number[:, None] == number
        if len(groups) == 1:
            same = same[:1, :1]  # a mask of padding alone is smaller
        self.register_buffer("same", same, persistent=False)
        self.same: Bool[Tensor, "#events #events"]
        """True at two tokens of one group."""

    def sequence(
        self, streams: Streams, tokens: PaddedTokens, trace: Trace
    ) -> tuple[Streams, dict[str, KeysValues]]:
        within = AmongEvents(tokens, self.same)
        return self.layer(streams, within, tokens.real, trace, "entry"), {}

    def fields(self, streams: Streams, events: Events, trace: Trace) -> Streams:
        return self.layer(streams, among_fields, None, trace, "entry")


class _OwnGroups(nn.Module):
    """A layer for every group, whose tokens attend to each other."""

    packs = False  # groups are told apart by their places

    def __init__(self, sizes: LayerSizes, groups: Mapping[str, int]) -> None:
        super().__init__()
        self.groups = dict(groups)
        self.layers = nn.ModuleDict({name: ExpertLayer(sizes, 0) for name in [*groups, "fields"]})

    def sequence(
        self, streams: Streams, tokens: PaddedTokens, trace: Trace
    ) -> tuple[Streams, dict[str, KeysValues]]:
        parts, start = [], 0
        for name, size in self.groups.items():
            own = PaddedTokens(tokens.mask[:, start : start + size])
            given = copy_tokens(streams, start, start + size)
            reach = AmongEvents(own)
            parts.append(self.layers[name](given, reach, own.real, trace, f"entry.{name}"))
            start += size
        return torch.cat(parts, dim=1), {}

    def fields(self, streams: Streams, events: Events, trace: Trace) -> Streams:
        return self.layers["fields"](streams, among_fields, None, trace, "entry.fields")


class _Prefix(nn.Module):
    """One layer; sequence tokens attend to each other, fields to all tokens."""

    packs = True

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.layer = layer

    def sequence(
        self, streams: Streams, tokens: PaddedTokens, trace: Trace
    ) -> tuple[Streams, dict[str, KeysValues]]:
        among = AmongEvents(tokens)
        streams = self.layer(streams, among, tokens.real, trace, "entry")
        return streams, {"entry": among.kept[0]}

    def fields(self, streams: Streams, events: Events, trace: Trace) -> Streams:
        return self.layer(streams, events.beside("entry"), None, trace, "entry")


class SharedGroups(Config):
    """Tokens attend within their group, all groups with the same weights."""

    kind: Literal["shared"] = "shared"

    def build(self, sizes: LayerSizes, groups: Mapping[str, int]) -> Entry:
        """The entry layer.

        Args:
            sizes: sizes of a layer.
            groups: sequence tokens of every group, as they stand one after another.
        """
        return _SharedGroups(ExpertLayer(sizes, 0), groups)


class OwnGroups(Config):
    """Tokens attend within their group, every group with weights of its own."""

    kind: Literal["own"] = "own"

    def build(self, sizes: LayerSizes, groups: Mapping[str, int]) -> Entry:
        """As `SharedGroups.build`."""
        return _OwnGroups(sizes, groups)


class NoGroups(Config):
    """Sequence tokens attend to all sequence tokens, fields to all tokens, as in the loops."""

    kind: Literal["none"] = "none"

    def build(self, sizes: LayerSizes, groups: Mapping[str, int]) -> Entry:
        """As `SharedGroups.build`."""
        return _Prefix(ExpertLayer(sizes, 0))


Grouping = Annotated[SharedGroups | OwnGroups | NoGroups, Field(discriminator="kind")]
