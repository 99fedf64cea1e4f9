import pytest
import torch
from torch import nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dcn import DCN, DCNConfig
from rankloom.ranking.dnn import DNN, DNNConfig

SCHEMA = example_schema(num_tasks=2)


def build(**settings) -> DCN:
    sizes = {"embedding_dim": 3, "hidden": [6, 5], "num_crosses": 3}
    model = DCN(parse_config(DCNConfig, sizes | settings, "test"), SCHEMA)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("hidden", [[], [6, 5]])
def test_logits_and_gradients_equal_the_papers_loops(hidden: list[int]) -> None:
    model = build(hidden=hidden).double()
    batch = random_batch(SCHEMA, 4)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    rows = []
    for x0 in model.embedding(batch).flatten(1):
        x = x0
        for layer in model.streams[0].layers:
            product = sum(layer.product.weight[0, i] * x[i] for i in range(len(x)))
            x = torch.stack([x0[i] * product + layer.bias[i] + x[i] for i in range(len(x))])
        deep = [model.streams[1](x0.unsqueeze(0))[0]] if hidden else []
        rows.append(model.head.joint(torch.cat([x, *deep])))
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_without_hidden_layers_the_head_reads_the_crosses_alone() -> None:
    model = build(hidden=[])
    assert len(model.streams) == 1
    assert model.head.joint.in_features == model.embedding.width


def test_crosses_that_the_head_ignores_leave_a_dnn() -> None:
    model = build()
    dnn = DNN(DNNConfig(embedding_dim=3, hidden=(6, 5)), SCHEMA)
    dnn.embedding.load_state_dict(model.embedding.state_dict())
    width = model.embedding.width
    deep = [layer for layer in model.streams[1].layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        model.head.joint.weight[:, :width] = 0
        *hidden, last = [layer for layer in dnn.network.layers if isinstance(layer, nn.Linear)]
        for target, source in zip(hidden, deep, strict=True):
            target.load_state_dict(source.state_dict())
        last.weight.copy_(model.head.joint.weight[:, width:])
        last.bias.copy_(model.head.joint.bias)
    batch = random_batch(SCHEMA, 6)
    torch.testing.assert_close(model(batch), dnn(batch))


def test_a_network_without_crosses_is_refused() -> None:
    with pytest.raises(ValueError, match="num_crosses"):
        build(num_crosses=0)


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({"num_crosses": 3, "hidden": [400, 400, 400], "batch_norm": True}, 418_591),
        ({"num_crosses": 6, "hidden": []}, 55_191),
    ],
    ids=["DCN", "CrossNet"],
)
def test_parameter_counts_are_the_published_ones(settings, published: int) -> None:
    # BARS, Frappe_x1: 5,389 embedding rows in 10 fields.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    config = parse_config(DCNConfig, {"embedding_dim": 10} | settings, "test")
    assert sum(p.numel() for p in DCN(config, schema).parameters()) == published
