"""Small funnels with everything that may happen to their labels, for the tests of funnel models."""

import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.data.examples import example_schema
from rankloom.schema import Schema

FUNNEL = example_schema(
    num_categorical=1, num_numeric=0, num_tasks=3, sequences=False, vectors=False
)
SMALL = {
    "bottom": {"name": "dnn", "hidden": [8], "embedding_dim": 4},
    "width": 6,
    "tower": {"hidden": [5]},
}


def funnel_batch(rows: int = 60, seed: int = 0, schema: Schema = FUNNEL) -> Batch:
    """Clicks, carts and purchases as a log has them: masked behind a stop, sometimes unknown."""
    generator = torch.Generator().manual_seed(seed)
    happens = torch.rand(rows, 3, generator=generator) < torch.tensor([0.6, 0.7, 0.5])
    labels = happens.long().cumprod(1).float()
    known = torch.ones(rows, 3, dtype=torch.bool)
    known[:, 1:] = labels[:, :-1] == 1
    known &= torch.rand(rows, 3, generator=generator) < 0.8
    fields = len(schema.categorical)
    return Batch(
        categorical=torch.randint(2, 50, (rows, fields), generator=generator, dtype=torch.int32),
        numeric=torch.zeros(rows, 0),
        labels=labels * known,
        label_mask=known,
        weight=torch.rand(rows, generator=generator) + 0.5,
    )


def bce(probability: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of a float64 probability, as it is written down."""
    return -(label * probability.log() + (1 - label) * (1 - probability).log())


def spread(model: nn.Module, seed: int = 1) -> nn.Module:
    """Parameters of ordinary size, so that probabilities lie all over the unit interval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model
