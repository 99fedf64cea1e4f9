import torch
from torch import Tensor, nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.scenario.sar_net import SARNet, SARNetConfig

SCHEMA = example_schema(num_tasks=2, num_scenarios=4)
SMALL = {
    "embedding_dim": 4,
    "num_shared_experts": 3,
    "num_own_experts": 2,
    "expert_dim": 5,
    "network": {"hidden": [6]},
}


def build() -> SARNet:
    torch.manual_seed(0)
    model = SARNet(parse_config(SARNetConfig, SMALL, "test"), SCHEMA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for seed in range(3):
        model.train()(random_batch(SCHEMA, 16, seed))  # statistics other than the first ones
    return model


def test_row_by_row() -> None:
    model = build().eval()
    batch = random_batch(SCHEMA, 12)
    fields = model.embedding(batch).flatten(1)
    shared_norm, own_norm = model.shared_norm, model.own_norm

    def experts(layer: nn.Linear, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return layer((x - mean) / (var + 1e-5).sqrt()).view(-1, 5)

    for row, scenario in enumerate(batch.scenario.tolist()):
        known = [scenario - 1] if scenario else [0, 1, 2]
        x = fields[row] * model.scale[known].mean(0) + model.shift[known].mean(0)
        mean, var = shared_norm.running_mean[0], shared_norm.running_var[0]
        shared = experts(model.shared, x, mean, var)
        mean, var = own_norm.running_mean[known].mean(0), own_norm.running_var[known].mean(0)
        own = torch.stack([experts(model.own[one], x, mean, var) for one in known]).mean(0)
        gates = torch.softmax(model.gate(x), 0)
        torch.testing.assert_close(gates.sum(), torch.tensor(1.0))
        mixed = gates @ torch.cat([shared, own])
        torch.testing.assert_close(model(batch)[row], model.network(mixed[None])[0])


def test_experts_with_a_batch_norm_of_their_own_are_the_same_linear_layers() -> None:
    model = build().train()
    x = torch.randn(9, model.embedding.width)
    shared = torch.ones(9, dtype=torch.int32)
    outputs = []
    with torch.no_grad():
        weights, biases = model.shared.weight.chunk(3), model.shared.bias.chunk(3)
        for weight, bias in zip(weights, biases, strict=True):
            norm, layer = nn.BatchNorm1d(x.shape[1]), nn.Linear(x.shape[1], 5)
            norm.weight.normal_()
            norm.bias.normal_()
            layer.weight.normal_()
            outputs.append(layer(norm(x)))
            weight.copy_(layer.weight * norm.weight)
            bias.copy_(layer.bias + layer.weight @ norm.bias)
    torch.testing.assert_close(model.shared(model.shared_norm(x, shared)), torch.cat(outputs, 1))


def test_a_row_trains_the_shared_experts_and_its_own() -> None:
    model = build().eval()
    batch = random_batch(SCHEMA, 8)
    batch.scenario.fill_(3)
    model(batch).sum().backward()
    assert [own.weight.grad is not None and own.weight.grad.any() for own in model.own] == [
        False,
        False,
        True,
    ]
    assert model.shared.weight.grad.any()
    assert [bool(own.any()) for own in model.scale.grad] == [False, False, True]


def test_one_row_is_nothing_to_learn_statistics_from() -> None:
    model = build()
    batch = random_batch(SCHEMA, 9)
    batch.scenario.copy_(torch.tensor([1] * 8 + [2]))
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert model.train()(batch).isfinite().all()
    after = dict(model.named_buffers())
    changed = [
        not torch.equal(*pair)
        for pair in zip(
            after["own_norm.running_mean"], before["own_norm.running_mean"], strict=True
        )
    ]
    assert changed == [True, False, False]
    before = {name: value.clone() for name, value in after.items()}
    assert model(batch.select(torch.tensor([0]))).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_new_model_leaves_the_embeddings_as_they_are() -> None:
    model = SARNet(parse_config(SARNetConfig, SMALL, "test"), SCHEMA)
    assert (model.scale == 1).all()
    assert (model.shift == 0).all()
    # Each expert starts as a matrix of its own width, however many there are.
    wide = SARNet(SARNetConfig(num_shared_experts=50), SCHEMA)
    std = (2 / (wide.embedding.width + 16)) ** 0.5
    assert abs(wide.shared.weight.std().item() / std - 1) < 0.02
