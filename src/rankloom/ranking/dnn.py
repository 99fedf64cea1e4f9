"""DNN: embeddings side by side into a multi-layer network.

Source: Covington et al., RecSys 2016, section 4 (the ranking network), without its feature
    engineering: the plain form that benchmarks call DNN.
Equation: logits = MLP([e[1]; ...; e[F]])
Differs from the paper: no weighting by watch time, no powers of numeric fields.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class DNNConfig(Network):
    """Sizes of the network."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""


class DNN(nn.Module):
    """A multi-layer network over all fields; tasks share everything but the last layer."""

    def __init__(self, config: DNNConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.network = config.build_network(self.embedding.width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self.network(self.embedding(batch).flatten(1))
