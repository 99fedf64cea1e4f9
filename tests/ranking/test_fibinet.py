import pytest
import torch
from torch import Tensor

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.fibinet import SENET, FiBiNET, FiBiNETConfig
from rankloom.schema import Schema

SCHEMA = example_schema(num_tasks=2)
KINDS = ["all", "each", "interaction"]


def build(schema: Schema = SCHEMA, *, randomise: bool = True, **settings) -> FiBiNET:
    settings = {"embedding_dim": 3, "hidden": [6, 5], "reduction": 2.0} | settings
    model = FiBiNET(parse_config(FiBiNETConfig, settings, "test"), schema)
    if randomise:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def matrix(bilinear: torch.nn.Module, kind: str, i: int, pair: int) -> Tensor:
    """W of a pair, written for column vectors: W e."""
    if kind == "all":
        return bilinear.matrix.weight
    return bilinear.weight[i if kind == "each" else pair].T


def pairs_by_loops(bilinear: torch.nn.Module, kind: str, vectors: Tensor) -> Tensor:
    """All bilinear products of one row: [pairs, dim]."""
    products = []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            W = matrix(bilinear, kind, i, len(products))
            products.append((W @ vectors[i]) * vectors[j])
    return torch.stack(products)


def test_senet_worked_by_hand() -> None:
    senet = SENET(2, reduction=2.0)
    with torch.no_grad():
        senet.excite[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        senet.excite[2].weight.copy_(torch.tensor([[2.0], [-3.0]]))
    # Means 4 and 1; one hidden unit 3; weights relu(6) and relu(-9).
    vectors = torch.tensor([[[3.0, 5.0], [0.0, 2.0]]])
    assert senet(vectors).tolist() == [[[18.0, 30.0], [0.0, 0.0]]]


@pytest.mark.parametrize(("reduction", "hidden"), [(2.0, 3), (3.0, 2), (0.5, 14), (100.0, 1)])
def test_reduction_counts_fields_per_hidden_unit(reduction: float, hidden: int) -> None:
    assert SENET(7, reduction).excite[0].out_features == hidden


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loops_over_pairs_forward_and_gradient(kind: str) -> None:
    model, batch = build(bilinear={"kind": kind}), random_batch(SCHEMA, 4)
    vectors = model.embedding(batch).detach().requires_grad_()
    weighed = model.pairs.senet(vectors)
    assert weighed.any()
    rows = []
    for row, weighed_row in zip(vectors, weighed, strict=True):
        p, q = (pairs_by_loops(model.pairs.bilinear, kind, x) for x in (row, weighed_row))
        rows.append(torch.cat([p.flatten(), q.flatten()]))
    slow = model.linear(batch) + model.pairs.deep(torch.stack(rows))
    torch.testing.assert_close(model(batch), slow)
    model.embedding.forward = lambda batch: vectors
    parameters = [vectors, *model.pairs.parameters()]
    actual = torch.autograd.grad(model(batch).square().sum(), parameters)
    expected = torch.autograd.grad(slow.square().sum(), parameters)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_equal_matrices_make_all_kinds_one() -> None:
    batch, shared = random_batch(SCHEMA, 4), torch.randn(3, 3)
    first, *others = (build(bilinear={"kind": kind}) for kind in KINDS)
    for model in others:
        model.load_state_dict(first.state_dict(), strict=False)
        model.pairs.bilinear.weight.data[:] = shared.T
    first.pairs.bilinear.matrix.weight.data[:] = shared
    for model in others:
        torch.testing.assert_close(model(batch), first(batch))


def test_new_matrices_are_of_ordinary_size() -> None:
    # Xavier-normal: a variance of one over the width.
    model = build(randomise=False, embedding_dim=16)
    assert model.pairs.bilinear.weight.std().item() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_field_leaves_the_linear_term(kind: str) -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    model, batch = build(schema, bilinear={"kind": kind}), random_batch(schema, 3)
    torch.testing.assert_close(model(batch), model.linear(batch))


@pytest.mark.parametrize(
    ("fields", "rows", "kind", "settings", "count"),
    [
        # BARS: Frappe_x1 and Criteo_x1. Ours has a bias in the linear term too.
        (10, 5_389, "all", {"reduction": 2.0, "batch_norm": True}, 743_480),
        (39, 2_086_316, "interaction", {"reduction": 12.0}, 29_273_411),
    ],
)
def test_parameter_count_is_the_published_one(
    fields: int, rows: int, kind: str, settings: dict, count: int
) -> None:
    names = ["item", *(f"c{i}" for i in range(fields - 1))]
    sizes = dict.fromkeys(names, 3)  # two rows each, and the common padding row
    sizes["item"] = rows - 2 * (fields - 1)
    plain = example_schema(
        num_categorical=fields - 1, num_numeric=0, sequences=False, vectors=False
    )
    schema = plain.model_copy(update={"tables": sizes})
    settings = {"embedding_dim": 10, "hidden": [400] * 3, "bilinear": {"kind": kind}} | settings
    with torch.device("meta"):
        model = build(schema, randomise=False, **settings)
    assert sum(p.numel() for p in model.parameters()) == count + 1
