"""BERT4Rec: items of a history that are masked are told from both sides.

Source: Sun et al., CIKM 2019, arXiv:1904.06690, section 3.
Equations, with n items and LN a layer norm:
    x[i] = Dropout(LN(item[i] + position[n - 1 - i])),  item[i] = mask where item i is masked
    z    = LN(x + Dropout(W_O Attention(x))),  x' = LN(z + Dropout(W2 gelu(W1 z + b1) + b2))
    r(j) = <LN(gelu(W_P x[i] + b_P)), item[j]> + bias[j] at a masked item i
    Training masks a share of a sequence's items at random and tells them from all others.
    At prediction a mask follows the history's newest item.
Differs from the paper: the norms of its code, of the input and after W_P's activation, are not in
    its equations. A sequence of which nothing was drawn has its last item masked. The projections
    of attention have no biases. Matrices start xavier-normal: the paper's values, at most 0.02, are
    far below that at these widths and learn much slower.
The paper does not say: how many sequences have only their last item masked, as at prediction. Its
    code makes one such copy beside ten of the others: `last_only_share`.
A training row is a user's sequence: its items and the last target.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.encoder import EncoderLayer
from rankloom.layers.linear_cross_entropy import linear_cross_entropy
from rankloom.layers.mlp import linear
from rankloom.protocols import Loss
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.sequential.item_sequence import (
    INIT_STD,
    HistoryEmbedding,
    ItemSequenceConfig,
    item_scores,
    newest_items,
)


class BERT4RecConfig(ItemSequenceConfig):
    """Sizes of the layers, and what is masked."""

    num_layers: int = Field(2, gt=0)
    """Layers."""
    num_heads: int = Field(2, gt=0)
    """Heads of every layer; divides `dim`."""
    expansion: int = Field(4, gt=0)
    """Width of a layer's hidden units, in widths of a state."""
    mask_ratio: float = Field(0.2, gt=0, lt=1)
    """Share of the items that are masked in training."""
    last_only_share: float = Field(0.1, ge=0, le=1)
    """Share of the rows in which only the last item is masked."""


class BERT4Rec(nn.Module):
    """Bidirectional layers with a norm after every skip; scores by the item table."""

    training_rows: ClassVar[Literal["users", "prefixes"]] = "users"

    def __init__(self, config: BERT4RecConfig, schema: ItemSchema) -> None:
        super().__init__()
        dim = config.dim
        self.max_length = config.max_length
        self.mask_ratio, self.last_only_share = config.mask_ratio, config.last_only_share
        # A position more: the mask after a history, the last target of a row.
        self.embed = HistoryEmbedding(
            schema.num_items, dim, config.max_length + 1, dropout=config.dropout, scaled=False
        )
        self.embed_norm = nn.LayerNorm(dim)
        self.mask = nn.Parameter(torch.empty(dim).normal_(std=INIT_STD))
        """The vector in place of a masked item's."""
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                config.num_heads,
                config.expansion * dim,
                activation="gelu",
                attention_dropout=config.dropout,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.project = linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(schema.num_items))
        """A number for every item."""

    def forward(
        self, items: Int[Tensor, "batch seq"], masked: Bool[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        """What is said of every place.

        Args:
            items: item numbers, 0 after the last; those that are masked are not read.
            masked: True at items that are to be told, also at places where none is known.

        Raises:
            ValueError: a row is longer than `max_length` and one.
        """
        taken = (items > 0) | masked  # [batch, seq]
        vectors = torch.where(masked[:, :, None], self.mask, self.embed.items(items * ~masked))
        x = vectors + self.embed.place(taken.sum(1), items.shape[1])
        # DIFF: a norm of the input.
        x = self.embed.dropout(self.embed_norm(x))
        for layer in self.layers:
            x = layer(x, taken[:, None, None])
        # DIFF: a norm after the projection.
        return self.norm(functional.gelu(self.project(x)))

    def loss(self, batch: HistoryBatch) -> Loss:
        """Cross-entropy over all items at the masked ones.

        Raises:
            ValueError: the batch has no targets.
        """
        items = _whole_sequences(batch)
        masked = self._draw(items)
        states = self(items, masked)[masked]  # [positions, dim]
        weight = self.embed.items.weight[1:]
        return Loss(linear_cross_entropy(states, weight, items[masked] - 1, self.bias))

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Scores of every item after each history, of which the newest items are read."""
        items = functional.pad(newest_items(batch.items, self.max_length), (0, 1))
        rows = torch.arange(len(items), device=items.device)
        last = (items > 0).sum(1)
        masked = torch.zeros_like(items, dtype=torch.bool)
        masked[rows, last] = True
        states = self(items, masked)[rows, last]  # [batch, dim]
        return item_scores(states, self.embed.items) + self.bias

    def _draw(self, items: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
        """What is masked of training sequences."""
        real = items > 0
        places = torch.arange(items.shape[1], device=items.device)
        last = places == real.sum(1, keepdim=True) - 1  # [batch, seq]
        drawn = (torch.rand(items.shape, device=items.device) < self.mask_ratio) & real
        last_only = torch.rand((len(items), 1), device=items.device) < self.last_only_share
        return torch.where(last_only | ~drawn.any(1, keepdim=True), last, drawn)


def _whole_sequences(batch: HistoryBatch) -> Int[Tensor, "batch seq_plus_one"]:
    """The rows' items, each with the last target after it."""
    if batch.targets is None:
        raise ValueError("training needs targets; got a batch of histories without them")
    count = batch.lengths[:, None]  # [batch, 1]
    last = batch.targets.gather(1, (count - 1).clamp(min=0))
    return functional.pad(batch.items, (0, 1)).scatter(1, count, last)
