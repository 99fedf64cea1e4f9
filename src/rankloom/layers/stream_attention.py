"""Attention between the streams of a layer: DLF's network-aware attention fusion."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.layers.attention import attention_of_heads
from rankloom.layers.mlp import linear

Streams = Float[Tensor, "batch streams tokens dim"]


class NetworkAwareAttention(nn.Module):
    """Attention of every stream to every other and to itself, merged into one set of tokens.

    Source: DLF, arXiv:2505.19182, equations 10 to 14. With Q, K, V of all streams from one linear
    map and A[m,x] = softmax(Q[m] K[x]^T / sqrt(dim)) V[x], a pass gives for stream m

        ReLU(W[m] [A[m,x], x != m] + b[m]) + A[m,m]

    and the module ReLU(W_F [stream 1; stream 2; ...] + b_F) of the last pass, along the features.

    Args:
        num_streams: streams; one alone has only itself to attend to.
        dim: width of a token.
        num_passes: passes over the streams, each with weights of its own.
        self_attention: whether the term A[m,m] is there.

    Raises:
        ValueError: one stream and no self-attention: nothing would be left.
    """

    def __init__(
        self, num_streams: int, dim: int, *, num_passes: int = 1, self_attention: bool = True
    ) -> None:
        super().__init__()
        if num_streams == 1 and not self_attention:
            raise ValueError("attention between streams needs two of them; got one")
        make = _AttentionPass if self_attention else _CrossAttentionPass
        self.passes = nn.Sequential(*[make(num_streams, dim) for _ in range(num_passes)])
        self.merge = linear(num_streams * dim, dim)

    def forward(self, streams: Streams) -> Float[Tensor, "batch tokens dim"]:
        """The merged tokens."""
        attended = self.passes(streams)
        return torch.relu(self.merge(attended.transpose(1, 2).flatten(2)))


class _CrossAttentionPass(nn.Module):
    """ReLU(W[m] [A[m,x], x != m] + b[m]) of every stream m."""

    def __init__(self, num_streams: int, dim: int) -> None:
        super().__init__()
        self.num_streams = num_streams
        self.project = linear(dim, 3 * dim)
        """f_att: one map for all streams."""
        others = (num_streams - 1) * dim
        self.cross = nn.ModuleList([linear(others, dim) for _ in range(num_streams) if others])

    def forward(self, streams: Streams) -> Streams:
        """The streams after the pass."""
        met = self.attend(streams)
        return torch.stack([self.met_others(met, m) for m in range(self.num_streams)], dim=1)

    def attend(self, streams: Streams) -> list[list[Tensor]]:
        """A of every stream x (outer list) as every stream m (inner list) meets it."""
        q, k, v = self.project(streams).chunk(3, dim=-1)
        # Streams as heads: the queries of all streams meet the keys of one stream per head, so that
        # each softmax runs over one stream's tokens.
        queries = q.flatten(1, 2).unsqueeze(1).expand(-1, self.num_streams, -1, -1)
        met = attention_of_heads(queries, k, v)
        # Unbound at once: picking one by one would fill a gradient of the whole for each.
        return [list(x.chunk(self.num_streams, dim=1)) for x in met.unbind(1)]

    def met_others(self, met: list[list[Tensor]], m: int) -> Float[Tensor, "batch tokens dim"]:
        """The first term of stream m."""
        others = [met[x][m] for x in range(self.num_streams) if x != m]
        return torch.relu(self.cross[m](torch.cat(others, dim=-1)))


class _AttentionPass(_CrossAttentionPass):
    """The same plus A[m,m]."""

    def forward(self, streams: Streams) -> Streams:
        met = self.attend(streams)
        own = torch.stack([met[m][m] for m in range(self.num_streams)], dim=1)
        if self.num_streams == 1:
            return own
        cross = [self.met_others(met, m) for m in range(self.num_streams)]
        return torch.stack(cross, dim=1) + own
