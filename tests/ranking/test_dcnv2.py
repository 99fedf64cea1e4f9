import pytest
import torch
from torch import nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dcnv2 import DCNv2, DCNv2Config
from rankloom.ranking.dnn import DNN, DNNConfig

SCHEMA = example_schema(num_tasks=2)


def build(**settings) -> DCNv2:
    sizes = {"embedding_dim": 3, "hidden": [6, 5], "num_crosses": 2}
    config = parse_config(DCNv2Config, sizes | settings, "test")
    model = DCNv2(config, SCHEMA)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def head(model: DCNv2, *parts: torch.Tensor) -> torch.Tensor:
    return model.head.joint(torch.cat(parts, dim=1))


def test_structures_read_what_they_say() -> None:
    batch = random_batch(SCHEMA, 6)
    for kind in ("crossnet_only", "stacked", "parallel", "stacked_parallel"):
        structure = {"kind": kind}
        if kind == "stacked_parallel":
            structure["parallel_hidden"] = [4]
        model = build(structure=structure)
        x0 = model.embedding(batch).flatten(1)
        cross = model.structure.cross(x0)
        if kind == "crossnet_only":
            expected = head(model, cross)
            assert "hidden" not in dict(model.structure.named_children())
        elif kind == "stacked":
            expected = head(model, model.structure.deep(cross))
        elif kind == "parallel":
            expected = head(model, cross, model.structure.deep(x0))
        else:
            assert model.structure.beside.out_features == 4
            expected = head(model, model.structure.deep(cross), model.structure.beside(x0))
        torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)


def test_crosses_with_zero_weights_leave_a_dnn() -> None:
    model = build(structure={"kind": "stacked"})
    for parameter in model.structure.cross.parameters():
        nn.init.zeros_(parameter)
    dnn = DNN(DNNConfig(embedding_dim=3, hidden=(6, 5)), SCHEMA)
    dnn.embedding.load_state_dict(model.embedding.state_dict())
    deep = [layer for layer in model.structure.deep.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        linears = [layer for layer in dnn.network.layers if isinstance(layer, nn.Linear)]
        for target, source in zip(linears, [*deep, model.head.joint], strict=True):
            target.load_state_dict(source.state_dict())
    batch = random_batch(SCHEMA, 6)
    torch.testing.assert_close(model(batch), dnn(batch))


@pytest.mark.parametrize("rows", [1, 4])
def test_low_rank_mixture_keeps_its_batch_axis(rows: int) -> None:
    model = build(cross={"kind": "low_rank", "rank": 2, "num_experts": 3})
    batch = random_batch(SCHEMA, rows)
    assert model(batch).shape == (rows, 2)
    torch.testing.assert_close(model(batch)[:1], model(batch.select(torch.tensor([0]))))


def test_low_rank_of_one_expert_at_full_rank_equals_the_full_cross() -> None:
    """tanh(z) = z near zero: V scaled down and U up by as much leaves U C V^T = W."""
    full = build(structure={"kind": "crossnet_only"}, num_crosses=1).double()
    width, scale = full.embedding.width, 1e-5
    cross = {"kind": "low_rank", "rank": width, "num_experts": 1}
    low = build(structure={"kind": "crossnet_only"}, num_crosses=1, cross=cross).double()
    low.embedding.load_state_dict(full.embedding.state_dict())
    low.head.load_state_dict(full.head.state_dict())
    source, target = full.structure.cross.layers[0], low.structure.cross.layers[0]
    with torch.no_grad():
        target.down[0] = scale * torch.eye(width)
        target.inner[0] = torch.eye(width)
        target.up[0] = source.weight.T / scale
        target.bias.copy_(source.bias)
    batch = random_batch(SCHEMA, 5)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    torch.testing.assert_close(low(batch), full(batch), rtol=1e-6, atol=1e-6)


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="structure"):
        build(structure={"kind": "sideways"})


def test_parameter_count_is_the_published_one() -> None:
    # BARS, Frappe_x1: 458,391 parameters over 5,389 embedding rows in 10 fields.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    config = DCNv2Config(embedding_dim=10, num_crosses=4, hidden=(400, 400, 400), batch_norm=True)
    assert sum(p.numel() for p in DCNv2(config, schema).parameters()) == 458_391
