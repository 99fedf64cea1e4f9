from dataclasses import replace

import torch
from slow_experts import expert, mixture, shake
from torch import Tensor

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.hmoe import HMoE, HMoEConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 3,
    "num_experts": 3,
    "experts": {"hidden": [6, 4]},
    "tower": {"hidden": [5]},
    "weights_hidden": [7],
}


def build(**settings: object) -> HMoE:
    model = HMoE(parse_config(HMoEConfig, SMALL | settings, "test"), SCHEMA)
    shake(model)
    return model.eval()


def slow_logits(model: HMoE, x: Tensor) -> list[Tensor]:
    """Logits of every head for one row; the towers of other scenarios are not trained."""
    experts = [expert(model.experts, index, x) for index in range(3)]
    gates = model.gates.project.weight
    towers = [
        expert(model.towers, index, mixture(gates[index], x, experts))
        for index in range(len(gates))
    ]
    logits = []
    for own, head in enumerate(model.heads.towers):
        scores = head.weigh(x.unsqueeze(0))[0].exp()
        total = torch.zeros_like(towers[0])
        for index, tower in enumerate(towers):
            total = total + scores[index] * (tower if index == own else tower.detach())
        logits.append(head.logits(total / scores.sum()))
    return logits


def test_values_and_gradients_row_by_row() -> None:
    model = build()
    batch = random_batch(SCHEMA, 12)
    assert set(batch.scenario.tolist()) == {0, 1, 2, 3}
    rows = []
    for scenario, x in zip(batch.scenario.tolist(), model.embedding(batch).flatten(1), strict=True):
        each = slow_logits(model, x)
        rows.append(each[scenario - 1] if scenario else torch.stack(each).mean(0))
    expected, actual = torch.stack(rows), model(batch)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    wanted = torch.randn(actual.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters, wanted),
        torch.autograd.grad(expected, parameters, wanted),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_row_trains_the_tower_of_its_scenario_only() -> None:
    model = build()
    scenario = torch.full((40,), 2, dtype=torch.int32)
    model(replace(random_batch(SCHEMA, 40), scenario=scenario)).sum().backward()
    own = [False, True, False]
    assert model.towers.layers[0].weight.grad.flatten(1).any(1).tolist() == own
    assert model.gates.project.weight.grad.flatten(1).any(1).tolist() == own
    weighed = model.heads.towers[1].weigh.layers[-1].weight.grad  # [scenarios, 7]
    assert weighed.any(1).all()  # the weights of the other towers are trained


def test_the_towers_of_others_are_read() -> None:
    model = build()
    scenario = torch.full((20,), 2, dtype=torch.int32)
    batch = replace(random_batch(SCHEMA, 20), scenario=scenario)
    before = model(batch)
    with torch.no_grad():
        model.towers.layers[0].bias[0] += 1.0
    assert not torch.allclose(model(batch), before)


def test_weights_of_towers_by_hand() -> None:
    """All weight on the first tower: rows of every scenario read it, through their own heads."""
    model = build(weights_hidden=[])
    with torch.no_grad():
        for head in model.heads.towers:
            head.weigh.layers[0].weight.zero_()
            head.weigh.layers[0].bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    batch = random_batch(SCHEMA, 9)
    first = model.tower_outputs(model.embedding(batch).flatten(1))[:, 0]
    for row, scenario in enumerate(batch.scenario.tolist()):
        each = torch.stack([head.logits(first[row]) for head in model.heads.towers])
        expected = each[scenario - 1] if scenario else each.mean(0)
        torch.testing.assert_close(model(batch)[row], expected)


def test_one_scenario_and_one_row_in_training() -> None:
    schema = example_schema(num_scenarios=2)
    model = HMoE(parse_config(HMoEConfig, SMALL, "test"), schema).train()
    assert model(random_batch(schema, 1)).isfinite().all()
