from dataclasses import replace

import pytest
import torch
from slow_experts import expert, gated_logits, mixture, shake
from torch import Tensor

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.mmoe import MMoE, MMoEConfig
from rankloom.scenario.ple import PLE, PLEConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 3,
    "num_specific": 2,
    "num_shared": 1,
    "experts": {"hidden": [6, 4]},
    "tower": {"hidden": [5]},
}


def build(**settings: object) -> PLE:
    model = PLE(parse_config(PLEConfig, SMALL | settings, "test"), SCHEMA)
    shake(model)
    return model.eval()


def slow_logits(model: PLE, x: Tensor) -> list[Tensor]:
    """Logits of every head for one row, which is put through all levels expert by expert."""
    num_heads = len(model.heads.towers)
    own, common = [x] * num_heads, x
    for level in model.levels:
        shared = [expert(level.shared, index, common) for index in range(level.num_shared)]
        specific = [
            [
                expert(level.specific, head * level.num_specific + index, own[head])
                for index in range(level.num_specific)
            ]
            for head in range(num_heads)
        ]
        gates = level.gates.project.weight
        own = [
            mixture(gates[head], own[head], specific[head] + shared) for head in range(num_heads)
        ]
        everything = [one for experts in specific for one in experts] + shared
        common = mixture(level.shared_gate.project.weight[0], common, everything)
    num_shared = model.shared.layers[0].weight.shape[0]
    shared = [expert(model.shared, index, common) for index in range(num_shared)]
    logits = []
    for head, inputs in zip(model.heads.towers, own, strict=True):
        num_specific = head.specific.layers[0].weight.shape[0]
        specific = [expert(head.specific, index, inputs) for index in range(num_specific)]
        logits.append(gated_logits(head.gated, inputs, specific + shared))
    return logits


@pytest.mark.parametrize("num_levels", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), (0, 2)])
def test_every_row_has_the_head_of_its_scenario(num_levels: int, sizes: tuple[int, int]) -> None:
    model = build(num_levels=num_levels, num_specific=sizes[0], num_shared=sizes[1])
    batch = random_batch(SCHEMA, 12)
    assert set(batch.scenario.tolist()) == {0, 1, 2, 3}
    actual = model(batch)
    for row, x in enumerate(model.embedding(batch).flatten(1)):
        each = slow_logits(model, x)
        scenario = int(batch.scenario[row])
        expected = each[scenario - 1] if scenario else torch.stack(each).mean(0)
        torch.testing.assert_close(actual[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_levels", [1, 2])
def test_heads_of_tasks(num_levels: int) -> None:
    model = build(num_levels=num_levels, heads={"kind": "task"})
    batch = replace(random_batch(SCHEMA, 5), scenario=None)
    actual = model(batch)
    for row, x in enumerate(model.embedding(batch).flatten(1)):
        torch.testing.assert_close(actual[row], torch.cat(slow_logits(model, x)))


@pytest.mark.parametrize("kind", ["scenario", "task"])
def test_without_specific_experts_one_level_is_mmoe(kind: str) -> None:
    model = build(num_specific=0, num_shared=3, heads={"kind": kind})
    settings = {key: SMALL[key] for key in ("embedding_dim", "experts", "tower")}
    settings |= {"num_experts": 3, "heads": {"kind": kind}}
    other = MMoE(parse_config(MMoEConfig, settings, "test"), SCHEMA).eval()
    other.embedding.load_state_dict(model.embedding.state_dict())
    other.experts.load_state_dict(model.shared.state_dict())
    for theirs, ours in zip(other.heads.towers, model.heads.towers, strict=True):
        theirs.load_state_dict(ours.gated.state_dict())
    batch = random_batch(SCHEMA, 20)
    torch.testing.assert_close(model(batch), other(batch))


def test_a_row_trains_the_specific_experts_of_its_scenario_only() -> None:
    model = build()
    scenario = torch.full((40,), 3, dtype=torch.int32)
    model(replace(random_batch(SCHEMA, 40), scenario=scenario)).sum().backward()
    grads = [head.specific.layers[0].weight.grad for head in model.heads.towers]
    assert [bool(grad.any()) for grad in grads] == [False, False, True]
    assert model.shared.layers[0].weight.grad.any()


def test_two_levels_train_the_specific_experts_of_all_below() -> None:
    """The shared gate of the first level reads them."""
    model = build(num_levels=2)
    scenario = torch.full((40,), 3, dtype=torch.int32)
    model(replace(random_batch(SCHEMA, 40), scenario=scenario)).sum().backward()
    below = model.levels[0].specific.layers[0].weight.grad  # [scenarios * 2, 6, dim]
    assert below.flatten(1).any(1).all()
    gates = model.levels[0].gates.project.weight.grad.flatten(1).any(1)
    assert gates.tolist() == [False, False, True]


def test_the_last_level_has_no_shared_gate() -> None:
    assert not any("shared_gate" in name for name, _ in build().named_parameters())
    names = {name for name, _ in build(num_levels=3).named_parameters() if "shared_gate" in name}
    assert names == {f"levels.{level}.shared_gate.project.weight" for level in (0, 1)}


def test_one_scenario_and_one_row_in_training() -> None:
    schema = example_schema(num_scenarios=2)
    settings = SMALL | {"num_levels": 2}
    model = PLE(parse_config(PLEConfig, settings, "test"), schema).train()
    assert model(random_batch(schema, 1)).isfinite().all()
