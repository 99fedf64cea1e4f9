"""Operations of every depth."""

import pytest
import torch
from depth_models import LoopedNetwork, SteppedNetwork
from torch import nn

from rankloom.data.examples import example_schema, random_batch
from rankloom.evaluation.cost import measure_cost
from rankloom.evaluation.depth_cost import measure_depth_costs

SCHEMA = example_schema(num_tasks=2)
BATCH = random_batch(SCHEMA, rows=8)
LOOP = 2 * 4 * 4 + 4 + 4 + 4  # product, bias, tanh, addition
HEAD = 2 * 4 * 2 + 2


def test_costs_of_a_model_that_can_be_stepped():
    found = measure_depth_costs(SteppedNetwork(SCHEMA), BATCH)
    assert found.stepped
    first = found.fixed[0]
    assert found.fixed == (first, first + LOOP, first + 2 * LOOP)
    assert found.adaptive == (first, first + LOOP + HEAD, first + 2 * (LOOP + HEAD))


def test_costs_of_a_model_that_cannot():
    model = LoopedNetwork(SCHEMA).train()
    found = measure_depth_costs(model, BATCH)
    assert not found.stepped
    assert found.fixed == found.adaptive
    assert found.adaptive[-1] == measure_cost(model, BATCH).flops_per_row
    assert model.training


def test_bad_input():
    with pytest.raises(ValueError, match="got one of 0 rows"):
        measure_depth_costs(LoopedNetwork(SCHEMA), BATCH.select(torch.arange(0)))
    with pytest.raises(TypeError, match="Linear has no depths: it lacks num_depths"):
        measure_depth_costs(nn.Linear(2, 2), BATCH)
