"""DeepFM: a factorization machine and a network over the same embeddings.

Source: Guo et al., IJCAI 2017, arXiv:1703.04247, equations 1 to 4.
Equation: logits = b + sum_i w[i] x[i] + sum_{i<j} <e[i], e[j]> + MLP([e[1]; ...; e[F]])
Differs from the paper: with several tasks, each has its own linear term, its own weights on the
    dimensions of a shared pair term, and its own last layer; the paper has one task.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.layers.interaction import TaskSum, pair_sum
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class DeepFMConfig(Network):
    """Sizes of the embeddings and the deep part."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, which both parts share."""


class DeepFM(nn.Module):
    """Linear term, pair term and network; the last two share their embeddings."""

    def __init__(self, config: DeepFMConfig, schema: Schema) -> None:
        super().__init__()
        self.linear = FirstOrder(schema)
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.pairs = TaskSum(config.embedding_dim, schema.num_tasks)  # DIFF: several tasks
        self.deep = config.build_network(self.embedding.width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        vectors = self.embedding(batch)  # [batch, fields, dim]
        pairs = self.pairs(pair_sum(vectors))
        return self.linear(batch) + pairs + self.deep(vectors.flatten(1))
