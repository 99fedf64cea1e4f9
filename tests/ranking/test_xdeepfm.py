import pytest
import torch
from torch import Tensor

from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.interaction import pair_sum
from rankloom.ranking import xdeepfm
from rankloom.ranking.deepfm import DeepFM, DeepFMConfig
from rankloom.ranking.xdeepfm import CIN, XDeepFM, XDeepFMConfig, products_linear

SCHEMA = example_schema(num_tasks=2)


def build(schema=SCHEMA, **settings) -> XDeepFM:
    settings = {"embedding_dim": 3, "hidden": (6, 5), "feature_maps": (4, 2)} | settings
    model = XDeepFM(XDeepFMConfig(**settings), schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def cin_by_loops(cin: CIN, x0: Tensor) -> Tensor:
    """All feature maps of one row, summed: x0 [fields, dim]."""
    sums, x = [], x0
    for layer in cin.layers:
        weight = layer.compress.weight.unflatten(
            1, (len(x), len(x0))
        )  # [maps, maps before, fields]
        maps = []
        for h in range(len(weight)):
            total = layer.compress.bias[h].expand(x0.shape[1])
            for i in range(len(x)):
                for j in range(len(x0)):
                    total = total + weight[h, i, j] * x[i] * x0[j]
            maps.append(total)
        x = torch.stack(maps)
        sums.append(x.sum(1))
    return torch.cat(sums)


def test_cin_worked_by_hand() -> None:
    cin = CIN(2, (1, 1))
    with torch.no_grad():
        cin.layers[0].compress.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, -1.0]]))
        cin.layers[1].compress.weight.copy_(torch.tensor([[0.5, 1.0]]))
        cin.layers[1].compress.bias.fill_(10.0)
    # Fields (1, 2) and (3, 4): layer 1 is 1*1 + 2*1*3 - 3*3 = -2 and 2*2 + 2*2*4 - 4*4 = 4.
    # Layer 2 is -2*0.5*1 - 2*3 + 10 = 3 and 4*0.5*2 + 4*4 + 10 = 30.
    assert cin(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist() == [[2.0, 33.0]]


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("fields", [1, 3])
def test_cin_equals_the_loops_forward_and_gradient(rows: int, fields: int) -> None:
    cin = CIN(fields, (4, 2, 3)).double()
    for parameter in cin.parameters():
        torch.nn.init.normal_(parameter)
    vectors = torch.randn(rows, fields, 2, dtype=torch.float64, requires_grad=True)
    slow = [cin_by_loops(cin, row) for row in vectors]
    fast = cin(vectors)
    assert fast.shape == (rows, 9)
    inputs = [vectors, *cin.parameters()]
    actual = torch.autograd.grad(fast.square().sum(), inputs)
    if not rows:
        assert not any(gradient.any() for gradient in actual)
        return
    torch.testing.assert_close(fast, torch.stack(slow))
    expected = torch.autograd.grad(torch.stack(slow).square().sum(), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("limit", [1, 13, 30, 10**6])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    shapes = [(7, 4), (7, 3), (2, 12), (2,)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    x, x0, weight, bias = inputs
    plain = torch.einsum("ni,nj,oij->no", x, x0, weight.unflatten(1, (4, 3))) + bias
    monkeypatch.setattr(xdeepfm, "CPU_CHUNK", limit)
    chunked = products_linear(x, x0, weight, bias)
    torch.testing.assert_close(chunked, plain)
    actual = torch.autograd.grad(chunked.square().sum(), inputs)
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_no_tensor_of_all_products_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xdeepfm, "CPU_CHUNK", 60)
    made = []
    plain = xdeepfm._products

    def watched(x: Tensor, x0: Tensor) -> Tensor:
        made.append(plain(x, x0))
        return made[-1]

    monkeypatch.setattr(xdeepfm, "_products", watched)
    cin = CIN(5, (4,))
    cin(torch.randn(6, 5, 3)).sum().backward()
    assert sum(len(products) for products in made) == 2 * 6 * 3  # every row, in both passes
    assert max(products.numel() for products in made) <= 60


def test_autocast_rounds_the_maps_and_keeps_the_gradients_type() -> None:
    cin, vectors = CIN(4, (5, 3)), torch.randn(6, 4, 2, requires_grad=True)
    inputs = [vectors, *cin.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cin(vectors)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), cin(vectors), rtol=0.05, atol=0.1)
    actual = torch.autograd.grad(rounded.float().sum(), inputs)
    expected = torch.autograd.grad(cin(vectors).sum(), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=0.1, atol=0.2)


def test_logits_are_the_sum_of_three_parts() -> None:
    model, batch = build(), random_batch(SCHEMA, 5)
    vectors = model.embedding(batch)
    compressed = torch.stack([cin_by_loops(model.cin, row) for row in vectors])
    parts = (
        model.linear(batch) + compressed @ model.output.weight.T + model.deep(vectors.flatten(1))
    )
    torch.testing.assert_close(model(batch), parts)


def test_one_map_of_ones_above_the_diagonal_makes_it_deepfm() -> None:
    schema = example_schema()
    model, batch = build(schema, feature_maps=(1,)), random_batch(schema, 6)
    fields = model.embedding.num_fields
    with torch.no_grad():
        (layer,) = model.cin.layers
        layer.compress.weight.copy_(torch.ones(fields, fields).triu(1).reshape(1, -1))
        layer.compress.bias.zero_()
        model.output.weight.fill_(1)
    vectors = model.embedding(batch)
    torch.testing.assert_close(model.cin(vectors)[:, 0], pair_sum(vectors).sum(1))
    deepfm = DeepFM(DeepFMConfig(embedding_dim=3, hidden=(6, 5)), schema)
    for part in ("linear", "embedding", "deep"):
        getattr(deepfm, part).load_state_dict(getattr(model, part).state_dict())
    torch.testing.assert_close(model(batch), deepfm(batch))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        # BARS, Frappe_x1: xDeepFM and CIN.
        ({"feature_maps": (64,), "batch_norm": True}, 429_809),
        ({"feature_maps": (64, 64, 64), "hidden": ()}, 147_984),
    ],
)
def test_parameter_count_is_the_published_one(settings: dict, count: int) -> None:
    # Over 5,389 embedding rows in 10 fields. The common bias stands in the linear term.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    model = XDeepFM(XDeepFMConfig(embedding_dim=10, **settings), schema)
    assert sum(p.numel() for p in model.parameters()) == count
