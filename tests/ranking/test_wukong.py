import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.network import Network
from rankloom.ranking.wukong import Wukong, WukongConfig, WukongLayer

SMALL = WukongConfig(
    embedding_dim=4,
    num_layers=2,
    num_factorized_tokens=3,
    num_compressed_tokens=2,
    rank=2,
    block=Network(hidden=(6,)),
    head=Network(hidden=(5,)),
)


def test_layer_equals_the_equation() -> None:
    torch.manual_seed(0)
    layer = WukongLayer(SMALL, in_tokens=4).double()
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    rows = []
    for row in x:
        products = (row @ row.T) @ layer.factorization.compress.weight.T  # [tokens, rank]
        factorized = layer.factorization.network(layer.factorization.norm(products.flatten()))
        compressed = layer.compression.weight @ row
        residual = layer.residual.weight @ row
        met = torch.cat([factorized.reshape(3, 4), compressed])
        rows.append(layer.norm(met + residual))
    torch.testing.assert_close(layer(x), torch.stack(rows))


def test_the_block_ends_with_a_relu_unless_told_otherwise() -> None:
    x = torch.randn(64, 4, 4)
    for final_relu in (True, False):
        config = SMALL.model_copy(update={"final_relu": final_relu})
        torch.manual_seed(0)
        out = WukongLayer(config, in_tokens=4).factorization(x, x)
        assert bool((out < 0).any()) is not final_relu


def test_layers_keep_their_number_of_tokens_after_the_first() -> None:
    schema = example_schema(num_categorical=3, num_numeric=1, sequences=False, vectors=False)
    model = Wukong(SMALL, schema)
    first, second = model.layers
    assert [first.num_tokens, second.num_tokens] == [5, 5]
    assert isinstance(second.residual, torch.nn.Identity)
    assert model(random_batch(schema, 3)).shape == (3, schema.num_tasks)
