"""LR: logistic regression on ids, the floor under every ranker.

Source: Richardson et al., WWW 2007, "Predicting clicks" (logistic regression for clicks).
Equation: logit = b + sum_i w[i] x[i]
Differs from the paper: fields are ids with a weight each, in place of engineered features.
"""

from jaxtyping import Float
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FirstOrder
from rankloom.schema import Schema


class LRConfig(Config):
    """LR has nothing to choose."""


class LR(nn.Module):
    """Logistic regression; several tasks have their own weights and bias."""

    def __init__(self, config: LRConfig, schema: Schema) -> None:
        super().__init__()
        self.linear = FirstOrder(schema)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.linear(batch)
