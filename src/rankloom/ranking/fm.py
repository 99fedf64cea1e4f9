"""FM: factorization machine of order two.

Source: Rendle, ICDM 2010, equations 1 and 5.
Equation: logit = b + sum_i w[i] x[i] + sum_{i<j} <v[i], v[j]> x[i] x[j]
Differs from the paper: with several tasks, each has its own linear term and its own weights on the
    dimensions of a shared pair term (`layers.interaction.TaskSum`); the paper has one task.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.layers.interaction import TaskSum, pair_sum
from rankloom.schema import Schema


class FMConfig(Config):
    """Size of the factors."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's factor vector."""


class FM(nn.Module):
    """Linear term plus all pairs of fields."""

    def __init__(self, config: FMConfig, schema: Schema) -> None:
        super().__init__()
        self.linear = FirstOrder(schema)
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.pairs = TaskSum(config.embedding_dim, schema.num_tasks)  # DIFF: several tasks

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.linear(batch) + self.pairs(pair_sum(self.embedding(batch)))
