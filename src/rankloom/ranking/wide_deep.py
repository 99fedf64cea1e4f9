"""Wide & Deep: a linear term that memorises beside a network that generalises.

Source: Cheng et al., DLRS 2016, arXiv:1606.07792, equation 3.
Equation: logits = b + sum_i w[i] x[i] + MLP([e[1]; ...; e[F]])
Differs from the paper: the wide part has one weight per id and no hand-made cross products; one
    optimizer trains both parts (the paper: FTRL for the wide part, AdaGrad for the deep one).
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class WideDeepConfig(Network):
    """Sizes of the deep part."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""


class WideDeep(nn.Module):
    """Linear term plus network."""

    def __init__(self, config: WideDeepConfig, schema: Schema) -> None:
        super().__init__()
        self.wide = FirstOrder(schema)  # DIFF: no hand-made cross products
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.deep = config.build_network(self.embedding.width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.wide(batch) + self.deep(self.embedding(batch).flatten(1))
