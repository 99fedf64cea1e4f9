from dataclasses import replace

import pytest
import torch

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.hamur import HAMUR, HAMURConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 4,
    "hidden": [7, 6, 5],
    "num_adapters": 2,
    "adapter_width": 4,
    "rank": 3,
    "generator_hidden": [4],
}


def build(*, new: bool = False, **settings: object) -> HAMUR:
    torch.manual_seed(0)
    model = HAMUR(parse_config(HAMURConfig, SMALL | settings, "test"), SCHEMA)
    if not new:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def row_logits(model: HAMUR, number: int, x: torch.Tensor) -> torch.Tensor:
    """What one scenario's network gives for one row, all matrices built."""
    network = model.networks[number]
    core = model.generator(x).view(3, 3)
    h = network.layers[0](x)
    for layer, adapter in zip(network.layers[1:], model.adapters, strict=True):
        h = layer(h)
        factors = adapter.factors
        down = factors["left1"] @ core @ factors["right1"]
        up = factors["left2"] @ core @ factors["right2"]
        inner = torch.sigmoid(h @ down + adapter.bias1)
        h = h + adapter.norm(inner @ up + adapter.bias2)
    return network.head(h)


def test_every_row_has_adapters_of_its_own() -> None:
    model = build()
    batch = random_batch(SCHEMA, 9)
    assert 0 in batch.scenario
    x = model.embedding(batch).flatten(1)
    for row, scenario in enumerate(batch.scenario.tolist()):
        each = torch.stack([row_logits(model, number, x[row]) for number in range(3)])
        expected = each[scenario - 1] if scenario else each.mean(0)
        torch.testing.assert_close(model(batch)[row], expected)


def test_a_new_model_is_its_network_without_adapters() -> None:
    model = build(new=True)
    batch = random_batch(SCHEMA, 6)
    batch = replace(batch, scenario=torch.full((6,), 2, dtype=torch.int32))
    h = model.embedding(batch).flatten(1)
    network = model.networks[1]
    for layer in network.layers:
        h = layer(h)
    torch.testing.assert_close(model(batch), network.head(h))


def test_generated_weights_have_full_rank() -> None:
    """All ones in U and V, as public code has them, would give one direction only."""
    adapter = build(new=True).adapters[0]
    product = adapter.factors["left1"] @ adapter.factors["right1"]
    assert torch.linalg.matrix_rank(product) == 3


@pytest.mark.parametrize("training", [False, True])
def test_no_row_depends_on_its_batch(training: bool) -> None:
    model = build().train(training)
    batch = random_batch(SCHEMA, 7)
    for row in range(7):
        alone = model(batch.select(torch.tensor([row])))
        torch.testing.assert_close(alone[0], model(batch)[row], rtol=1e-4, atol=1e-5)


def test_a_network_reads_the_rows_of_its_scenario_only() -> None:
    model = build()
    rows = []
    for network in model.networks:
        network.register_forward_hook(lambda part, given, out: rows.append(len(out)))
    scenario = torch.tensor([1, 3, 3, 3, 1], dtype=torch.int32)
    model(replace(random_batch(SCHEMA, 5), scenario=scenario))
    assert rows == [2, 0, 3]


def test_building_a_model_leaves_its_config() -> None:
    config = HAMURConfig(generator_hidden=(4,), rank=2)
    first, second = HAMUR(config, SCHEMA), HAMUR(config, SCHEMA)
    assert config == HAMURConfig(generator_hidden=(4,), rank=2)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (first, second)]
    assert shapes[0] == shapes[1]


def test_more_adapters_than_layers() -> None:
    with pytest.raises(ValueError, match=r"got num_adapters=4, hidden=\[7, 6, 5\]"):
        build(num_adapters=4)
