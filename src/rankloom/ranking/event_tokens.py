"""Settings of what makes tokens of events."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.events import EventEmbedding
from rankloom.layers.tokens.events import (
    ByTime,
    EventTokens,
    LatestEventTime,
    OneAfterAnother,
    OneSequence,
    RowTime,
)
from rankloom.layers.tokens.fields import TokenActivation
from rankloom.schema import Schema, SequenceField


class Events(Config):
    """Which sequences become tokens of their own, event by event, and how."""

    groups: tuple[str, ...] | None = None
    """Names of the sequence groups, the order counts where they stand one after another; none:
    every ordered one."""
    max_length: int | dict[str, int] | None = None
    """Latest events that are read, of every group or by group; none: all that the data keeps."""
    merge: Literal["auto", "by_time", "one_after_another"] = "auto"
    """How several groups become one sequence; auto: by time where all have one."""
    reference: Literal["auto", "row", "latest_event"] = "auto"
    """What events' times are compared with: the row's own time, or that of its latest event. auto:
    the row's, where the data has it."""
    recency: bool = True
    """Add a learned vector for the time since the event, where it is known."""
    positions: bool = True
    """Add a learned vector for the place from the end of the sequence."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of each group's network; empty: one linear layer."""
    activation: TokenActivation = "gelu"
    """Activation of the hidden layers."""
    bias_std: float = Field(0.0, ge=0)
    """Standard deviation that the vector of a group, the bias of its network, starts with; as of
    field tokens."""
    pooled: bool = False
    """Keep the mean of these sequences as fields too."""

    def chosen(self, schema: Schema) -> list[SequenceField]:
        """The groups, each with the events that are kept of it as its `max_length`.

        Raises:
            ValueError: a name is no group of ordered events, or a length is below one.
        """
        ordered = {group.name: group for group in schema.sequences if group.ordered}
        names = tuple(ordered) if self.groups is None else self.groups
        lengths = self.max_length
        limits = lengths if isinstance(lengths, dict) else dict.fromkeys(names, lengths)
        for name in (*names, *limits):
            if name not in ordered:
                known = ", ".join(ordered) or "there is none"
                raise ValueError(f"{name} is no sequence of events; those of the data: {known}")
        chosen = []
        for name in dict.fromkeys(names):
            limit, most = limits.get(name), ordered[name].max_length
            if limit is not None and limit < 1:
                raise ValueError(f"max_length must be at least 1; got {limit} for {name}")
            length = most if limit is None else min(limit, most)
            chosen.append(ordered[name].model_copy(update={"max_length": length}))
        return chosen

    def order(self, groups: Sequence[SequenceField]) -> Literal["by_time", "one_after_another"]:
        """How several groups become one sequence.

        Raises:
            ValueError: an order by time is asked for, and a group has no times.
        """
        timeless = [group.name for group in groups if not group.has_time]
        if self.merge == "by_time" and timeless:
            raise ValueError(
                f'merge = "by_time" needs the time of every event; without one: '
                f'{", ".join(timeless)}; set merge = "one_after_another"'
            )
        if self.merge == "one_after_another" or timeless:
            return "one_after_another"
        return "by_time"

    def build(
        self, groups: Sequence[SequenceField], schema: Schema, embedding: FieldEmbedding, dim: int
    ) -> EventTokens:
        """What makes tokens of width `dim`.

        Args:
            groups: the groups, as `chosen` gives them.
            schema: the data.
            embedding: the fields' embedding; it stacks the groups' tables.
            dim: width of a token.

        Raises:
            ValueError: an order by time, or a row's time, that the data does not have.
        """
        return EventTokens(
            {group.name: EventEmbedding(group, embedding) for group in groups},
            dim,
            self._merge(groups, dim),
            self._reference(groups, schema),
            hidden=self.hidden,
            activation=self.activation,
            positions=self.positions,
            recency=self.recency,
            bias_std=self.bias_std,
        )

    def _merge(
        self, groups: Sequence[SequenceField], dim: int
    ) -> OneSequence | ByTime | OneAfterAnother:
        lengths = [group.max_length for group in groups]
        if len(groups) == 1:
            return OneSequence(lengths)
        return ByTime(lengths) if self.order(groups) == "by_time" else OneAfterAnother(lengths, dim)

    def _reference(
        self, groups: Sequence[SequenceField], schema: Schema
    ) -> RowTime | LatestEventTime | None:
        if not any(group.has_time for group in groups):
            return None
        if self.reference == "row" and not schema.has_time:
            raise ValueError(
                'reference = "row" needs a time role in the table schema; set reference = '
                '"latest_event"'
            )
        if self.reference == "latest_event" or not schema.has_time:
            return LatestEventTime()
        return RowTime()
