import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.eta import ETA, ETAConfig
from rankloom.ranking.sim import SIM, SIMConfig
from rankloom.schema import Schema

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
EVENTS = example_schema(
    num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=6, rows_per_table=5
)
TIMELESS = EVENTS.model_copy(
    update={
        "sequences": tuple(
            group.model_copy(update={"has_time": False}) for group in EVENTS.sequences
        )
    }
)
SIZES = {
    "embedding_dim": 3,
    "hidden": [5],
    "num_found": 2,
    "short_length": 3,
    "short": {"dim": 4},
    "long": {"dim": 4, "num_heads": 2},
}


def build(schema: Schema, **settings) -> ETA:
    torch.manual_seed(0)
    model = ETA(parse_config(ETAConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.input.embedding.table.weight[0] = 0
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def by_rows(model: ETA, batch: Batch) -> Tensor:
    """Codes compared bit by bit, for one row and event at a time."""
    fields, (history,) = model.input(batch)
    unit, rows = model.long[0], []

    def code(x: Tensor) -> list[bool]:
        return [bool(x @ normal > 0) for normal in unit.planes.normals.T]

    for row in range(batch.size):
        target = history.target[row]

        def attended(attention: nn.Module, places: list[int], row=row, target=target) -> Tensor:
            if not places:
                return torch.zeros(attention.out.out_features, dtype=torch.double)
            x = torch.stack([history.events[row, place] for place in places]).unsqueeze(0)
            return attention(target.unsqueeze(0), x, torch.ones(x.shape[:2]).bool())[0]

        real = history.mask[row].nonzero().flatten().tolist()
        distance = {
            place: sum(
                a != b for a, b in zip(code(history.keys[row, place]), code(target), strict=True)
            )
            for place in real
        }
        nearest = sorted(real, key=lambda place: (distance[place], -place))[: unit.num_found]
        short = attended(model.short[0].unit.attention, real[-model.short[0].length :])
        rows.append(torch.cat([fields[row].flatten(), short, attended(unit.attention, nearest)]))
    return model.network(torch.stack(rows))


@pytest.mark.parametrize("num_bits", [2, 16])
def test_it_equals_the_equations_one_row_and_bit_at_a_time(num_bits) -> None:
    """With two bits, most distances are equal and the latest events decide."""
    model, batch = build(EVENTS, num_bits=num_bits), double_batch(EVENTS, 12)
    outputs = [model(batch), by_rows(model, batch)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_search_that_finds_everything_is_sim_s() -> None:
    """What is found then does not depend on how it is searched."""
    eta = build(TIMELESS, num_found=9)
    settings = SIZES | {"num_found": 9, "search": {"kind": "soft", "dim": 0}}
    sim = SIM(parse_config(SIMConfig, settings, "test"), TIMELESS).double()
    state = {name: value for name, value in eta.state_dict().items() if "planes" not in name}
    missing, unexpected = sim.load_state_dict(state, strict=False)
    assert {name.split(".")[0] for name in missing} == {"auxiliary"}
    assert unexpected == []
    batch = double_batch(TIMELESS, 8)
    torch.testing.assert_close(eta(batch), sim(batch))


def test_codes_follow_the_embeddings() -> None:
    """The same planes find other events once a vector has moved."""
    torch.manual_seed(0)
    model, batch = build(EVENTS, num_found=1), double_batch(EVENTS, 32)
    before = model(batch)
    unit = model.long[0]
    _, (history,) = model.input(batch)
    distances = unit.planes.distances(history.keys, history.target)
    with torch.no_grad():
        model.input.embedding.table.weight[1:] = torch.randn(
            model.input.embedding.table.weight[1:].shape, dtype=torch.double
        )
    _, (moved,) = model.input(batch)
    assert not torch.equal(unit.planes.distances(moved.keys, moved.target), distances)
    assert not torch.equal(model(batch), before)


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
