"""Wukong: stacked factorization machines whose interaction order doubles with every layer.

Source: Zhang et al., ICML 2024, arXiv:2403.02545, section 3.
Equations: X[l+1] = LayerNorm(concat(FMB(X[l]), LCB(X[l])) + X[l]),
    FMB(X) = ReLU(MLP(LayerNorm(flatten(X X^T Y)))),  LCB(X) = W X,  logits = MLP(flatten(X[L]))
    with X [tokens, dim], Y [tokens, rank] and W [tokens', tokens].
Differs from the paper: Y is a learned matrix, not made by a network from X (the paper's attentive
    form).
The paper does not say: what the residual adds where the numbers of tokens differ (the first layer).
    Here, as in the public code the field uses, the tokens are projected to the new number.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.factorization import FactorizationBlock, TokenLinear, token_projection
from rankloom.ranking.network import Network
from rankloom.schema import Schema


class WukongConfig(Config):
    """Sizes of the layers and of the head."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, and of every token."""
    num_layers: int = Field(3, ge=1)
    """Layers; L of them reach interactions of order 2^L."""
    num_factorized_tokens: int = Field(40, gt=0)
    """Tokens that the factorization machine block of a layer gives."""
    num_compressed_tokens: int = Field(40, gt=0)
    """Tokens that the linear compression block of a layer gives."""
    rank: int = Field(8, gt=0)
    """Columns of Y; a layer with fewer tokens takes as many."""
    block: Network = Network(hidden=(512, 256))
    """The network inside the factorization machine block."""
    final_relu: bool = True
    """Whether that network ends with a ReLU."""
    head: Network = Network(hidden=(512, 256), batch_norm=True)
    """The network above the last layer's tokens."""

    def build_block(self, width: int) -> nn.Module:
        """The network inside a factorization machine block, over `width` products."""
        width_out = self.num_factorized_tokens * self.embedding_dim
        network = self.block.build_network(width, out_features=width_out)
        return nn.Sequential(network, nn.ReLU()) if self.final_relu else network


class WukongLayer(nn.Module):
    """One layer: interactions and compression side by side, plus the layer's input.

    Args:
        config: the model's config.
        in_tokens: tokens of the layer's input.
    """

    num_tokens: int
    """Tokens of the layer's output."""

    def __init__(self, config: WukongConfig, in_tokens: int) -> None:
        super().__init__()
        self.num_tokens = config.num_factorized_tokens + config.num_compressed_tokens
        self.factorization = FactorizationBlock(
            in_tokens,
            in_tokens,
            config.embedding_dim,
            rank=config.rank,
            out_tokens=config.num_factorized_tokens,
            network=config.build_block,
        )
        self.compression = TokenLinear(in_tokens, config.num_compressed_tokens)
        self.residual = token_projection(in_tokens, self.num_tokens)
        self.norm = nn.LayerNorm(config.embedding_dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch num_tokens dim"]:
        """The layer's output."""
        met = torch.cat([self.factorization(x, x), self.compression(x)], dim=1)
        return self.norm(met + self.residual(x))


class Wukong(nn.Module):
    """Layers over the fields' vectors as tokens, and a network above them."""

    def __init__(self, config: WukongConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        layers: list[WukongLayer] = []
        tokens = self.embedding.num_fields
        for _ in range(config.num_layers):
            layers.append(WukongLayer(config, tokens))
            tokens = layers[-1].num_tokens
        self.layers = nn.ModuleList(layers)
        self.head = config.head.build_network(
            tokens * config.embedding_dim, out_features=schema.num_tasks
        )

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x = self.embedding(batch)  # [batch, fields, dim]
        for layer in self.layers:
            x = layer(x)  # [batch, num_tokens, dim]
        return self.head(x.flatten(1))
