"""Scaled dot-product attention with several heads, and attention of tokens to each other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import dropout as drop_units
from rankloom.layers.masked_softmax import masked_softmax
from rankloom.layers.mlp import linear

FEW_KEYS = 64
"""Keys up to which a CPU computes attention in its plain form."""
FEW_KEYS_BF16 = 256
"""The same in bf16, where torch's kernel takes several times as long as in float32."""
VECTOR_KEYS = 16
"""Keys from which a softmax over adjacent keys is fast."""


def attention(
    q: Float[Tensor, "batch queries dim"],
    k: Float[Tensor, "batch keys dim"],
    v: Float[Tensor, "batch keys value_dim"],
    *,
    num_heads: int = 1,
    scaled: bool = True,
    dropout: float = 0.0,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
) -> Float[Tensor, "batch queries value_dim"]:
    """Attention of queries to keys: softmax(Q[h] K[h]^T / sqrt(dim / heads)) V[h], side by side.

    Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, section 3.2.

    Args:
        q: queries; head h reads the h-th of `num_heads` equal pieces of each, and so on for `k`
            and `v`.
        k: keys.
        v: values.
        num_heads: heads; divides both widths.
        scaled: whether the products are divided by the square root of a head's width.
        dropout: share of attention weights dropped; callers give 0 at evaluation.
        mask: True where a query may attend to a key, all four axes broadcast; None: everywhere. A
            query that may attend to nothing gives zeros.

    Returns:
        The attended values of every query.

    Raises:
        ValueError: `num_heads` does not divide both widths.
    """
    _check_heads(num_heads, q.shape[-1], v.shape[-1])
    attended = attention_of_heads(
        split_heads(q, num_heads),
        split_heads(k, num_heads),
        split_heads(v, num_heads),
        scaled=scaled,
        dropout=dropout,
        mask=mask,
    )  # [batch, heads, queries, value_dim / heads]
    return attended.transpose(1, 2).flatten(2)


def attention_of_heads(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    scaled: bool = True,
    dropout: float = 0.0,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    causal: bool = False,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention of every head by itself; arguments as of `attention`.

    In place of a mask there may be one of two others. With `causal` as many queries as keys attend
    to themselves and to the keys before them. A `bias` is added to the products; -inf hides a key,
    and every query has one that is not hidden.

    torch's own kernel on a CPU is made for long sequences. Over the few tokens of a row the plain
    form takes half its time in a training step, in bf16 a fifth, for the memory of the weights; and
    a softmax over fewer keys than a vector holds is a fifth as long where queries, not keys, lie
    side by side (`docs/lab-notes.md`).

    Raises:
        ValueError: more than one of mask, causal and bias is given.
    """
    if (mask is not None) + causal + (bias is not None) > 1:
        raise ValueError("mask, causal and bias exclude each other; got more than one of them")
    few_keys = FEW_KEYS_BF16 if q.dtype == torch.bfloat16 else FEW_KEYS
    if q.device.type != "cpu" or k.shape[2] > few_keys:
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask if bias is None else bias.to(q.dtype),
            dropout_p=dropout,
            is_causal=causal,
            scale=None if scaled else 1.0,
        )
    if causal:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if scaled:
        k = k * k.shape[-1] ** -0.5
    # The softmax runs over the axis of keys, which lies first where keys are few.
    keys_first = k.shape[2] < VECTOR_KEYS
    scores = k @ q.mT if keys_first else q @ k.mT
    if bias is not None:
        scores = scores + (bias.mT if keys_first else bias).to(scores.dtype)
    seen = mask.mT if mask is not None and keys_first else mask
    weights = masked_softmax(scores, seen, -2 if keys_first else -1)
    weights = drop_units(weights, dropout).to(v.dtype)
    return (weights.mT if keys_first else weights) @ v


class SelfAttention(nn.Module):
    """Tokens that attend to each other; all projections are one matrix product.

    Args:
        in_dim: width of a token.
        out_dim: width of a token after it, over all heads.
        num_heads: heads; divides `out_dim`.
        bias: whether the projections have biases.
        scaled: whether the products are divided by the square root of a head's width.
        dropout: share of attention weights dropped in training.
        residual: whether every token is added to what it attended to: as it is where the widths
            agree, through a projection of its own where they do not.

    Raises:
        ValueError: `num_heads` does not divide `out_dim`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_heads: int = 1,
        *,
        bias: bool = False,
        scaled: bool = True,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        _check_heads(num_heads, out_dim)
        self.num_heads = num_heads
        self.scaled = scaled
        self.dropout = dropout
        self.residual = residual
        self.num_projections = 4 if residual and in_dim != out_dim else 3
        self.project = linear(in_dim, self.num_projections * out_dim, bias=bias)
        """W_q, W_k, W_v and, where there is one, the residual's projection, one below another."""
        for weight in self.project.weight.detach().chunk(self.num_projections):
            nn.init.xavier_normal_(weight)  # each as the matrix of its own that it is

    def forward(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        mask: Bool[Tensor, "#batch #heads #tokens #keys"] | None = None,
    ) -> Float[Tensor, "batch tokens out_dim"]:
        """The attended tokens; `mask` as in `attention`, its keys the same tokens."""
        q, k, v, *projected = self.project(x).chunk(self.num_projections, dim=-1)
        attended = self._attend(q, k, v, mask)
        if self.residual:
            attended = attended + (projected[0] if projected else x)
        return attended

    def of_streams(
        self,
        query: Float[Tensor, "batch tokens in_dim"],
        key: Float[Tensor, "batch tokens in_dim"],
        value: Float[Tensor, "batch tokens in_dim"],
        mask: Bool[Tensor, "#batch #heads #tokens #keys"] | None = None,
    ) -> Float[Tensor, "batch tokens out_dim"]:
        """The attended tokens where queries, keys and values are made of tokens of their own.

        With the same tokens three times this is `forward` without the residual, which has no
        tokens here.
        """
        weights = self.project.weight.chunk(self.num_projections)
        biases = (
            [None] * 3
            if self.project.bias is None
            else self.project.bias.chunk(self.num_projections)
        )
        q, k, v = (
            functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=False)
        )
        return self._attend(q, k, v, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attention(
            q,
            k,
            v,
            num_heads=self.num_heads,
            scaled=self.scaled,
            dropout=self.dropout if self.training else 0.0,
            mask=mask,
        )


def split_heads(
    x: Float[Tensor, "batch tokens dim"], num_heads: int
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """The equal pieces of every token, one for each head."""
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)


def _check_heads(num_heads: int, *widths: int) -> None:
    for width in widths:
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim={width}, num_heads={num_heads}")
