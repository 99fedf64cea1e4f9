import pytest
import torch
from torch.nn import functional

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.m2m import M2M, M2MConfig, MetaAttention, MetaLinear

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 4,
    "num_heads": 2,
    "layer_hidden": 6,
    "num_experts": 3,
    "expert_dim": 5,
    "num_tower_layers": 2,
    "network": {"hidden": [6]},
}


def build(**settings: object) -> M2M:
    torch.manual_seed(0)
    model = M2M(parse_config(M2MConfig, SMALL | settings, "test"), SCHEMA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("training", [False, True])
def test_rows_do_not_attend_to_each_other(training: bool) -> None:
    model = build().train(training)
    batch = random_batch(SCHEMA, 9)
    together = model(batch)
    for row in range(9):
        alone = model(batch.select(torch.tensor([row])))
        torch.testing.assert_close(alone, together[row : row + 1])


def test_the_fields_of_a_row_attend_to_each_other() -> None:
    model = build(num_layers=1).eval()
    with torch.no_grad():
        model.experts.weight[:, 4:] = 0  # the experts read the first field only
    batch = random_batch(SCHEMA, 9)
    other = random_batch(SCHEMA, 9, seed=1)
    before = model(batch)
    batch.categorical[:, 1:] = other.categorical[:, 1:]
    assert (model(batch) - before).abs().amin() > 1e-6
    without = build(num_layers=0).eval()
    with torch.no_grad():
        without.experts.weight[:, 4:] = 0
    before = without(batch)
    batch.categorical[:, 1:] = 0
    torch.testing.assert_close(without(batch), before)


def test_row_by_row() -> None:
    model = build().eval()
    batch = random_batch(SCHEMA, 12)
    x = model.embedding(batch)
    for layer in model.layers:
        x = layer(x)
    experts = functional.leaky_relu(model.experts(x.flatten(1))).view(12, 3, 5)
    for row, scenario in enumerate(batch.scenario.tolist()):
        for task, network in enumerate(model.networks):
            hidden = []
            for known in [scenario] if scenario else [1, 2, 3]:
                v = model.condition(model.scenarios.weight[known - 1])
                generated = model.attend.layer
                weight, bias = generated.weight(v).view(10, 10), generated.bias(v)
                scores = [
                    model.attend.score(
                        functional.leaky_relu(weight @ torch.cat([f, model.tasks[task]]) + bias)
                    )
                    for f in experts[row]
                ]
                state = torch.softmax(torch.cat(scores), 0) @ experts[row]
                for layer in model.tower.layers:
                    weight, bias = layer.weight(v).view(5, 5), layer.bias(v)
                    state = functional.leaky_relu(weight @ state + bias + state)
                hidden.append(state)
            expected = network(torch.stack(hidden).mean(0)[None])[0, 0]
            torch.testing.assert_close(model(batch)[row, task], expected)


def test_generated_weights_start_as_those_of_a_plain_layer() -> None:
    torch.manual_seed(0)
    layer = MetaLinear(16, 300, 200)
    (first, _), (second, _) = layer(torch.stack([torch.zeros(16), torch.randn(16)]))
    std = (2 / 500) ** 0.5
    assert first.shape == (200, 300)
    assert first.std().item() == pytest.approx(std, rel=0.02)
    assert (second - first).std().item() == pytest.approx(std, rel=0.5)


def test_attention_of_every_task_by_its_own_vector() -> None:
    torch.manual_seed(0)
    attend = MetaAttention(3, 4)
    experts, condition = torch.randn(6, 3, 4), torch.randn(1, 3)
    tasks = torch.randn(2, 4)
    (both,) = attend([experts], tasks, condition)  # [rows, tasks, dim]
    for task in range(2):
        (alone,) = attend([experts], tasks[task : task + 1], condition)
        torch.testing.assert_close(alone[:, 0], both[:, task])
    assert not torch.allclose(both[:, 0], both[:, 1])
    # Of experts that are all alike every weighed sum is one of them.
    same = experts[:, :1].expand(-1, 3, -1)
    (out,) = attend([same], tasks, condition)
    torch.testing.assert_close(out, same[:, :2])


def test_heads_that_do_not_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim; got dim=4, num_heads=3"):
        build(num_heads=3)
