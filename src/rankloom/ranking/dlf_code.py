"""DLF as its author's public code has it: Wukong with a branch of raw embeddings, and attention.

Source: github.com/Keffee/DLF at commit 972db34, read as a description of a model; it differs from
    the paper (`rankloom.ranking.dlf`) in almost every part, see docs/papers/dlf_code.md.
Equations, for a layer's input X of N tokens (X0: the fields' vectors, projected to N tokens):
    raw       MLP(LayerNorm(flatten(X0 (X^T W_2))))
    current   MLP(LayerNorm(flatten(X (X^T W_1))))
    linear    W X
    attention MLP(LayerNorm(flatten(MultiHead(X, X, X)))), without 1/sqrt(dim), or left out
    X' = LayerNorm(concat(current, raw, linear, attention) + projection(X)),  logits = MLP(X[L])
Differs from the code: the attention's output is flattened token by token, not feature by feature
    (its norm and network do not know the difference); networks without batch norm are possible.
Without the raw branch and the attention it is Wukong without its final ReLU.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.attention import attention_of_heads
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.factorization import FactorizationBlock, TokenLinear, token_projection
from rankloom.layers.mlp import linear
from rankloom.ranking.network import Network
from rankloom.schema import Schema

Tokens = Float[Tensor, "batch tokens dim"]


class DLFCodeConfig(Config):
    """Branches of the layers, and how many there are."""

    embedding_dim: int = Field(16, gt=0)
    """Width of every field's embedding, and of every token."""
    num_layers: int = Field(3, ge=1)
    """Layers."""
    num_tokens: int = Field(16, gt=0)
    """Tokens that every branch gives."""
    rank: int = Field(24, gt=0)
    """Columns of W_1 and W_2; a layer with fewer tokens takes as many."""
    raw_branch: bool = True
    """Whether layers cross their input with the fields' vectors."""
    num_heads: int | None = Field(None, gt=0)
    """Heads of the attention branch; none: no such branch."""
    block: Network = Network(hidden=(512,), batch_norm=True)
    """The network inside every branch but the linear one."""
    head: Network = Network(hidden=(512,), batch_norm=True)
    """The network above the last layer's tokens."""

    def build_block(self, width: int) -> nn.Module:
        """The network inside a branch, over `width` products."""
        return self.block.build_network(width, out_features=self.num_tokens * self.embedding_dim)


class _Current(nn.Module):
    def __init__(self, config: DLFCodeConfig, in_tokens: int) -> None:
        super().__init__()
        self.block = _factorization(config, in_tokens)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.block(x, x)


class _Raw(nn.Module):
    def __init__(self, config: DLFCodeConfig, num_fields: int, in_tokens: int) -> None:
        super().__init__()
        self.project = token_projection(num_fields, in_tokens)
        self.block = _factorization(config, in_tokens)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.block(self.project(x0), x)


class _Linear(nn.Module):
    def __init__(self, config: DLFCodeConfig, in_tokens: int) -> None:
        super().__init__()
        self.tokens = TokenLinear(in_tokens, config.num_tokens)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        return self.tokens(x)


class _Attention(nn.Module):
    def __init__(self, config: DLFCodeConfig, in_tokens: int, num_heads: int) -> None:
        super().__init__()
        dim = config.embedding_dim
        if dim % num_heads:
            raise ValueError(
                "num_heads must divide embedding_dim; "
                f"got num_heads={num_heads}, embedding_dim={dim}"
            )
        self.project = linear(dim, 3 * dim, bias=False)
        self.norm = nn.LayerNorm(in_tokens * dim)
        self.network = config.build_block(in_tokens * dim)
        self._heads = (num_heads, dim // num_heads)
        self._out = (config.num_tokens, dim)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        heads = torch.unflatten(self.project(x), -1, (3, *self._heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, tokens, dim / heads]
        met = attention_of_heads(q, k, v, scaled=False)
        out = self.network(self.norm(met.transpose(1, 2).flatten(1)))
        return torch.unflatten(out, 1, self._out)


class DLFCodeLayer(nn.Module):
    """One layer: branches side by side, plus the layer's input.

    Args:
        config: the model's config.
        num_fields: tokens of the fields' vectors.
        in_tokens: tokens of the layer's input.
    """

    num_tokens: int
    """Tokens of the layer's output."""

    def __init__(self, config: DLFCodeConfig, num_fields: int, in_tokens: int) -> None:
        super().__init__()
        branches: list[nn.Module] = [_Current(config, in_tokens)]
        if config.raw_branch:
            branches.append(_Raw(config, num_fields, in_tokens))
        branches.append(_Linear(config, in_tokens))
        if config.num_heads is not None:
            branches.append(_Attention(config, in_tokens, config.num_heads))
        self.branches = nn.ModuleList(branches)
        self.num_tokens = len(branches) * config.num_tokens
        self.residual = token_projection(in_tokens, self.num_tokens)
        self.norm = nn.LayerNorm(config.embedding_dim)

    def forward(self, x: Tokens, x0: Tokens) -> Tokens:
        """The next layer's input, from this layer's and the fields' vectors."""
        met = torch.cat([branch(x, x0) for branch in self.branches], dim=1)
        return self.norm(met + self.residual(x))


class DLFCode(nn.Module):
    """Layers over the fields' vectors as tokens, and a network above them."""

    def __init__(self, config: DLFCodeConfig, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, config.embedding_dim)
        fields = tokens = self.embedding.num_fields
        layers: list[DLFCodeLayer] = []
        for _ in range(config.num_layers):
            layers.append(DLFCodeLayer(config, fields, tokens))
            tokens = layers[-1].num_tokens
        self.layers = nn.ModuleList(layers)
        self.head = config.head.build_network(
            tokens * config.embedding_dim, out_features=schema.num_tasks
        )

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        x0 = self.embedding(batch)  # [batch, fields, dim]
        x = x0
        for layer in self.layers:
            x = layer(x, x0)  # [batch, num_tokens, dim]
        return self.head(x.flatten(1))


def _factorization(config: DLFCodeConfig, in_tokens: int) -> FactorizationBlock:
    return FactorizationBlock(
        in_tokens,
        in_tokens,
        config.embedding_dim,
        rank=config.rank,
        out_tokens=config.num_tokens,
        network=config.build_block,
    )
