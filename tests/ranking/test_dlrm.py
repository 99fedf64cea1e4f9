import pytest
import torch
from torch import Tensor

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dlrm import DLRM, DLRMConfig
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.schema import Schema

FULL = example_schema(num_tasks=2)
IDS = example_schema(num_numeric=0, sequences=False, vectors=False)
NETWORKS = {"bottom": {"hidden": [5]}, "top": {"hidden": [6, 4]}}


def build(schema: Schema = FULL, **settings) -> DLRM:
    config = parse_config(DLRMConfig, {"embedding_dim": 3} | NETWORKS | settings, "test")
    model = DLRM(config, schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def numeric_vector(model: DLRM, batch: Batch) -> Tensor:
    first, _, last = model.sources[0].network.layers
    hidden = torch.relu(batch.numeric @ first.weight.T + first.bias)
    return torch.relu(hidden @ last.weight.T + last.bias)


def dots(vectors: Tensor) -> Tensor:
    count = vectors.shape[1]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return torch.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs], dim=1)


def test_numeric_fields_meet_the_others_in_inner_products() -> None:
    model, batch = build(), random_batch(FULL, 5)
    others = model.sources[1]
    assert not {"n0", "n1"} & set(others.field_names)
    assert {"item", "c0", "embedding", "genres"} <= set(others.field_names)
    numeric = numeric_vector(model, batch)
    vectors = torch.cat([numeric.unsqueeze(1), others(batch)], dim=1)
    slow = model.top(torch.cat([numeric, dots(vectors)], dim=1))
    torch.testing.assert_close(model(batch), slow)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(model(batch).square().sum(), parameters)
    expected = torch.autograd.grad(slow.square().sum(), parameters)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_without_numeric_fields_the_inner_products_stand_alone() -> None:
    model, batch = build(IDS), random_batch(IDS, 4)
    (embedding,) = model.sources
    torch.testing.assert_close(model(batch), model.top(dots(embedding(batch))))


@pytest.mark.parametrize("schema", [FULL, IDS], ids=["full", "ids"])
def test_embeddings_may_stand_beside_the_products(schema: Schema) -> None:
    model = build(schema, interaction={"kind": "dot", "keep_embeddings": True})
    batch = random_batch(schema, 4)
    vectors = torch.cat([source(batch) for source in model.sources], dim=1)
    expected = model.top(torch.cat([vectors.flatten(1), dots(vectors)], dim=1))
    torch.testing.assert_close(model(batch), expected)


def test_sum_reads_one_vector() -> None:
    model, batch = build(interaction={"kind": "sum"}), random_batch(FULL, 4)
    total = sum(source(batch).sum(1) for source in model.sources)
    torch.testing.assert_close(model(batch), model.top(total))


def test_concatenation_without_numeric_fields_is_dnn() -> None:
    model, batch = build(IDS, interaction={"kind": "concatenation"}), random_batch(IDS, 4)
    dnn = DNN(DNNConfig(embedding_dim=3, hidden=(6, 4)), IDS)
    dnn.embedding.load_state_dict(model.sources[0].state_dict())
    dnn.network.load_state_dict(model.top.state_dict())
    torch.testing.assert_close(model(batch), dnn(batch))


@pytest.mark.parametrize("num_numeric", [0, 3])
def test_a_single_vector_is_read_itself(num_numeric: int) -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    if num_numeric:  # and nothing else
        numeric = example_schema(num_numeric=num_numeric).numeric
        schema = schema.model_copy(update={"categorical": (), "tables": {}, "numeric": numeric})
    model, batch = build(schema), random_batch(schema, 3)
    (source,) = model.sources
    torch.testing.assert_close(model(batch), model.top(source(batch).flatten(1)))


def test_parameter_count_of_concatenation_is_the_published_one() -> None:
    # BARS, Frappe_x1: 417,891 parameters over 5,389 embedding rows in 10 fields, batch norm.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    settings = {"embedding_dim": 10, "top": {"hidden": [400, 400, 400], "batch_norm": True}}
    model = build(schema, interaction={"kind": "concatenation"}, **settings)
    assert sum(p.numel() for p in model.parameters()) == 417_891
