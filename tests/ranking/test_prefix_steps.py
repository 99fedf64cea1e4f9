"""LoopCTR and StackCTR a depth at a time."""

from typing import Any

import pytest
import torch
from torch import nn

from rankloom.catalog import CATALOG
from rankloom.data.examples import example_schema, random_batch
from rankloom.evaluation.adaptive import predict_adaptively
from rankloom.evaluation.depth_cost import measure_depth_costs
from rankloom.evaluation.depth_policy import ChangeExit, apply_policy
from rankloom.protocols import HasDepthSteps
from rankloom.schema import Schema

SMALL: dict[str, Any] = {
    "embedding_dim": 4,
    "dim": 8,
    "num_heads": 2,
    "head": {"hidden": [8]},
}
MODELS = [
    ("loopctr", {"num_loops": 2}),
    ("loopctr", {"num_loops": 2, "grouping": {"kind": "none"}, "loop_index_embedding": True}),
    ("loopctr", {"num_loops": 2, "num_streams": 1, "num_experts": 1, "num_active": 1}),
    ("stackctr", {"num_layers": 2, "grouping": {"kind": "own"}}),
]


def build(name: str, settings: dict[str, Any], schema: Schema) -> nn.Module:
    """A model whose parameters are all random, so that depths differ."""
    entry = CATALOG[name]
    model = entry.build(entry.config.model_validate(SMALL | settings), schema).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("name", "settings"), MODELS)
@pytest.mark.parametrize("sequences", [True, False])
def test_steps_give_the_logits_of_all_depths(
    name: str, settings: dict[str, Any], sequences: bool
) -> None:
    schema = example_schema(num_tasks=2, sequences=sequences)
    batch = random_batch(schema, rows=9)
    model = build(name, settings, schema)
    assert isinstance(model, HasDepthSteps)
    with torch.inference_mode():
        expected = model.depth_logits(batch)
        assert (expected.diff(dim=0).abs().amax((1, 2)) > 1e-3).all()
        state = model.start_depths(batch)
        for depth in range(model.num_depths):
            if depth:
                state = model.next_depth(state)
            assert torch.allclose(model.state_logits(state), expected[depth], atol=1e-5)


def test_rows_go_on_without_the_others() -> None:
    schema = example_schema(num_tasks=1)
    batch = random_batch(schema, rows=16)
    model = build("loopctr", {"num_loops": 3}, schema)
    with torch.inference_mode():
        expected = model.depth_logits(batch)
        changes = torch.sigmoid(expected).diff(dim=0).abs()
        policy = ChangeExit(threshold=float(changes[0].median()))
        chosen, depth = apply_policy(policy, expected)
        found = predict_adaptively(model, batch, policy)
        rows = torch.tensor([5, 2])
        state = model.select_rows(model.next_depth(model.start_depths(batch)), rows)
        assert torch.allclose(model.state_logits(state), expected[1, rows], atol=1e-5)
    assert len(set(depth.tolist())) > 1
    assert torch.equal(found.depth, depth)
    assert torch.allclose(found.logits, chosen, atol=1e-5)
    empty = predict_adaptively(model, batch.select(torch.arange(0)), policy)
    assert empty.logits.shape == (0, 1)


def test_loops_are_what_costs() -> None:
    schema = example_schema(num_tasks=1)
    batch = random_batch(schema, rows=8)
    model = build("loopctr", {"num_loops": 2}, schema)
    costs = measure_depth_costs(model, batch)
    assert costs.stepped
    first, second, third = costs.fixed
    assert third - second == pytest.approx(second - first)
    exit_cost = costs.adaptive[1] - costs.fixed[1]
    assert exit_cost > 0
    assert costs.adaptive[2] - costs.fixed[2] == pytest.approx(2 * exit_cost)
