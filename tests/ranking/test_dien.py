import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import next_event_loss, ranking_loss
from rankloom.ranking.dien import DIEN, DIENConfig

SCHEMA = example_schema(num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=4)
FIELDS = example_schema(num_categorical=1, num_numeric=0, sequences=False)
SIZES = {"embedding_dim": 3, "hidden": [6], "activation": "tanh"}
UNIT = {"kind": "unit", "hidden": [5], "activation": "sigmoid"}


def build(**settings) -> DIEN:
    model = DIEN(parse_config(DIENConfig, SIZES | settings, "test"), SCHEMA).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(rows: int, seed: int = 0) -> Batch:
    batch = random_batch(SCHEMA, rows, seed)
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def weights_of(model: DIEN, target: Tensor, states: Tensor) -> Tensor:
    """Attention of one row's states, before the softmax."""
    attention = model.units[0].attention
    if hasattr(attention, "unit"):
        t, (layer,) = attention.project(target), attention.unit.layers
        scores = []
        for h in states:
            hidden = torch.sigmoid(attention.unit.first(torch.cat([t, h, t - h, t * h])))
            scores.append(layer.linear(hidden)[0])
        return torch.stack(scores)
    return torch.stack([h @ attention.project.weight @ target for h in states])


def read_by_loops(model: DIEN, batch: Batch, kind: str) -> tuple[Tensor, list[Tensor]]:
    """Logits, and every row's states, one row and event at a time."""
    fields, (history,) = model.input(batch)
    unit, rows, all_states = model.units[0], [], []
    for row in range(batch.size):
        events = history.events[row][history.mask[row]]
        states, h = [], torch.zeros(9, dtype=torch.double)
        for event in events:
            of_event = unit.extract.of_event(event).split(9)
            of_state = unit.extract.of_state(h).split(9)
            r, z = (torch.sigmoid(of_event[i] + of_state[i]) for i in (0, 1))
            h = (1 - z) * torch.tanh(of_event[2] + r * of_state[2]) + z * h
            states.append(h)
        all_states.append(torch.stack(states) if states else history.events.new_zeros(0, 9))
        s = torch.zeros(9, dtype=torch.double)
        if states:
            weights = weights_of(model, history.target[row], all_states[-1]).softmax(0)
            gru = unit.evolve.gru if kind == "aigru" else unit.evolve
            for h, a in zip(states, weights, strict=True):
                of_event = gru.of_event(a * h if kind == "aigru" else h).split(9)
                of_state = gru.of_state(s).split(9)
                r = torch.sigmoid(of_event[0] + of_state[0])
                candidate = torch.tanh(of_event[-1] + r * of_state[-1])
                update = a if kind == "agru" else 1 - torch.sigmoid(of_event[1] + of_state[1])
                update = a * update if kind == "augru" else update
                s = (1 - update) * s + update * candidate
        rows.append(torch.cat([fields[row].flatten(), s]))
    return model.network(torch.stack(rows)), all_states


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("augru", {"kind": "bilinear"}), ("augru", UNIT), ("agru", UNIT), ("aigru", UNIT)],
    ids=["augru bilinear", "augru unit", "agru", "aigru"],
)
def test_it_equals_the_equations_one_row_and_event_at_a_time(kind: str, attention: dict) -> None:
    model, batch = build(evolution={"kind": kind}, attention=attention), double_batch(12, seed=1)
    lengths = model.input(batch)[1][0].mask.sum(1)
    assert set(lengths.tolist()) == {0, 1, 2, 3, 4}
    outputs = [model(batch), read_by_loops(model, batch, kind)[0]]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = [p for n, p in model.named_parameters() if "auxiliary" not in n]
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["inner_product", "network"])
def test_auxiliary_loss_step_by_step(kind: str) -> None:
    auxiliary = {"kind": kind} | ({"hidden": [4]} if kind == "network" else {})
    model, batch = build(auxiliary=auxiliary, auxiliary_weight=0.3), double_batch(9)
    torch.manual_seed(5)
    loss = model.loss(batch)
    logits, states = read_by_loops(model, batch, "augru")
    _, (history,) = model.input(batch)
    events = [row[mask] for row, mask in zip(history.events, history.mask, strict=True)]

    def predicts(state: Tensor, event: Tensor) -> Tensor:
        if kind == "inner_product":
            return state @ event
        hidden = model.units[0].auxiliary.network.layers
        return hidden[2](torch.sigmoid(hidden[0](torch.cat([state, event]))))[0]

    torch.manual_seed(5)  # the same negatives
    mask = torch.arange(4) < torch.tensor([[len(row)] for row in events])
    padded = [torch.zeros_like(history.events) for _ in range(2)]
    for row, own in enumerate(events):
        if len(own):
            padded[0][row, : len(own)] = torch.stack(list(states[row]))
            padded[1][row, : len(own)] = own

    def compare(rows: Tensor, others: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.stack([predicts(*pair) for pair in zip(*one, strict=True)])
                for one in zip(rows, others, strict=True)
            ]
        )

    expected = 0.3 * next_event_loss(*padded, mask, compare, weight=batch.weight)
    # The objective is computed in float32.
    torch.testing.assert_close(
        loss.parts["next_event"].double(), expected.double(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(loss.total, loss.parts["labels"] + loss.parts["next_event"])
    parameters = dict(model.named_parameters())
    unread = ("network", "units.0.attention", "units.0.evolve")
    chosen = [p for name, p in parameters.items() if not name.startswith(unread)]
    gradients = [
        torch.autograd.grad(part, chosen, retain_graph=True, allow_unused=True)
        for part in (loss.parts["next_event"], expected)
    ]
    reached = 0
    for actual, wanted in zip(*gradients, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None:
            reached += 1
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)
    # Table, numeric member, four of the GRU, four of the network.
    assert reached == (10 if kind == "network" else 6)
    assert not logits.isnan().any()


@pytest.mark.parametrize("rows", [0, 1])
def test_without_other_rows_there_is_no_auxiliary_loss(rows: int) -> None:
    model, batch = build(), double_batch(rows, seed=3)
    loss = model.loss(batch)
    assert loss.parts["next_event"].item() == 0
    assert loss.total.isfinite()
    loss.total.backward()


def test_one_event_predicts_nothing() -> None:
    for kind in ("inner_product", "network"):
        loss = build(max_length=1, auxiliary={"kind": kind}).loss(double_batch(7))
        assert loss.parts["next_event"].item() == 0


def test_auxiliary_loss_may_be_left_out() -> None:
    batch = double_batch(7)
    model = build(auxiliary_weight=0)
    loss = model.loss(batch)
    assert "next_event" not in loss.parts
    torch.testing.assert_close(loss.total, ranking_loss(model(batch), batch).total)
    fields = DIEN(DIENConfig(hidden=(4,)), FIELDS)
    assert "next_event" not in fields.loss(random_batch(FIELDS, 5)).parts


def test_auxiliary_loss_teaches_the_next_event() -> None:
    """Every user repeats one item: the states learn to tell it from another user's."""
    batch = random_batch(SCHEMA, 64)
    group = batch.sequences["history"]
    rows = torch.repeat_interleave(torch.arange(64), group.lengths())
    group.ids[:] = (2 + rows % 4).unsqueeze(1)
    torch.manual_seed(0)
    model = DIEN(parse_config(DIENConfig, SIZES | {"embedding_dim": 4}, "test"), SCHEMA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(120):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.parts["next_event"].backward()
        optimizer.step()
        losses.append(loss.parts["next_event"].item())
    assert losses[0] == pytest.approx(2 * math.log(2), rel=0.01)
    # A quarter of the negatives are the same item: no model gets to zero.
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.slow
def test_objective_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    model = DIEN(parse_config(DIENConfig, SIZES | {"max_length": 2}, "test"), SCHEMA)
    batch = random_batch(SCHEMA, 8)
    compiled = torch.compile(
        lambda rows: model.loss(rows).total, backend="aot_eager", fullgraph=True
    )
    loss = compiled(batch)
    loss.backward()
    assert loss.isfinite()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="evolution"):
        parse_config(DIENConfig, {"evolution": {"kind": "gru"}}, "test")
    with pytest.raises(ValueError, match="auxiliary_weight"):
        parse_config(DIENConfig, {"auxiliary_weight": -1}, "test")
