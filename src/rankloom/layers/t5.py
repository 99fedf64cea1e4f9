"""Layers of T5: relative position buckets, norms without centring, no biases, unscaled products.

Source: Raffel et al., JMLR 2020, arXiv:1910.10683, and the published models: the bias of positions
    is a number per bucket of distance and head, made once and added in every self-attention layer;
    queries start so small that products need no scale.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.attention import attention_of_heads, split_heads
from rankloom.layers.causal_transformer import KeysValues
from rankloom.layers.dropout import Dropout
from rankloom.layers.norm import RMSNorm

EPS = 1e-6
"""What the published models add to the mean square."""


def distance_buckets(
    ahead: Int[Tensor, "*shape"], num_buckets: int, max_distance: int, *, both_ways: bool
) -> Int[Tensor, "*shape"]:
    """Buckets of distances: near ones each have their own, far ones share by their logarithm.

    Args:
        ahead: how far a key stands behind its query (positive) or before it (negative).
        num_buckets: buckets; with `both_ways` half of them are for keys behind the query.
        max_distance: all distances from here on share the last bucket.
        both_ways: whether keys behind the query are told apart; else they count as distance 0.
    """
    if both_ways:
        num_buckets //= 2
        offset = (ahead > 0) * num_buckets
        distance = ahead.abs()
    else:
        offset = torch.zeros_like(ahead)
        distance = (-ahead).clamp(min=0)
    near = num_buckets // 2
    share = (distance.clamp(min=1).float() / near).log() / math.log(max_distance / near)
    far = near + (share * (num_buckets - near)).long()
    return offset + torch.where(distance < near, distance, far.clamp(max=num_buckets - 1))


class BucketBias(nn.Module):
    """A number for every bucket of distance and every head.

    Args:
        num_heads: heads.
        num_buckets: buckets.
        max_distance: all distances from here on share the last bucket.
        both_ways: whether keys behind the query are told apart.
        init_std: standard deviation of new biases.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int,
        max_distance: int,
        *,
        both_ways: bool,
        init_std: float,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.table.weight, std=init_std)
        self.max_distance = max_distance
        self.both_ways = both_ways

    def forward(self, num_keys: int, first_query: int = 0) -> Float[Tensor, "heads queries keys"]:
        """Biases of the queries from `first_query` on to all keys."""
        keys = torch.arange(num_keys, device=self.table.weight.device)
        ahead = keys - keys[first_query:, None]  # [queries, keys]
        buckets = distance_buckets(
            ahead, self.table.num_embeddings, self.max_distance, both_ways=self.both_ways
        )
        return self.table(buckets).permute(2, 0, 1)


class T5Attention(nn.Module):
    """Attention to the same positions or to others: W_o softmax(Q K^T + bias) V.

    Args:
        dim: width of a position.
        num_heads: heads.
        head_dim: width of a head, of any size.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = _linear(dim, inner, (dim * head_dim) ** -0.5)
        self.key_value = _linear(dim, 2 * inner, dim**-0.5)
        """W_k above W_v."""
        self.out = _linear(inner, dim, inner**-0.5)

    def keys_values(self, x: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Keys and values, [batch, heads, keys, head_dim] each."""
        k, v = self.key_value(x).chunk(2, dim=-1)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        keys_values: KeysValues,
        *,
        mask: Bool[Tensor, "batch 1 1 keys"] | None = None,
        bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """What the queries find.

        Args:
            x: where queries are made of.
            keys_values: of `keys_values`.
            mask: True at keys that may be attended to; None: all may.
            bias: added to the products; -inf at keys that may not be attended to.
        """
        q = split_heads(self.query(x), self.num_heads)
        found = attention_of_heads(
            q,
            *keys_values,
            scaled=False,
            dropout=self.dropout if self.training else 0.0,
            mask=mask,
            bias=bias,
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def step(
        self,
        x: Float[Tensor, "batch beams dim"],
        own: Float[Tensor, "steps batch beams 2 heads head_dim"],
        bias: Float[Tensor, "heads 1 steps"],
    ) -> Float[Tensor, "batch beams dim"]:
        """Attention of every beam's new position to its own steps.

        Args:
            x: where the new position's query, key and value are made of.
            own: keys and values of the steps; those of the new position become the last.
            bias: added to the products.
        """
        # [batch, beams, heads, head_dim], and with an axis of keys and values before the heads.
        q = torch.unflatten(self.query(x), 2, (self.num_heads, -1))
        own[-1] = torch.unflatten(self.key_value(x), 2, (2, self.num_heads, -1))
        # Products of single numbers: matrices of one query are too small for a batched product.
        products = (own[:, :, :, 0] * q).sum(-1) + bias.permute(2, 1, 0).unsqueeze(1)
        weights = products.softmax(0).to(own.dtype)  # [steps, batch, beams, heads]
        found = (weights.unsqueeze(-1) * own[:, :, :, 1]).sum(0)  # [batch, beams, heads, head_dim]
        return self.out(found.flatten(2))


class T5Network(nn.Module):
    """W_o ReLU(W_i x).

    Args:
        dim: width of a position.
        hidden_dim: width of the hidden layer.
        dropout: share of hidden units dropped in training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.expand = _linear(dim, hidden_dim, dim**-0.5)
        self.reduce = _linear(hidden_dim, dim, hidden_dim**-0.5)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """The positions after it."""
        return self.reduce(self.dropout(functional.relu(self.expand(x), inplace=True)))


class T5EncoderLayer(nn.Module):
    """Self-attention, then the network, a norm before each.

    Args:
        dim: width of a position.
        num_heads: heads.
        head_dim: width of a head.
        hidden_dim: width of the network's hidden layer.
        dropout: share of units and attention weights dropped in training.
    """

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps=EPS)
        self.attention = T5Attention(dim, num_heads, head_dim, dropout)
        self.network_norm = RMSNorm(dim, eps=EPS)
        self.network = T5Network(dim, hidden_dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], bias: Float[Tensor, "batch heads seq seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        """The positions after it; `bias` is added to the products, -inf at padding."""
        normal = self.attention_norm(x)
        x = x + self.dropout(self.attention(normal, self.attention.keys_values(normal), bias=bias))
        return x + self.dropout(self.network(self.network_norm(x)))


class T5DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, then the network, a norm before each.

    Arguments as of `T5EncoderLayer`.
    """

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps=EPS)
        self.attention = T5Attention(dim, num_heads, head_dim, dropout)
        self.cross_norm = RMSNorm(dim, eps=EPS)
        self.cross = T5Attention(dim, num_heads, head_dim, dropout)
        self.network_norm = RMSNorm(dim, eps=EPS)
        self.network = T5Network(dim, hidden_dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch width dim"],
        bias: Float[Tensor, "1 heads width width"],
        context: KeysValues,
        mask: Bool[Tensor, "batch 1 1 seq"],
    ) -> Float[Tensor, "batch width dim"]:
        """All positions at once.

        Args:
            x: positions.
            bias: added to the products of self-attention; -inf at later positions.
            context: `cross.keys_values` of the encoder's output.
            mask: True at its real positions.
        """
        normal = self.attention_norm(x)
        x = x + self.dropout(self.attention(normal, self.attention.keys_values(normal), bias=bias))
        return self._after_self_attention(x, context, mask)

    def step(
        self,
        x: Float[Tensor, "batch beams dim"],
        own: Float[Tensor, "steps batch beams 2 heads head_dim"],
        bias: Float[Tensor, "heads 1 steps"],
        context: KeysValues,
        mask: Bool[Tensor, "batch 1 1 seq"],
    ) -> Float[Tensor, "batch beams dim"]:
        """One new position of every beam; beams are queries to the context they share.

        `own` and `bias` are those of `T5Attention.step`, the rest as in `forward`.
        """
        found = self.attention.step(self.attention_norm(x), own, bias)
        return self._after_self_attention(x + self.dropout(found), context, mask)

    def _after_self_attention(self, x: Tensor, context: KeysValues, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.cross(self.cross_norm(x), context, mask=mask))
        return x + self.dropout(self.network(self.network_norm(x)))


def _linear(in_dim: int, out_dim: int, std: float) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer
