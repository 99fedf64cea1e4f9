"""DLRM: numeric fields become one vector that meets the id fields' vectors in inner products.

Source: Naumov et al., 2019, arXiv:1906.00091, section 2.
Equations: v[0] = Bottom(numeric values),  v[1], ..., v[F] the other fields' embeddings,
    logits = Top([v[0]; <v[i], v[j]> for all i < j])
Differs from the paper: sequences and vector fields are fields beside the ids, each with a vector;
    `keep_embeddings`, `concatenation` and `sum` are other things for the top network to read.
The paper does not say: what stands in for v[0] where no field is numeric. Here nothing does: the
    top network reads the inner products alone, or, where a single vector has no pairs, that vector.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.mlp import activation_builder
from rankloom.layers.pairs import num_pairs, pair_inner_products
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class DotProducts(Config):
    """Inner products of all pairs, beside the numeric fields' vector."""

    kind: Literal["dot"] = "dot"
    keep_embeddings: bool = False
    """Whether all vectors stand beside the products, not the numeric fields' alone."""

    def build(self, num_vectors: int, dim: int, *, numeric: bool) -> tuple[nn.Module, int]:
        """The interaction of `num_vectors` vectors, the first numeric or not, and its width."""
        kept = num_vectors if self.keep_embeddings or num_vectors == 1 else int(numeric)
        return _DotProducts(kept), kept * dim + num_pairs(num_vectors)


class Concatenation(Config):
    """All vectors side by side: without numeric fields, a DNN."""

    kind: Literal["concatenation"] = "concatenation"

    def build(self, num_vectors: int, dim: int, *, numeric: bool) -> tuple[nn.Module, int]:
        """The interaction of `num_vectors` vectors, and its width."""
        return nn.Flatten(), num_vectors * dim


class Sum(Config):
    """The sum of all vectors."""

    kind: Literal["sum"] = "sum"

    def build(self, num_vectors: int, dim: int, *, numeric: bool) -> tuple[nn.Module, int]:
        """The interaction of `num_vectors` vectors, and its width."""
        return _Sum(), dim


Interaction = Annotated[DotProducts | Concatenation | Sum, Field(discriminator="kind")]


class DLRMConfig(Config):
    """Sizes of both networks, and what lies between them."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, and of the numeric fields' common vector."""
    bottom: Network = Network(hidden=(64, 64, 64))
    """The network over the numeric fields; a last layer of width `embedding_dim` follows, with the
    same activation. No effect where no field is numeric."""
    interaction: Interaction = DotProducts()
    """What the top network reads of the vectors: dot, concatenation or sum."""
    top: Network = Network()
    """The network above the interaction."""


class _DotProducts(nn.Module):
    """The first `kept` vectors as they are, and all inner products."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, vectors: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch width"]:
        kept = vectors.flatten(1)[:, : self.kept * vectors.shape[2]]  # [batch, kept * dim]
        return torch.cat([kept, pair_inner_products(vectors)], dim=1)


class _Sum(nn.Module):
    def forward(self, vectors: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch dim"]:
        return vectors.sum(1)


class _NumericVector(nn.Module):
    """All numeric fields of a row as one vector."""

    def __init__(self, config: DLRMConfig, num_numeric: int) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.network = config.bottom.build_network(num_numeric, out_features=dim)
        self.activation = activation_builder(config.bottom.activation)(dim)

    def forward(self, batch: Batch) -> Float[Tensor, "batch 1 dim"]:
        return self.activation(self.network(batch.numeric)).unsqueeze(1)


class DLRM(nn.Module):
    """Vectors, their interaction, and a network above it; tasks share all but its last layer."""

    def __init__(self, config: DLRMConfig, schema: Schema) -> None:
        super().__init__()
        num_numeric = len(schema.numeric)
        others = schema.model_copy(update={"numeric": ()})
        sources: list[nn.Module] = []  # of the vectors, in their order
        num_vectors = 0
        if num_numeric:
            sources.append(_NumericVector(config, num_numeric))
            num_vectors = 1
        if others.categorical or others.vectors or others.sequences:
            embedding = FieldEmbedding(others, config.embedding_dim)
            sources.append(embedding)
            num_vectors += embedding.num_fields
        self.sources = nn.ModuleList(sources)
        self.interaction, width = config.interaction.build(
            num_vectors, config.embedding_dim, numeric=num_numeric > 0
        )
        self.top = config.top.build_network(width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        # [batch, fields, dim], the numeric fields as one
        vectors = torch.cat([source(batch) for source in self.sources], dim=1)
        return self.top(self.interaction(vectors))
