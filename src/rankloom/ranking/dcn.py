"""DCN: cross layers of rank one beside a network.

Source: Wang et al., ADKDD 2017, arXiv:1708.05123, sections 2.2 to 2.4.
Equations: x[l+1] = x[0] (w[l]^T x[l]) + b[l] + x[l], h = MLP(x[0]), logits = W [x[L]; h] + c
    with x[0] the embeddings side by side.
Differs from the paper: all fields have embeddings of one width, where the paper's widths grow with
    the size of the vocabulary. `hidden = []` leaves the network out ("CrossNet" in the field's
    benchmarks).
The paper does not say: whether dense features are scaled. Here they are numeric fields like any
    other: their own vector times the value.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.interaction import RankOneCrossNetwork
from rankloom.layers.mlp import JointLinear
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class DCNConfig(Network):
    """Sizes of the crosses and of the network; without hidden layers, the crosses stand alone."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    num_crosses: int = Field(3, ge=1)
    """Cross layers; each raises the interaction order by one."""


class DCN(nn.Module):
    """Crosses and network over all fields; tasks share everything but the head."""

    def __init__(self, config: DCNConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        width = self.embedding.width
        self.streams = nn.ModuleList([RankOneCrossNetwork(width, config.num_crosses)])
        widths = [width]
        if config.hidden:  # DIFF: without hidden layers the paper's network would be x[0] itself
            deep = config.build_network(width)
            self.streams.append(deep)
            widths.append(deep.out_features)
        self.head = JointLinear(widths, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x0 = self.embedding(batch).flatten(1)  # [batch, fields * dim]
        return self.head(*(stream(x0) for stream in self.streams))
