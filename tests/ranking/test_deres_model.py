import pytest
import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.evaluation.cost import OperationCounter
from rankloom.layers.connections.deres import HalfDeRes
from rankloom.ranking.deres import DeRes, DeResConfig
from rankloom.ranking.transformer import Transformer, TransformerConfig

SCHEMA = example_schema(num_categorical=2, num_numeric=1)


def operations(dim: int, num_layers: int, connection: dict[str, object]) -> int:
    """Operations of a stack of Transformer layers, element-wise ones too."""
    config = TransformerConfig.model_validate(
        {"dim": dim, "num_layers": num_layers, "connection": connection}
    )
    stack = Transformer(config, SCHEMA).stack
    with torch.no_grad(), OperationCounter() as counter:
        stack(torch.randn(2, 16, dim), None)
    return counter.flops


@pytest.mark.parametrize("width", ["half", "full"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("num_layers", [2, 8, 16])
def test_adds_less_than_five_percent_of_operations(dim: int, num_layers: int, width: str) -> None:
    plain = operations(dim, num_layers, {"kind": "identity"})
    ours = operations(dim, num_layers, {"kind": "deres", "width": {"kind": width}})
    assert plain < ours < 1.05 * plain


def test_a_dense_gate_would_cost_more_than_that() -> None:
    plain = operations(64, 8, {"kind": "identity"})
    dense = {"kind": "deres", "width": {"kind": "full"}, "fusion": {"kind": "dense"}}
    assert operations(64, 8, dense) > 1.1 * plain


def test_the_paper_s_model_by_default() -> None:
    model = DeRes(DeResConfig(), SCHEMA)
    connection = model.stack.connection
    assert isinstance(connection, HalfDeRes)
    assert connection.out_dim == 64
    assert len(connection.fusions) == 8
    assert not connection.chained


def test_fields_read_each_other_and_events_stay_encodable() -> None:
    settings = {"dim": 8, "num_layers": 2, "embedding_dim": 4, "tokens": {"kind": "per_field"}}
    model = DeRes(DeResConfig.model_validate(settings), SCHEMA).eval()
    batch = random_batch(SCHEMA, rows=3, seed=1)
    with torch.no_grad():
        cache = model.encode_events(batch)
        scored = model.score(batch, cache, torch.arange(3))
        torch.testing.assert_close(scored, model(batch))
