from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.apg import APG, APGConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 4,
    "hidden": [6, 5],
    "rank": 2,
    "over_width": 3,
    "generator_hidden": [4],
    "activation": "tanh",
}


def build(**settings: object) -> APG:
    torch.manual_seed(0)
    model = APG(parse_config(APGConfig, SMALL | settings, "test"), SCHEMA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def condition(kind: str, model: APG, scenario: int, h: Tensor) -> Tensor:
    if kind == "self":
        return h
    vectors = model.condition.scenarios.weight
    own = vectors[scenario - 1] if scenario else vectors.mean(0)
    return own if kind == "group" else torch.cat([own, h])


@pytest.mark.parametrize("generated_bias", [True, False])
@pytest.mark.parametrize("kind", ["group", "self", "mix"])
def test_every_row_has_weights_of_its_own(kind: str, generated_bias: bool) -> None:
    model = build(condition={"kind": kind}, generated_bias=generated_bias)
    batch = random_batch(SCHEMA, 9)
    assert 0 in batch.scenario
    inputs = model.embedding(batch).flatten(1)
    for row, scenario in enumerate(batch.scenario.tolist()):
        h = inputs[row]
        for layer in model.layers:
            generated = layer.generator(condition(kind, model, scenario, h)[None])[0]
            left = layer.left.left.weight @ layer.left.right.weight
            right = layer.right.left.weight @ layer.right.right.weight
            weight = left @ generated[:4].view(2, 2) @ right
            bias = generated[4:] if generated_bias else layer.bias.bias
            h = torch.tanh(h @ weight + bias)
        torch.testing.assert_close(model(batch)[row], model.head(h))


def test_weights_of_a_group_are_generated_once_per_scenario() -> None:
    model = build(condition={"kind": "group"})
    rows = []
    model.layers[0].generator.register_forward_hook(lambda part, given, out: rows.append(len(out)))
    model(random_batch(SCHEMA, 50))
    assert rows == [4]  # the unknown scenario and three known ones


def test_over_parametrised_weights_equal_their_product() -> None:
    over, plain = build(), build(over_width="none")
    state = {name: t for name, t in over.state_dict().items() if name in plain.state_dict()}
    for number, layer in enumerate(over.layers):
        state[f"layers.{number}.left.weight"] = layer.left()
        state[f"layers.{number}.right.weight"] = layer.right()
    plain.load_state_dict(state)
    batch = random_batch(SCHEMA, 7)
    torch.testing.assert_close(plain(batch), over(batch))


def test_a_new_model_is_a_low_rank_network() -> None:
    model = APG(parse_config(APGConfig, SMALL, "test"), SCHEMA).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.generator.layers[-1].weight.zero_()
    batch = random_batch(SCHEMA, 7)
    h = model.embedding(batch).flatten(1)
    for layer in model.layers:
        h = torch.tanh(h @ layer.left() @ layer.right())
    torch.testing.assert_close(model(batch), model.head(h))
    assert model(batch).std(0).min() > 0


def test_self_wise_weights_look_at_no_scenario() -> None:
    batch = random_batch(SCHEMA, 7)
    moved = replace(batch, scenario=(batch.scenario + 1) % 4)
    for kind, same in (("self", True), ("group", False), ("mix", False)):
        model = build(condition={"kind": kind})
        assert torch.equal(model(batch), model(moved)) == same


def test_an_inner_width_below_the_rank() -> None:
    with pytest.raises(ValueError, match="rank or more, or none; got over_width=3, rank=5"):
        build(rank=5)
