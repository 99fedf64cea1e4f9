"""A batch of rows as a handful of tensors.

All classes are frozen dataclasses registered with torch's pytrees, so that a batch goes through
`torch.compile` and `torch.export` as it is. Parts that a data set does not have are None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Rows of different length, one after another."""

    values: Tensor
    """[positions, ...]: the rows' values joined."""
    offsets: Int[Tensor, " batch_plus_one"]
    """Row i holds values[offsets[i]:offsets[i+1]]; int64, starts at 0."""

    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of values in each row."""
        return self.offsets.diff()

    def to_padded(self, length: int) -> tuple[Tensor, Bool[Tensor, "batch length"]]:
        """The last `length` values of each row, padded with zeros at the end.

        Returns:
            values [batch, length, ...] and the mask that is True at real values.
        """
        ends = self.offsets[1:]
        kept = self.lengths().clamp(max=length)
        steps = torch.arange(length, device=self.values.device)
        mask = steps < kept[:, None]  # [batch, length]
        if self.values.shape[0] == 0:
            shape = (mask.shape[0], length, *self.values.shape[1:])
            return self.values.new_zeros(shape), mask
        index = ((ends - kept)[:, None] + steps).clamp(max=self.values.shape[0] - 1)
        padded = self.values[index]
        return padded.masked_fill(~mask.view(*mask.shape, *[1] * (padded.ndim - 2)), 0), mask


@dataclass(frozen=True)
class SequenceGroup:
    """Members of one sequence group; all share the offsets."""

    offsets: Int[Tensor, " batch_plus_one"]
    """Row i holds positions offsets[i]:offsets[i+1]; int64, starts at 0."""
    ids: Int[Tensor, "positions id_columns"]
    """int32; which columns belong to which member is in `SequenceField.ids`."""
    numeric: Float[Tensor, "positions numeric_columns"] | None = None
    """float32, one column per numeric member."""
    time: Int[Tensor, " positions"] | None = None
    """int64 seconds."""
    vectors: dict[str, Float[Tensor, "positions width"]] = field(default_factory=dict)
    """float32 vectors by member name."""

    def lengths(self) -> Int[Tensor, " batch"]:
        """Events in each row."""
        return self.offsets.diff()


@dataclass(frozen=True)
class Batch:
    """Everything a model or a loss reads of some rows. Column meanings stand in the `Schema`."""

    categorical: Int[Tensor, "batch fields"]
    """int32 ids; width 0 when there are no categorical fields."""
    numeric: Float[Tensor, "batch numeric_fields"]
    """float32; width 0 when there are no numeric fields."""
    sequences: dict[str, SequenceGroup] = field(default_factory=dict)
    """Sequence groups by name."""
    vectors: dict[str, Float[Tensor, "batch width"]] = field(default_factory=dict)
    """float32 vectors by field name."""
    labels: Float[Tensor, "batch tasks"] | None = None
    """float32 in {0, 1}; 0 where missing. None at serving."""
    label_mask: Bool[Tensor, "batch tasks"] | None = None
    """True where the label is known. None: all are."""
    weight: Float[Tensor, " batch"] | None = None
    """float32 weight of each row."""
    scenario: Int[Tensor, " batch"] | None = None
    """int32 scenario index; 0 is unknown."""
    group: Int[Tensor, " batch"] | None = None
    """int64 group key (for GAUC)."""
    time: Int[Tensor, " batch"] | None = None
    """int64 seconds."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.categorical.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply `function` to every tensor (a device move, pinning)."""
        return _map_tensors(self, function)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def without_labels(self) -> "Batch":
        """The batch as serving sees it: features, scenario and time only."""
        return replace(self, labels=None, label_mask=None, weight=None, group=None)

    def select(self, rows: Int[Tensor, " rows"]) -> "Batch":
        """The given rows, in the given order; one gather per tensor."""
        sequences = {name: select_group(group, rows) for name, group in self.sequences.items()}
        flat = replace(self, sequences={}).map(lambda tensor: tensor.index_select(0, rows))
        return replace(flat, sequences=sequences)


Value = TypeVar("Value")


def _map_tensors(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    if isinstance(value, Tensor):
        return cast(Value, function(value))
    if isinstance(value, dict):
        return cast(Value, {key: _map_tensors(item, function) for key, item in value.items()})
    if isinstance(value, SequenceGroup | Batch):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        return cast(Value, type(value)(**_map_tensors(parts, function)))
    return value


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches, one batch after another; one copy per tensor.

    Raises:
        ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("concat_batches needs at least one batch")
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    parts = {
        part.name: _concat([getattr(batch, part.name) for batch in batches])
        for part in fields(first)
        if part.name != "sequences"
    }
    sequences = {
        name: concat_groups([batch.sequences[name] for batch in batches])
        for name in first.sequences
    }
    return Batch(sequences=sequences, **parts)


def _concat(values: list[Value]) -> Value:
    first = values[0]
    if isinstance(first, Tensor):
        return cast(Value, torch.cat(cast(list[Tensor], values)))
    if isinstance(first, dict):
        tables = cast(list[dict[str, Tensor]], values)
        return cast(Value, {key: _concat([table[key] for table in tables]) for key in first})
    return first


def concat_groups(groups: Sequence[SequenceGroup]) -> SequenceGroup:
    """The rows of several sequence groups, one group after another."""
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.ids.shape[0])
    offsets = [group.offsets[:-1] + start for group, start in zip(groups, starts, strict=False)]
    offsets.append(groups[0].offsets.new_tensor([starts[-1]]))
    events = {
        part.name: _concat([getattr(group, part.name) for group in groups])
        for part in fields(groups[0])
        if part.name != "offsets"
    }
    return SequenceGroup(offsets=torch.cat(offsets), **events)


def select_group(group: SequenceGroup, rows: Int[Tensor, " rows"]) -> SequenceGroup:
    """The given rows of one sequence group, in the given order; one gather per tensor."""
    index, offsets = jagged_rows(group.offsets, rows)
    return SequenceGroup(offsets=offsets, **_select_events(group, index))


def _select_events(group: SequenceGroup, index: Int[Tensor, " selected"]) -> dict[str, Any]:
    events = {
        part.name: getattr(group, part.name) for part in fields(group) if part.name != "offsets"
    }
    return _map_tensors(events, lambda tensor: tensor.index_select(0, index))


def clear_rows(group: SequenceGroup, rows: Bool[Tensor, " batch"]) -> SequenceGroup:
    """The group without the events of the rows that are True; they stay, as empty rows."""
    lengths = group.lengths()
    kept = torch.repeat_interleave(~rows, lengths, output_size=group.ids.shape[0])
    index = kept.nonzero().squeeze(1)
    ends = lengths.masked_fill(rows, 0).cumsum(0)
    return SequenceGroup(
        offsets=torch.cat([ends.new_zeros(1), ends]), **_select_events(group, index)
    )


def jagged_rows(
    offsets: Int[Tensor, " rows_plus_one"], rows: Int[Tensor, " selected"]
) -> tuple[Int[Tensor, " positions"], Int[Tensor, " selected_plus_one"]]:
    """Positions and new offsets of some rows of a jagged layout, without a loop over rows.

    Args:
        offsets: int64 offsets of all rows.
        rows: the rows wanted, in the order wanted.

    Returns:
        The index of every value of those rows, and their offsets.
    """
    starts = offsets.index_select(0, rows)
    lengths = offsets.index_select(0, rows + 1) - starts
    ends = lengths.cumsum(0)
    new_offsets = torch.cat([ends.new_zeros(1), ends])
    shift = torch.repeat_interleave(starts - new_offsets[:-1], lengths)
    return shift + torch.arange(shift.shape[0], device=offsets.device), new_offsets


for _class in (Jagged, SequenceGroup, Batch):
    # With a name of its own, a class survives in a program that is saved and loaded.
    torch.export.register_dataclass(
        _class, serialized_type_name=f"{_class.__module__}.{_class.__name__}"
    )
