import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.ranking.ipnn import IPNN, IPNNConfig

SCHEMA = example_schema(num_tasks=2)


def build(schema=SCHEMA) -> IPNN:
    model = IPNN(IPNNConfig(embedding_dim=3, hidden=(6, 5)), schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_the_network_reads_embeddings_then_products_in_the_order_of_pairs() -> None:
    model, batch = build(), random_batch(SCHEMA, 4)
    vectors = model.embedding(batch).detach().requires_grad_()
    fields = vectors.shape[1]
    products = [
        (vectors[:, i] * vectors[:, j]).sum(1) for i in range(fields) for j in range(i + 1, fields)
    ]
    slow = model.network(torch.cat([vectors.flatten(1), torch.stack(products, dim=1)], dim=1))
    torch.testing.assert_close(model(batch), slow)
    model.embedding.forward = lambda batch: vectors
    (actual,) = torch.autograd.grad(model(batch).square().sum(), vectors)
    (expected,) = torch.autograd.grad(slow.square().sum(), vectors)
    torch.testing.assert_close(actual, expected)


def test_without_weights_on_the_products_it_is_dnn() -> None:
    model, batch = build(), random_batch(SCHEMA, 5)
    dnn = DNN(DNNConfig(embedding_dim=3, hidden=(6, 5)), SCHEMA)
    dnn.embedding.load_state_dict(model.embedding.state_dict())
    state = model.network.state_dict()
    first = state["layers.0.weight"]
    dnn.network.load_state_dict(state | {"layers.0.weight": first[:, : dnn.embedding.width]})
    assert not torch.allclose(model(batch), dnn(batch))
    with torch.no_grad():
        first[:, dnn.embedding.width :] = 0
    torch.testing.assert_close(model(batch), dnn(batch))


def test_a_single_field_has_no_products() -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    model, batch = build(schema), random_batch(schema, 3)
    assert model.network.layers[0].in_features == 3
    torch.testing.assert_close(model(batch), model.network(model.embedding(batch).flatten(1)))


def test_parameter_count_is_the_published_one() -> None:
    # BARS, Frappe_x1: 433,491 parameters over 5,389 embedding rows in 10 fields.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    model = IPNN(IPNNConfig(embedding_dim=10), schema)
    assert sum(p.numel() for p in model.parameters()) == 433_491
