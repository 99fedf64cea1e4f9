"""IPNN (PNN): a network over the embeddings and the inner products of all their pairs.

Source: Qu et al., ICDM 2016, arXiv:1611.00144, section III.
Equation: logits = MLP([e[1]; ...; e[F]; <e[i], e[j]> for all i < j])
Differs from the paper: the first layer reads the inner products themselves, as in the field's
    benchmarks; the paper reads them through one weight vector over the fields per unit, a rank-one
    form of all pairs' weights.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.pairs import num_pairs, pair_inner_products
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class IPNNConfig(Network):
    """Sizes of the embeddings and of the network above them and their products."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""


class IPNN(nn.Module):
    """One network over embeddings and inner products; tasks share all but the last layer."""

    def __init__(self, config: IPNNConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        width = self.embedding.width + num_pairs(self.embedding.num_fields)
        self.network = config.build_network(width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        vectors = self.embedding(batch)  # [batch, fields, dim]
        products = pair_inner_products(vectors)  # DIFF: a weight per pair, not a rank-one form
        return self.network(torch.cat([vectors.flatten(1), products], dim=1))
