"""Attention of one target to the events of a history, with several heads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.attention import attention
from rankloom.layers.mlp import linear


class MultiHeadTargetAttention(nn.Module):
    """A target's summary of events: W_o [softmax(q[h] . k[h] / sqrt(dim / heads)) v[h], h = 1 ...].

    q = W_q target, k = W_k event, v = W_v event, none with a bias. There is one query, so each
    head's W_k is applied to the query and its W_v to the mean of the events: the same numbers
    without a product of all events with both matrices.

    Args:
        target_dim: width of the target.
        event_dim: width of an event.
        out_dim: width of the result.
        dim: width of queries, keys and values over all heads.
        num_heads: heads; divides `dim`.
        dropout: share of attention weights dropped in training.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        target_dim: int,
        event_dim: int,
        out_dim: int,
        *,
        dim: int,
        num_heads: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.dropout = dropout
        self.query = linear(target_dim, dim, bias=False)
        self.key = linear(event_dim, dim, bias=False)
        self.value = linear(event_dim, dim, bias=False)
        self.out = linear(dim, out_dim, bias=False)

    def forward(
        self,
        target: Float[Tensor, "batch target_dim"],
        events: Float[Tensor, "batch events event_dim"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch out_dim"]:
        """The summary; zeros for a row without events. `mask` is True at events."""
        heads = (self.num_heads, -1)
        q = torch.unflatten(self.query(target), 1, heads).transpose(0, 1)  # [heads, batch, _]
        w_k, w_v = (torch.unflatten(layer.weight, 0, heads) for layer in (self.key, self.value))
        # Heads are stacked, not transposed: what asks for the layout of an axis over the rows asks
        # whether there is one row, and the exported program would refuse one.
        asked = torch.stack(torch.bmm(q * self.scale, w_k).unbind(), dim=1)
        summary = attention(
            asked,  # [batch, heads, event_dim]
            events,
            events,
            scaled=False,
            dropout=self.dropout if self.training else 0.0,
            mask=mask[:, None, None],
        )  # [batch, heads, event_dim]
        values = torch.bmm(summary.transpose(0, 1), w_v.mT)  # [heads, batch, dim / heads]
        return self.out(torch.cat(values.unbind(), dim=1))
