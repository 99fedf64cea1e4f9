import torch

from rankloom.batch import Batch
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.lr import LR, LRConfig
from rankloom.schema import CategoricalField, Label, NumericField, Schema


def test_lr_worked_by_hand() -> None:
    schema = Schema(
        tables={"user": 3, "item": 4},
        categorical=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="item", table="item"),
        ),
        numeric=(NumericField(name="age"),),
        labels=(Label(name="click"),),
    )
    model = LR(LRConfig(), schema)
    with torch.no_grad():
        # Padding, users 1 and 2, items 1 to 3.
        rows = torch.tensor([[0.0], [1.0], [2.0], [10.0], [20.0], [30.0]])
        model.linear.weights.table.weight.copy_(rows)
        model.linear.weights.numeric.fill_(0.5)
        model.linear.bias.fill_(100.0)
    batch = Batch(
        categorical=torch.tensor([[2, 3], [1, 0]], dtype=torch.int32),
        numeric=torch.tensor([[4.0], [-2.0]]),
    )
    assert model(batch).tolist() == [[134.0], [100.0]]


def test_a_new_model_predicts_almost_one_half() -> None:
    schema = example_schema()
    logits = LR(LRConfig(), schema)(random_batch(schema, 8))
    assert logits.abs().max() < 0.01
