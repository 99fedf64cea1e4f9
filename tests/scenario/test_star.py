from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.mlp import MLP
from rankloom.layers.scenarios import ScenarioRows
from rankloom.layers.star_linear import StarLinear
from rankloom.scenario.star import STAR, STARConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {"hidden": [8, 5], "embedding_dim": 4, "auxiliary": {"hidden": [3]}}


def build(randomised: bool = True, **settings: object) -> STAR:
    torch.manual_seed(0)
    model = STAR(parse_config(STARConfig, SMALL | settings, "test"), SCHEMA)
    if randomised:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def auxiliary(model: STAR, batch: Batch) -> Tensor:
    x = model.embedding(batch).flatten(1)
    return model.auxiliary(torch.cat([model.scenarios(batch.scenario), x], 1))


def test_own_weights_of_one_are_the_common_network() -> None:
    model = build(randomised=False, norm={"kind": "none"}).eval()
    network = MLP(model.embedding.width, (8, 5), out_features=2)
    with torch.no_grad():
        for layer, star in zip(network.layers[::2], model.star.layers, strict=True):
            assert (star.scenario_weight == 1).all()
            assert (star.scenario_bias == 0).all()
            star.bias.normal_()
            layer.weight.copy_(star.weight)
            layer.bias.copy_(star.bias)
    batch = random_batch(SCHEMA, 9)
    x = model.embedding(batch).flatten(1)
    torch.testing.assert_close(model(batch), network(x) + auxiliary(model, batch))


def test_an_activation_with_statistics_has_those_of_all_rows() -> None:
    model = build(randomised=False, norm={"kind": "none"}, activation="dice").train()
    network = MLP(model.embedding.width, (8, 5), out_features=2, activation="dice").train()
    with torch.no_grad():
        for layer, star in zip(network.layers[::2], model.star.layers, strict=True):
            star.bias.normal_()
            layer.weight.copy_(star.weight)
            layer.bias.copy_(star.bias)
        model.embedding.table.weight.normal_()
    batch = random_batch(SCHEMA, 9)
    batch.scenario.copy_(torch.tensor([1, 2, 3, 3, 1, 1, 2, 1, 3]))
    x = model.embedding(batch).flatten(1)
    torch.testing.assert_close(model(batch), network(x) + auxiliary(model, batch))
    for activation, star_activation in zip(
        network.layers[1::2], model.star.activations, strict=True
    ):
        torch.testing.assert_close(star_activation[0].running_mean, activation.running_mean)


def test_a_new_product_varies_as_a_new_layer() -> None:
    torch.manual_seed(0)
    layer = StarLinear(3, 300, 200)
    for own in layer.scenario_weight:
        assert (layer.weight * own).std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)


@pytest.mark.parametrize("norm", ["partitioned", "none"])
def test_row_by_row(norm: str) -> None:
    model = build(norm={"kind": norm})
    for seed in range(3):
        model.train()(random_batch(SCHEMA, 16, seed))  # statistics other than the first ones
    model.eval()
    batch = random_batch(SCHEMA, 12)
    x = model.norm(model.embedding(batch).flatten(1), batch.scenario)

    def star(row: Tensor, own: int) -> Tensor:
        *hidden, last = model.star.layers
        for layer in hidden:
            weight = layer.weight * layer.scenario_weight[own]
            row = (weight @ row + layer.bias + layer.scenario_bias[own]).relu()
        return (last.weight * last.scenario_weight[own]) @ row + last.bias + last.scenario_bias[own]

    expected = []
    for row, scenario in zip(x, batch.scenario.tolist(), strict=True):
        known = [scenario - 1] if scenario else [0, 1, 2]
        expected.append(torch.stack([star(row, own) for own in known]).mean(0))
    torch.testing.assert_close(model(batch), torch.stack(expected) + auxiliary(model, batch))
    for row in range(12):
        alone = batch.select(torch.tensor([row]))
        torch.testing.assert_close(model(alone), model(batch)[row : row + 1])


def test_logits_of_the_star_may_be_negative_and_stand_as_they_are() -> None:
    model = build(hidden=[])
    batch = random_batch(SCHEMA, 12)
    last = model.star.layers[-1]
    x = torch.randn(12, model.embedding.width)
    (out, *_) = model.star([x, x, x])
    expected = functional.linear(
        x, last.weight * last.scenario_weight[0], last.bias + last.scenario_bias[0]
    )
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        last.bias.fill_(-50)
    assert (model(batch) - auxiliary(model, batch) < 0).all()


def test_a_row_trains_the_common_weights_and_its_own() -> None:
    model = build()
    batch = random_batch(SCHEMA, 8)
    model(replace(batch, scenario=torch.full((8,), 2, dtype=torch.int32))).sum().backward()
    for layer in model.star.layers:
        assert layer.weight.grad.any()
        assert [bool(own.any()) for own in layer.scenario_weight.grad] == [False, True, False]
        assert [bool(own.any()) for own in layer.scenario_bias.grad] == [False, True, False]


def test_rows_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = []
    of = ScenarioRows.of
    monkeypatch.setattr(ScenarioRows, "of", lambda *args: grouped.append(args) or of(*args))
    build().eval()(random_batch(SCHEMA, 8))
    assert len(grouped) == 1


def test_parameters_of_one_scenario() -> None:
    def count(num_scenarios: int) -> int:
        schema = example_schema(num_tasks=2, num_scenarios=num_scenarios + 1)
        model = STAR(parse_config(STARConfig, SMALL, "test"), schema)
        return sum(parameter.numel() for parameter in model.parameters())

    width = build().embedding.width
    network = (width + 1) * 8 + (8 + 1) * 5 + (5 + 1) * 2
    assert count(3) - count(2) == network + 2 * width + 4  # weights, gains and shifts, embedding


def test_one_scenario_and_one_row_train() -> None:
    schema = example_schema(num_scenarios=2)
    model = STAR(parse_config(STARConfig, SMALL, "test"), schema).train()
    assert model(random_batch(schema, 1)).isfinite().all()
    assert model.norm.num_updates.tolist() == [0]


def test_settings_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"unknown key norm\.eps; known keys: kind"):
        parse_config(STARConfig, {"norm": {"kind": "none", "eps": 1e-3}}, "test")
