import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.histories import History
from rankloom.ranking.sdim import SDIM, SDIMConfig
from rankloom.schema import Schema

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
EVENTS = example_schema(
    num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=6, rows_per_table=5
)
SIZES = {
    "embedding_dim": 3,
    "hidden": [5],
    "num_rounds": 4,
    "num_bits": 2,
    "short_length": 3,
    "short": {"dim": 4},
}


def build(schema: Schema, **settings) -> SDIM:
    torch.manual_seed(0)
    model = SDIM(parse_config(SDIMConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.input.embedding.table.weight[0] = 0
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def by_rounds(model: SDIM, history: History, unit_length: bool) -> Tensor:
    """The long interest of every row, with buckets as tables, one round at a time."""
    unit = model.long[0]
    num_bits, num_rounds = unit.signature
    rows = []
    for target, keys, events, mask in zip(
        history.target, history.keys, history.events, history.mask, strict=True
    ):
        rounds = []
        for number in range(num_rounds):
            normals = unit.planes.normals[:, number::num_rounds].T
            assert len(normals) == num_bits

            def signature(x: Tensor, normals=normals) -> tuple[bool, ...]:
                return tuple(bool(normal @ x > 0) for normal in normals)

            buckets: dict[tuple[bool, ...], Tensor] = {}
            for key, event, real in zip(keys, events, mask, strict=True):
                if real:
                    name = signature(key)
                    buckets[name] = buckets.get(name, torch.zeros_like(event)) + event
            found = buckets.get(signature(target), torch.zeros_like(events[0]))
            if unit_length and found.any():
                found = found / found.norm()
            rounds.append(found)
        rows.append(sum(rounds) / num_rounds)
    return torch.stack(rows)


@pytest.mark.parametrize("unit_length", [True, False])
def test_it_equals_the_equations_one_row_and_round_at_a_time(unit_length) -> None:
    model, batch = build(EVENTS, unit_length=unit_length), double_batch(EVENTS, 12)
    fields, (history,) = model.input(batch)
    long = by_rounds(model, history, unit_length)
    assert long.any(1).sum() > 4
    short = model.short[0].unit.attention(
        history.target, history.events[:, -3:], history.mask[:, -3:]
    )
    expected = model.network(torch.cat([fields.flatten(1), short, long], dim=1))
    outputs = [model(batch), expected]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted)


def around(angles: Tensor) -> History:
    """Events in one plane at given angles to the target, with other members that differ."""
    keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    others = torch.eye(len(angles))
    events = torch.cat([keys, others], dim=1).unsqueeze(0).double()
    return History(events, torch.tensor([[2.0, 0.0]]).double(), torch.ones(1, len(angles)).bool())


def sampled(num_rounds: int, num_bits: int, unit_length: bool, history: History) -> Tensor:
    sizes = {"num_rounds": num_rounds, "num_bits": num_bits, "unit_length": unit_length}
    part = type(build(EVENTS).long[0])  # the same part, over vectors of two dimensions
    torch.manual_seed(1)
    return part(2, parse_config(SDIMConfig, sizes, "test")).double()(history)[0]


@pytest.mark.parametrize("num_bits", [1, 3])
def test_the_mean_over_many_rounds_is_the_sum_it_is_an_estimate_of(num_bits) -> None:
    """An event counts with the probability that it falls into the target's bucket."""
    angles = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 1.0]) * math.pi
    expected = (1 - angles / math.pi) ** num_bits

    def error(num_rounds: int) -> float:
        found = sampled(num_rounds, num_bits, False, around(angles))
        return (found[2:] - expected).abs().max().item()

    assert error(20_000) < 0.015
    assert error(20_000) < error(20)


def test_more_bits_find_closer_events_only() -> None:
    angles = torch.tensor([0.05, 0.5]) * math.pi
    shares = [sampled(5000, bits, False, around(angles))[2:] for bits in (1, 4, 12)]
    ratios = [(far / near).item() for near, far in shares]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.4
    assert ratios[-1] < 0.01


def test_every_round_that_finds_something_has_length_one() -> None:
    same = around(torch.zeros(3))
    found = sampled(7, 3, True, same)
    torch.testing.assert_close(found, same.events[0].sum(0) / same.events[0].sum(0).norm())
    assert found.norm().item() == pytest.approx(1)
    opposite = around(torch.full((3,), math.pi))
    assert not sampled(7, 3, True, opposite).any()


def test_the_hashing_is_saved_with_the_model_and_not_trained() -> None:
    model = build(EVENTS)
    assert model.state_dict()["long.0.planes.normals"].shape == (6, 8)
    assert not any("planes" in name for name, _ in model.named_parameters())


def test_data_without_a_history_is_a_network_over_fields() -> None:
    model, batch = build(FIELDS), double_batch(FIELDS, 4)
    torch.testing.assert_close(model(batch), model.network(model.input(batch)[0].flatten(1)))


def test_a_row_without_events_has_finite_gradients() -> None:
    model, batch = build(EVENTS), double_batch(EVENTS, 12)
    empty = batch.select((batch.sequences["history"].lengths() == 0).nonzero().flatten())
    assert empty.size > 0
    model(empty).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not model.long[0](model.input(empty)[1][0]).any()
