import pytest
import torch

from rankloom.batch import Batch
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.fm import FM, FMConfig
from rankloom.schema import CategoricalField, Label, NumericField, Schema


def test_fm_worked_by_hand() -> None:
    schema = Schema(
        tables={"user": 2, "item": 3},
        categorical=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="item", table="item"),
        ),
        numeric=(NumericField(name="age"),),
        labels=(Label(name="click"),),
    )
    model = FM(FMConfig(embedding_dim=2), schema)
    with torch.no_grad():
        # Padding, user 1, items 1 and 2.
        model.embedding.table.weight.copy_(torch.tensor([[0, 0], [1, 2], [3, 4], [5, 6.0]]))
        model.embedding.numeric.copy_(torch.tensor([[0.5, -1.0]]))
        model.linear.weights.table.weight.copy_(torch.tensor([[0], [10], [20], [30.0]]))
        model.linear.weights.numeric.fill_(7.0)
        model.linear.bias.fill_(1000.0)
    batch = Batch(
        categorical=torch.tensor([[1, 2], [1, 0]], dtype=torch.int32),
        numeric=torch.tensor([[2.0], [1.0]]),
    )
    # Row 0: user (1, 2), item (5, 6), age (1, -2): pairs 5 + 12, 1 - 4, 5 - 12 = 7;
    #        linear 1000 + 10 + 30 + 14.
    # Row 1: user (1, 2), padding, age (0.5, -1): pairs 0.5 - 2; linear 1000 + 10 + 7.
    assert model(batch).tolist() == [[1061.0], [1015.5]]


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_fm_equals_the_sum_over_pairs(num_tasks: int) -> None:
    schema = example_schema(num_tasks=num_tasks, entity=True)
    model = FM(FMConfig(embedding_dim=3), schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    batch = random_batch(schema, 5)
    vectors = model.embedding(batch)
    expected = model.linear(batch)
    fields = vectors.shape[1]
    weight = torch.ones(3, 1) if num_tasks == 1 else model.pairs.weight
    for i in range(fields):
        for j in range(i + 1, fields):
            expected = expected + (vectors[:, i] * vectors[:, j]) @ weight
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
