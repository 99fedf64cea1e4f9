"""AFM: a factorization machine whose pairs are weighed by attention.

Source: Xiao et al., IJCAI 2017, arXiv:1708.04617, section 3.
Equations: p[i,j] = e[i] * e[j],  a = softmax over pairs of h^T ReLU(W p[i,j] + b),
    logits = b0 + sum_i w[i] x[i] + P^T sum_{i<j} a[i,j] p[i,j]
Differs from the paper: dropout acts on the attention weights and on the sum of pairs, as in the
    field's benchmarks; the paper drops units of the products p. With several tasks, each has its
    own linear term and its own P over a shared sum of pairs; the paper has one task.
The paper does not say: what a single field gives. Here it has no pairs, and their term is zero.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.chunked import in_chunks
from rankloom.layers.dropout import Dropout
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.layers.mlp import linear
from rankloom.layers.pairs import num_pairs, pair_products
from rankloom.schema import Schema


class AFMConfig(Config):
    """Sizes of the factors and of the attention."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    attention_dim: int = Field(16, gt=0)
    """Hidden units of the network that scores a pair."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of units of the weighted sum dropped in training."""


class _PairAttention(nn.Module):
    """The sum of all pairs' products, weighed by a network that reads each of them."""

    def __init__(self, dim: int, attention_dim: int, dropout: float) -> None:
        super().__init__()
        self.score = nn.Sequential(
            linear(dim, attention_dim),
            nn.ReLU(inplace=True),
            linear(attention_dim, 1, bias=False),
        )
        self.dropout = Dropout(dropout)
        self.width = max(dim, attention_dim)

    def forward(self, vectors: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch dim"]:
        pairs = num_pairs(vectors.shape[1])
        # DIFF: the paper drops units of the products. Drawn here: chunks are run twice.
        kept = self.dropout(vectors.new_ones(vectors.shape[0], 1, pairs))
        parameters = list(self.score.parameters())
        return in_chunks(self.attend, parameters, pairs * self.width, vectors, kept)

    def attend(
        self, vectors: Float[Tensor, "batch fields dim"], kept: Float[Tensor, "batch 1 pairs"]
    ) -> Float[Tensor, "batch dim"]:
        """The weighed sum; `kept` is 0 for dropped pairs."""
        products = pair_products(vectors)  # [batch, pairs, dim]
        # Flat: the activation acts in place, and on a view of a matrix product that costs copies.
        scores = self.score(products.flatten(0, 1))  # [batch * pairs, 1]
        scores = torch.unflatten(scores, 0, products.shape[:2])  # [batch, pairs, 1]
        weights = torch.softmax(scores, dim=1).mT * kept
        return torch.bmm(weights.to(products.dtype), products).squeeze(1)


class AFM(nn.Module):
    """Linear term plus the weighed pairs; tasks share the weights."""

    def __init__(self, config: AFMConfig, schema: Schema) -> None:
        super().__init__()
        self.linear = FirstOrder(schema)
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        self.attention = _PairAttention(
            config.embedding_dim, config.attention_dim, config.attention_dropout
        )
        self.dropout = Dropout(config.dropout)
        # The linear term's bias serves both.
        self.output = linear(config.embedding_dim, schema.num_tasks, bias=False)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        pairs = self.attention(self.embedding(batch))  # [batch, dim]
        return self.linear(batch) + self.output(self.dropout(pairs))
