"""HiFormer: attention between fields whose projections see every field.

Source: Gui et al., 2023, arXiv:2311.05884.
Equations: over tokens e[1], ..., e[L], the fields' and then one for every task,
    per token   q[i] = e[i] Q[i], k[i] = e[i] K[i], v[i] = e[i] V[i]
    composite   [q[1]; ...; q[L]] = [e[1]; ...; e[L]] Q, and k, v so; low rank: Q = A B per head
    attention   o[i] = [sum_j softmax_j(<q[i], k[j]> / sqrt(d_k)) v[j], of every head] O[i]
    z = LayerNorm(e + o),  e' = LayerNorm(z + FFN[i](z)),  FFN[i](z) = GELU(z W1[i] + b) W2[i] + b
    logits[t] = MLP[t](e[task t]); the last layer computes queries for the tasks' tokens only
Differs from the paper: how fields become tokens is a setting of all token models; numeric fields
    have a token each by default, where the paper's share a network.
The paper does not say, as far as the notes go: how wide queries and FFNs are (here a head is
    `dim / num_heads` wide, and `expansion` a setting), or which layers follow the tasks' tokens.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.attention import attention
from rankloom.layers.mlp import linear
from rankloom.layers.token_mlp import PerTokenLinear, TokenMLP
from rankloom.ranking.connections import Connection, PostNormConfig, connect, input_norm
from rankloom.ranking.network import Network
from rankloom.ranking.token_network import TokenNetwork
from rankloom.ranking.tokens import MeanPooling
from rankloom.schema import Schema


class PerToken(Config):
    """Every token's own projections, which see that token (heterogeneous attention)."""

    kind: Literal["per_token"] = "per_token"

    def build(self, config: "HiFormerConfig", in_tokens: int, out_tokens: int) -> nn.Module:
        """From `in_tokens` tokens to queries, keys or values of the last `out_tokens`."""
        return _PerToken(out_tokens, config.dim)


class Composite(Config):
    """Projections that see all tokens."""

    kind: Literal["composite"] = "composite"

    def build(self, config: "HiFormerConfig", in_tokens: int, out_tokens: int) -> nn.Module:
        """From `in_tokens` tokens to queries, keys or values of the last `out_tokens`."""
        return _Composite(in_tokens, out_tokens, config.dim)


class LowRankComposite(Config):
    """Projections that see all tokens, for every head a product of two narrow matrices."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(32, ge=1)
    """Rank of a head's matrices."""

    def build(self, config: "HiFormerConfig", in_tokens: int, out_tokens: int) -> nn.Module:
        """From `in_tokens` tokens to queries, keys or values of the last `out_tokens`."""
        return _LowRank(in_tokens, out_tokens, config.dim, config.num_heads, self.rank)


Projection = Annotated[PerToken | Composite | LowRankComposite, Field(discriminator="kind")]


class HiFormerConfig(TokenNetwork):
    """Sizes of the layers, and what their projections see."""

    connection: Connection = PostNormConfig()
    """What lies between layers."""
    num_heads: int = Field(4, gt=0)
    """Heads of every layer; divides `dim`."""
    projection: Projection = Composite()
    """What queries, keys and values are made of: per_token, composite or low_rank."""
    expansion: int = Field(4, gt=0)
    """Width of a network's hidden layer, in widths of a token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights and of hidden units dropped in training."""

    @model_validator(mode="after")
    def _check_pooling(self) -> "HiFormerConfig":
        if self.pooling != MeanPooling():
            raise ValueError(
                "pooling has no effect: a task's logit is read from its own token; leave it out"
            )
        return self

    def build_head(self, dim: int, num_tokens: int, num_tasks: int) -> nn.Module:
        """The last part: from [batch, num_tasks, dim], the tasks' tokens, to logits."""
        return _TaskHead(self.head, dim, num_tasks)


class _PerToken(nn.Module):
    def __init__(self, out_tokens: int, dim: int) -> None:
        super().__init__()
        self.out_tokens = out_tokens
        self.project = PerTokenLinear(out_tokens, dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        return self.project(x[:, x.shape[1] - self.out_tokens :])


class _Composite(nn.Module):
    def __init__(self, in_tokens: int, out_tokens: int, dim: int) -> None:
        super().__init__()
        self.shape = (out_tokens, dim)
        self.project = linear(in_tokens * dim, out_tokens * dim, bias=False)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        return torch.unflatten(self.project(x.flatten(1)), 1, self.shape)


class _LowRank(nn.Module):
    def __init__(
        self, in_tokens: int, out_tokens: int, dim: int, num_heads: int, rank: int
    ) -> None:
        super().__init__()
        self.heads = (num_heads, rank)
        self.shape = (out_tokens, dim // num_heads)
        self.narrow = linear(in_tokens * dim, num_heads * rank, bias=False)
        """A of every head, one beside another."""
        self.widen = PerTokenLinear(num_heads, rank, out_tokens * dim // num_heads, bias=False)
        """B of every head."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        narrow = torch.unflatten(self.narrow(x.flatten(1)), 1, self.heads)  # [batch, heads, rank]
        wide = torch.unflatten(
            self.widen(narrow), 2, self.shape
        )  # [batch, heads, out, dim / heads]
        return wide.transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    """Attention of the last `num_queries` tokens to all of `num_tokens`."""

    def __init__(self, config: HiFormerConfig, num_tokens: int, num_queries: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.norm = input_norm(config.connection, config.dim)
        self.query = config.projection.build(config, num_tokens, num_queries)
        self.key = config.projection.build(config, num_tokens, num_tokens)
        self.value = config.projection.build(config, num_tokens, num_tokens)
        self.out = PerTokenLinear(num_queries, config.dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch queries dim"]:
        x = self.norm(x)
        attended = attention(
            self.query(x),
            self.key(x),
            self.value(x),
            num_heads=self.num_heads,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(attended)


def _network(config: HiFormerConfig, num_tokens: int) -> nn.Module:
    network = TokenMLP(
        num_tokens, config.dim, config.expansion * config.dim, dropout=config.dropout
    )
    return nn.Sequential(input_norm(config.connection, config.dim), network)


class _TaskHead(nn.Module):
    """Every task's token to its logit, through a network of its own."""

    def __init__(self, network: Network, dim: int, num_tasks: int) -> None:
        super().__init__()
        networks = [network.build_network(dim, out_features=1) for _ in range(num_tasks)]
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Float[Tensor, "batch tasks dim"]) -> Float[Tensor, "batch tasks"]:
        tokens = zip(self.networks, x.unbind(1), strict=True)
        return torch.cat([network(token) for network, token in tokens], dim=1)


class HiFormer(nn.Module):
    """Attention layers over the fields' and tasks' tokens.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, config: HiFormerConfig, schema: Schema) -> None:
        super().__init__()
        num_tasks = schema.num_tasks
        if config.dim % config.num_heads:
            raise ValueError(
                f"num_heads must divide dim; got dim={config.dim}, num_heads={config.num_heads}"
            )
        self.tokens = config.build_tokens(schema)
        self.task_tokens = nn.Parameter(torch.empty(num_tasks, config.dim))
        """[tasks, dim]."""
        nn.init.xavier_normal_(self.task_tokens)
        num_tokens = self.tokens.num_fields + num_tasks
        layers: list[list[nn.Module]] = []
        for layer in range(config.num_layers):
            num_queries = num_tokens if layer < config.num_layers - 1 else num_tasks
            attend = _Attention(config, num_tokens, num_queries)
            layers.append([attend, _network(config, num_queries)])
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_tasks, num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        fields = self.tokens(batch).x
        tasks = self.task_tokens.expand(fields.shape[0], -1, -1)
        # The tasks come last: the last layer gives the last tokens, which are theirs.
        return self.head(self.stack(torch.cat([fields, tasks], dim=1)))
