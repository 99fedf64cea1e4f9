"""HSTU for ranking: one sequence of events and fields, gated attention without a softmax.

Source: Zhai et al., ICML 2024, arXiv:2402.17152, section 3, and its published code.
Equations, with n tokens and LN a layer norm without weights, eps 1e-6:
    U, V, Q, K = split(SiLU(LN(x) W))
    A          = SiLU(Q[h] K[h]^T + r) / n where a token may look, else 0, in every head h
    x'         = x + W_O (U * LN([A[h] V[h] for every h]))
    r[i,j]     = position[i - j] + gap[floor(ln(max(1, |t_i - t_j|)) / 0.301)], a table per layer
    logits     = MLP(pool(field tokens))
    The tokens are the events, oldest first, then the row's fields. A token looks at itself and at
    those before it, so fields see all events.
Differs from the paper: it interleaves items with actions and scores all positions of a user's
    sequence at once; here a sequence is one row's history, and the row's fields (the candidate's
    too) come after it, a token each. A norm stands before the pooling.
The paper does not say: what becomes of it without events. Here all fields look at each other then,
    and r is a table of all pairs of fields.
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.relative_bias import (
    PairBias,
    PositionBias,
    TimeGapBias,
    time_gap_buckets,
)
from rankloom.layers.silu_attention import SiLUAttention
from rankloom.ranking.connections import connect
from rankloom.ranking.token_network import SequenceTokenNetwork
from rankloom.schema import Schema


class HSTUConfig(SequenceTokenNetwork):
    """Sizes of the layers."""

    num_heads: int = Field(2, gt=0)
    """Heads of every layer."""
    head_dim: int = Field(32, gt=0)
    """Width of a head's queries, keys, values and gates."""
    num_time_buckets: int = Field(128, gt=0)
    """Buckets of the time between two tokens; each is 35% longer than the one before."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the gated units dropped in training."""


class _FieldBias(nn.Module):
    """Biases of fields alone."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.pair = PairBias(num_tokens)

    def forward(self, gaps: None) -> Float[Tensor, "tokens tokens"]:
        return self.pair()


class _SequenceBias(nn.Module):
    """Biases of a sequence without times."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.position = PositionBias(num_tokens)

    def forward(self, gaps: None) -> Float[Tensor, "tokens tokens"]:
        return self.position()


class _TimedSequenceBias(nn.Module):
    """Biases of a sequence with times."""

    def __init__(self, num_tokens: int, num_buckets: int) -> None:
        super().__init__()
        self.position = PositionBias(num_tokens)
        self.gap = TimeGapBias(num_buckets)

    def forward(
        self, gaps: Int[Tensor, "batch tokens tokens"]
    ) -> Float[Tensor, "batch 1 tokens tokens"]:
        return (self.position() + self.gap(gaps)).unsqueeze(1)


class HSTU(nn.Module):
    """Sequential transduction layers over events and fields, then the pooled fields."""

    def __init__(self, config: HSTUConfig, schema: Schema) -> None:
        super().__init__()
        self.tokens = config.build_tokens(schema)
        num_events, num_fields = self.tokens.num_events, self.tokens.num_fields
        num_tokens = num_events + num_fields
        self.num_time_buckets = config.num_time_buckets
        visible = torch.ones(num_tokens, num_tokens)
        if num_events:
            visible = visible.tril()
        self.register_buffer("visible", visible / num_tokens, persistent=False)
        self.visible: Tensor
        """[queries, keys]: 1 / n where a query may look, else 0."""

        def bias() -> nn.Module:
            if not num_events:
                return _FieldBias(num_tokens)
            if self.tokens.has_time:
                return _TimedSequenceBias(num_tokens, config.num_time_buckets)
            return _SequenceBias(num_tokens)

        # Nobody reads the events after the last layer.
        queries = [*(config.num_layers - 1) * [num_tokens], num_fields]
        # DIFF: the paper scores every event; here the fields are scored.
        layers = [
            [
                SiLUAttention(
                    config.dim,
                    config.num_heads,
                    config.head_dim,
                    bias(),
                    dropout=config.dropout,
                    pre_norm=config.connection.pre_norm,
                    first_query=num_tokens - count,
                )
            ]
            for count in queries
        ]
        self.stack = connect(layers, config.connection, config.dim)
        self.head = config.build_head(self.stack.out_dim, num_fields, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        tokens = self.tokens(batch)
        visible = self.visible
        if tokens.mask is not None:
            visible = visible * tokens.mask[:, None, None]  # [batch, 1, tokens, tokens]
        gaps = None
        if tokens.time is not None:
            gaps = time_gap_buckets(tokens.time, self.num_time_buckets)
        return self.head(self.stack(tokens.x, visible, gaps))
