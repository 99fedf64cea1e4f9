"""AutoInt and AutoInt+: self-attention between fields, alone or beside a network.

Source: Song et al., CIKM 2019, arXiv:1810.11921, sections 4.4 and 4.5.
Equations: per head h, a[m,k] = softmax over k of <W_q[h] e[m], W_k[h] e[k]>,
    e~[m] = [sum_k a[m,k] W_v[h] e[k] for every h], e'[m] = ReLU(e~[m] + W_res e[m]),
    with W_res the identity where the widths agree;
    after the last layer, logits = b + w [e'[1]; ...; e'[F]];
    AutoInt+ adds MLP([e[1]; ...; e[F]]) to them.
Differs from the paper: division by the square root of a head's width, layer norm before the ReLU, a
    linear term and doing without the residual are settings of the field's benchmarks; the defaults
    are the paper's form.
The paper does not say: where dropout acts in the attention layers. Here, as in its published code,
    on the attention weights.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.attention import SelfAttention
from rankloom.layers.embedding import FieldEmbedding, FirstOrder
from rankloom.layers.mlp import linear
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class AutoIntConfig(Config):
    """Sizes of the attention layers, and what stands beside them."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding."""
    attention_dim: int = Field(64, gt=0)
    """Width of a field's vector after attention, over all heads."""
    num_layers: int = Field(3, ge=1)
    """Attention layers."""
    num_heads: int = Field(2, gt=0)
    """Heads of every layer; divides `attention_dim`."""
    residual: bool = True
    """Add a field's vector to what it attended to."""
    scaled: bool = False
    """Divide the products of queries and keys by the square root of a head's width."""
    layer_norm: bool = False
    """Layer-normalise every field's vector before the ReLU of a layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    wide: bool = False
    """Add a linear term: a weight per id."""
    deep: Network | None = None
    """The network beside the attention, over the same embeddings (AutoInt+); none: AutoInt."""


class _InteractingLayer(nn.Module):
    """Fields that attend to each other, normalised or not, then ReLU."""

    def __init__(self, in_dim: int, config: AutoIntConfig) -> None:
        super().__init__()
        dim = config.attention_dim
        self.attend = SelfAttention(
            in_dim,
            dim,
            config.num_heads,
            scaled=config.scaled,
            dropout=config.dropout,
            residual=config.residual,
        )
        self.norm = nn.LayerNorm(dim) if config.layer_norm else nn.Identity()

    def forward(self, x: Float[Tensor, "batch fields in_dim"]) -> Float[Tensor, "batch fields dim"]:
        return self.norm(self.attend(x)).relu()


class AutoInt(nn.Module):
    """Attention between fields; tasks share everything but the last layers."""

    def __init__(self, config: AutoIntConfig, schema: Schema) -> None:
        super().__init__()
        num_tasks = schema.num_tasks
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        dims = [config.embedding_dim] + (config.num_layers - 1) * [config.attention_dim]
        self.layers = nn.Sequential(*[_InteractingLayer(dim, config) for dim in dims])
        self.head = linear(self.embedding.num_fields * config.attention_dim, num_tasks)
        self.deep = (
            config.deep.build_network(self.embedding.width, out_features=num_tasks)
            if config.deep is not None
            else None
        )
        self.wide = FirstOrder(schema) if config.wide else None

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        vectors = self.embedding(batch)  # [batch, fields, embedding_dim]
        logits = self.head(self.layers(vectors).flatten(1))
        if self.deep is not None:
            logits = logits + self.deep(vectors.flatten(1))
        if self.wide is not None:
            logits = logits + self.wide(batch)
        return logits
