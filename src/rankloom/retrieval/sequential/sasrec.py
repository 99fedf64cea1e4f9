"""SASRec: causal self-attention over the items of a history.

Source: Kang and McAuley, ICDM 2018, arXiv:1808.09781, section 3.
Equations, with n items and LN a layer norm:
    x[i] = Dropout(sqrt(dim) item[i] + position[n - 1 - i])
    z    = x + Dropout(W_O Attention(LN(x)))                i looks at itself and what came before
    x'   = z + Dropout(W2 Dropout(relu(W1 LN(z) + b1)) + b2)    per block
    r(j) = <LN(x[n - 1]), item[j]>
Differs from the paper: softmax over all items by default; the paper's is `loss.kind = "bce"`, which
    in one careful reproduction reached a Recall@10 of .0539 on Amazon Beauty where softmax had
    .0859. Attention has an output projection, which with one head the paper's has not.
The paper does not say: that its code normalises queries alone (here all of attention's input, as
    its equation does), multiplies item vectors by sqrt(dim) and normalises the last state (both as
    here).
Published, Amazon Beauty, Recall@10 of 2 blocks: .0605 with BCE (in TIGER, arXiv:2305.05065).
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.layers.attention import SelfAttention
from rankloom.layers.dropout import Dropout
from rankloom.layers.mlp import linear
from rankloom.layers.token_mlp import TokenMLP
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


class SASRecConfig(ItemSequenceConfig):
    """Sizes of the blocks, and the loss."""

    num_layers: int = Field(2, gt=0)
    """Blocks."""
    num_heads: int = Field(1, gt=0)
    """Heads of every block; divides `dim`."""
    expansion: int = Field(1, gt=0)
    """Width of a block's hidden units, in widths of a state."""
    loss: ItemLossConfig = SoftmaxConfig()
    """What is minimised: softmax, bce or sampled_softmax."""


class _Block(nn.Module):
    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attend = SelfAttention(dim, dim, config.num_heads, dropout=config.dropout)
        self.out = linear(dim, dim, bias=False)
        self.network_norm = nn.LayerNorm(dim)
        self.network = TokenMLP(
            None, dim, config.expansion * dim, activation="relu", dropout=config.dropout
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], visible: Bool[Tensor, "seq seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        x = x + self.dropout(self.out(self.attend(self.attention_norm(x), visible[None, None])))
        return x + self.dropout(self.network(self.network_norm(x)))


class SASRec(nn.Module):
    """Blocks of causal attention and a network per item; scores by the item table."""

    training_rows: ClassVar[Literal["users", "prefixes"]] = "users"

    def __init__(self, config: SASRecConfig, schema: ItemSchema) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.embed = HistoryEmbedding(
            schema.num_items, config.dim, config.max_length, dropout=config.dropout
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.objective = config.loss.build(schema.num_items)
        visible = torch.ones(config.max_length, config.max_length, dtype=torch.bool).tril()
        self.register_buffer("visible", visible, persistent=False)
        self.visible: Tensor
        """[queries, keys]. Padding comes last, so no item sees it."""

    def forward(self, items: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """The state after every item; at padding it means nothing.

        Raises:
            ValueError: a row is longer than `max_length`.
        """
        x = self.embed(items)
        visible = self.visible[: items.shape[1], : items.shape[1]]
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)

    def loss(self, batch: HistoryBatch) -> Loss:
        """The objective over all targets."""
        states, targets = target_states(self(batch.items), batch)
        return Loss(self.objective(states, targets, self.embed.items))

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Scores of every item after each history, of which the newest items are read."""
        items = newest_items(batch.items, self.max_length)
        return item_scores(last_states(self(items), items), self.embed.items)
