from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from event_batches import BATCH, CARTS, CLICKS, SCHEMA, draw, positions_of
from torch import Tensor, nn

from rankloom.batch import Batch, SequenceGroup
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.events import EventEmbedding, PaddedEvents
from rankloom.layers.tokens.events import (
    ByTime,
    EventTokens,
    LatestEventTime,
    OneAfterAnother,
    OneSequence,
    Recency,
    RowTime,
)

DIM = 3
BOTH = (CLICKS, CARTS)


class Tokens(nn.Module):
    """Event tokens beside the fields whose table they share."""

    def __init__(self, groups: Sequence[Any], merge: Any, reference: Any, **settings: Any) -> None:
        super().__init__()
        self.groups = groups
        self.fields = FieldEmbedding(SCHEMA, 2, fields=["user"], tables={"item", "tag"})
        embeddings = {group.name: EventEmbedding(group, self.fields) for group in groups}
        self.events = EventTokens(embeddings, DIM, merge, reference, **settings)

    def forward(self, batch: Batch) -> tuple[PaddedEvents, Tensor | None]:
        assert self.fields.table is not None
        return self.events(batch, self.fields.table)


def make(kind: str, **settings: Any) -> Tokens:
    lengths = [group.max_length for group in BOTH]
    if kind == "one":
        return Tokens([CLICKS], OneSequence([5]), RowTime(), **settings)
    if kind == "by_time":
        return Tokens(BOTH, ByTime(lengths), LatestEventTime(), **settings)
    return Tokens(BOTH, OneAfterAnother(lengths, DIM), RowTime(), **settings)


def reference(model: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens and masks of every row, by loops over rows, groups and events."""
    parts = model.events
    rows, masks = [], []
    for row in range(batch.size):
        places = [positions_of(batch, group, row) for group in model.groups]
        times = [batch.sequences[group.name].time.tolist() for group in model.groups]
        if isinstance(parts.reference, RowTime):
            now = int(batch.time[row])
        else:
            now = max([t[i] for t, p in zip(times, places, strict=True) for i in p], default=0)
        sequences = []
        for number, group in enumerate(model.groups):
            vectors = parts.embeddings[number](batch.sequences[group.name], model.fields.table)
            tokens = []
            for order, place in enumerate(reversed(places[number])):
                event = vectors.x[row, -1 - order].flatten()
                seconds = max(now - times[number][place], 0)
                token = parts.networks[number](event[None])[0]
                if parts.recency is not None:
                    token = token + parts.recency.weight[seconds.bit_length()]
                tokens.insert(0, (times[number][place], token))
            sequences.append(tokens)
        if isinstance(parts.merge, ByTime):
            found = sorted(chain(*sequences), key=lambda pair: pair[0])
        else:
            found = []
            for tokens in sequences:
                if found and tokens:
                    found.append((0, parts.merge.separator))
                found += tokens
        tokens = [token for _, token in found]
        if parts.positions is not None:
            tokens = [t + parts.positions[i - len(tokens)] for i, t in enumerate(tokens)]
        missing = parts.num_events - len(tokens)
        rows.append(torch.stack([*torch.zeros(missing, DIM), *tokens]))
        masks.append(torch.tensor([False] * missing + [True] * len(tokens)))
    return torch.stack(rows), torch.stack(masks)


@pytest.mark.parametrize("kind", ["one", "by_time", "one_after_another"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"hidden": (4,), "activation": "silu"}, {"positions": False, "recency": False}],
    ids=["default", "hidden", "bare"],
)
def test_tokens_equal_the_loops_forward_and_gradient(kind: str, settings: dict[str, Any]) -> None:
    model = make(kind, **settings)
    draw(model)
    weights = torch.randn(4, model.events.num_events, DIM)
    expected_x, expected_mask = reference(model, BATCH)
    (expected_x * weights).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    tokens, _ = model(BATCH)
    (tokens.x * weights).sum().backward()
    torch.testing.assert_close(tokens.x, expected_x)
    assert torch.equal(tokens.mask, expected_mask)
    assert len(expected) >= 5
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def padded(time: list[int], mask: list[int], first: float) -> PaddedEvents:
    """One row; a token's only unit is its number."""
    x = first + torch.arange(float(len(time))).view(1, -1, 1)
    return PaddedEvents(x, torch.tensor([mask]).bool(), torch.tensor([time]))


def test_order_by_time_keeps_the_order_of_groups_at_equal_times() -> None:
    first = padded([0, 5, 5, 9], [0, 1, 1, 1], 10)
    second = padded([0, 0, 5, 7], [0, 0, 1, 1], 20)
    merged = ByTime([4, 4])([first, second])
    assert merged.x.flatten().tolist()[3:] == [11, 12, 22, 23, 13]
    assert merged.mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert merged.time is not None
    assert merged.time.tolist()[0][3:] == [5, 5, 5, 7, 9]


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ((1, 1, 1), [1, -1, 2, -1, 3]),
        ((1, 0, 1), [1, -1, 3]),
        ((0, 1, 1), [2, -1, 3]),
        ((1, 1, 0), [1, -1, 2]),
        ((0, 1, 0), [2]),
        ((0, 0, 0), []),
    ],
)
def test_separators_stand_between_sequences_with_events_only(
    present: tuple[int, ...], expected: list[int]
) -> None:
    merge = OneAfterAnother([1, 1, 1], 1)
    nn.init.constant_(merge.separator, -1.0)
    merged = merge([padded([7], [there], number + 1) for number, there in enumerate(present)])
    assert merge.num_events == 5
    missing = 5 - len(expected)
    assert merged.mask.int().tolist() == [[0] * missing + [1] * len(expected)]
    assert merged.x.flatten().tolist()[missing:] == expected


def test_a_separator_has_the_time_of_the_event_before_it() -> None:
    merge = OneAfterAnother([2, 1], 1)
    merged = merge([padded([3, 8], [1, 1], 1), padded([6], [1], 5)])
    assert merged.time is not None
    assert merged.time.tolist() == [[3, 8, 8, 6]]
    timeless = replace(padded([6], [1], 5), time=None)
    assert merge([padded([3, 8], [1, 1], 1), timeless]).time is None


def test_recency_is_exact_at_powers_of_two() -> None:
    recency = Recency(1)
    with torch.no_grad():
        recency.weight.copy_(torch.arange(33.0)[:, None])
    seconds = [-5, 0, 1, 2, 3, 4, 7, 8, 2**30 - 1, 2**30, 2**31, 2**40]
    expected = [0, 0, 1, 2, 2, 3, 3, 4, 30, 31, 32, 32]
    assert recency(torch.tensor([seconds])).flatten().tolist() == expected


def test_latest_event_counts_real_events_of_all_groups() -> None:
    first, second = padded([9, 4], [0, 1], 0), padded([6, 2], [1, 1], 0)
    nothing = padded([3], [0], 0)
    assert LatestEventTime()(None, [first, second]).tolist() == [6]
    assert LatestEventTime()(None, [nothing]).tolist() == [0]
    assert LatestEventTime()(None, [first, replace(second, time=None)]).tolist() == [4]


@pytest.mark.parametrize("kind", ["one", "by_time", "one_after_another"])
def test_padding_events_move_nothing(kind: str) -> None:
    model = make(kind)
    draw(model)

    def without_padding(group: SequenceGroup) -> SequenceGroup:
        real = group.ids[:, 0] != 0
        running = torch.cat([torch.zeros(1, dtype=torch.int64), real.cumsum(0)])
        return SequenceGroup(
            offsets=running[group.offsets],
            ids=group.ids[real],
            numeric=None if group.numeric is None else group.numeric[real],
            time=None if group.time is None else group.time[real],
            vectors={name: values[real] for name, values in group.vectors.items()},
        )

    sequences = {name: without_padding(group) for name, group in BATCH.sequences.items()}
    kept, _ = model(replace(BATCH, sequences=sequences))
    given, _ = model(BATCH)
    torch.testing.assert_close(given.x, kept.x)
    assert torch.equal(given.mask, kept.mask)
    assert len(sequences["clicks"].ids) == 8


def test_a_row_time_that_is_missing_is_asked_for() -> None:
    model = make("one")
    with pytest.raises(ValueError, match='the batch has none.*reference = "latest_event"'):
        model(replace(BATCH, time=None))


def test_starts_as_small_as_the_embeddings() -> None:
    model = make("one_after_another")
    for name in ("positions", "recency.weight", "merge.separator"):
        assert dict(model.events.named_parameters())[name].abs().max() < 1e-3


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_group_starts_at_zero_or_at_a_vector_of_its_own(hidden: tuple[int, ...]) -> None:
    for std in (0.0, 0.5):
        model = make("by_time", hidden=hidden, bias_std=std)
        for network in model.events.networks:
            biases = [value for name, value in network.named_parameters() if "bias" in name]
            assert all(not value.any() for value in biases[:-1])
            assert biases[-1].std().item() == pytest.approx(std, rel=0.9)
