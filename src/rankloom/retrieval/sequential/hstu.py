"""HSTU that scores items: gated attention without a softmax over the items of a history.

Source: Zhai et al., ICML 2024, arXiv:2402.17152, section 3, and its published code; its layer is
    `rankloom.layers.silu_attention.SiLUAttention`, as in HSTU for ranking.
Equations, with n items, N = max_length, LN0 a layer norm without weights:
    x[i] = Dropout(sqrt(dim) item[i] + position[n - 1 - i])
    U, V, Q, K = split(SiLU(LN0(x) W)),  A = SiLU(Q[h] K[h]^T + r) / N for a key not after its query
    x'   = x + W_O Dropout(U * LN0([A[h] V[h] for every h]))         per layer
    r[i,j] = bias[i - j], a table per layer
    score(j) = <LN(x[n - 1]), item[j]>
Differs from the paper: histories here carry no times, so r has no buckets of time. The last state
    is normalised by a layer norm, not divided by its length, and items are not normalised, so that
    all models here share their losses; the softmax is over all items by default (its code draws 128
    or more negatives at a temperature of 0.05).
The paper does not say: the order in which positions are counted.
Published, Amazon Beauty, NDCG@10: .0389 (in RPG, KDD 2025).
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.layers.relative_bias import PositionBias
from rankloom.layers.silu_attention import SiLUAttention
from rankloom.protocols import Loss
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.sequential.item_losses import ItemLossConfig, SoftmaxConfig
from rankloom.retrieval.sequential.item_sequence import (
    HistoryEmbedding,
    ItemSequenceConfig,
    item_scores,
    last_states,
    newest_items,
    target_states,
)


class SequentialHSTUConfig(ItemSequenceConfig):
    """Sizes of the layers, and the loss."""

    num_layers: int = Field(2, gt=0)
    """Layers."""
    num_heads: int = Field(2, gt=0)
    """Heads of every layer."""
    head_dim: int = Field(32, gt=0)
    """Width of a head's queries, keys, values and gates."""
    loss: ItemLossConfig = SoftmaxConfig()
    """What is minimised: softmax, bce or sampled_softmax."""


class _Bias(nn.Module):
    """Biases of a sequence without times."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.position = PositionBias(max_length)

    def forward(self, gaps: None) -> Float[Tensor, "tokens tokens"]:
        return self.position()


class SequentialHSTU(nn.Module):
    """Layers of gated attention; scores by the item table."""

    training_rows: ClassVar[Literal["users", "prefixes"]] = "users"

    def __init__(self, config: SequentialHSTUConfig, schema: ItemSchema) -> None:
        super().__init__()
        length = self.max_length = config.max_length
        self.embed = HistoryEmbedding(schema.num_items, config.dim, length, dropout=config.dropout)
        self.layers = nn.ModuleList(
            SiLUAttention(
                config.dim,
                config.num_heads,
                config.head_dim,
                _Bias(length),
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        # DIFF: a layer norm in place of a division by the state's length.
        self.norm = nn.LayerNorm(config.dim)
        self.objective = config.loss.build(schema.num_items)
        self.register_buffer(
            "visible", torch.ones(length, length).tril() / length, persistent=False
        )
        self.visible: Tensor
        """[queries, keys]: 1 / N where a query may look, else 0."""

    def forward(self, items: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """The state after every item; at padding it means nothing.

        Raises:
            ValueError: a row is longer than `max_length`.
        """
        x = self.embed(items)
        visible = self.visible[: items.shape[1], : items.shape[1]]
        for layer in self.layers:
            x = x + layer(x, visible)
        return self.norm(x)

    def loss(self, batch: HistoryBatch) -> Loss:
        """The objective over all targets."""
        states, targets = target_states(self(batch.items), batch)
        return Loss(self.objective(states, targets, self.embed.items))

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Scores of every item after each history, of which the newest items are read."""
        items = newest_items(batch.items, self.max_length)
        return item_scores(last_states(self(items), items), self.embed.items)
