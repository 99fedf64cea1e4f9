"""Histories of items as the tokens a generator reads.

`IdTokens` writes each item as its semantic id. `ActionPieceTokens` writes each item as the set of
its codes and merges pairs of them, also pairs that lie in two neighbouring items. A model holds one
of them and asks it for the tokens of a batch; both are modules without parameters, whose tables
move with the model and stay out of its state, as the ids are an artefact of their own.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.retrieval.pair_merging import PairTable, merge_adjacent
from rankloom.retrieval.semantic_ids import PADDING, SemanticIds


@dataclass(frozen=True)
class TokenizedHistories:
    """Tokens of histories, and which item each belongs to. All int64."""

    tokens: Int[Tensor, "batch tokens"]
    """Tokens, oldest item first; 0 after the last. As wide as the longest row, at least 1."""
    items: Int[Tensor, "batch tokens"]
    """Place in the history, from 0, of the item that a token ends in; 0 at padding."""
    places: Int[Tensor, "batch tokens"]
    """Place of a token among the tokens that end in its item, from 0; 0 at padding."""
    last: Int[Tensor, "batch seq"]
    """Place in `tokens` of the last token that ends in each item, or in one before it where an item
    has none; after the last item that of the last token; 0 where nothing came before."""


@runtime_checkable
class HistoryTokens(Protocol):
    """Writes histories as tokens. An nn.Module."""

    max_tokens: int
    """Most tokens that end in one item."""
    causal: bool
    """Whether the tokens up to `last` of an item say nothing of later items, so that a model may
    be trained at all positions of a row at once."""

    def encode(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> TokenizedHistories:
        """The tokens of histories of item numbers, 0 after the last item of each."""

    def tokens(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch tokens"]:
        """`encode(...).tokens`."""


class IdTokens(nn.Module):
    """Each item as the tokens of its semantic id, merges applied, END after them.

    Args:
        ids: ids of the catalogue.
    """

    causal = True
    """An item's tokens are its own."""

    def __init__(self, ids: SemanticIds) -> None:
        super().__init__()
        self.register_buffer("table", ids.token_table(), persistent=False)
        self.table: Tensor
        """[items + 1, max_tokens] tokens by item number; row 0 is padding."""
        self.max_tokens = self.table.shape[1]

    def of_items(self, items: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape width"]:
        """Tokens of each item by itself, as targets; padding where an item number is 0."""
        return self.table[items]

    def encode(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> TokenizedHistories:
        """The ids of the items one after another; nothing is drawn."""
        return pack_tokens(self.of_items(items))

    def tokens(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch tokens"]:
        """`encode(...).tokens`."""
        return self.encode(items).tokens


class ActionPieceTokens(nn.Module):
    """Each item as the set of its codes, pairs of which are merged, also across items.

    Source: Hou et al., ICML 2025, arXiv:2502.13581 (ActionPiece), section 3.2.2, set permutation
    regularisation: each set is written in an order drawn at random, the sets one after another, and
    the whole is segmented as byte-pair encoding does, by the merges in the order they were learned.
    An item's tokens so depend on its neighbours and differ from one draw to the next.

    Orders are drawn from the generator that is given, or else from the one in `generator`; without
    either, in training from torch's default generator, and at evaluation none is drawn and the
    codes stand in the order of their levels.

    Args:
        ids: ids whose merges were learned over histories (`retrieval.set_merges`).
        across_items: whether tokens of two neighbouring items merge. A token that two items share
            tells of the later one, so a model that is trained at all positions of a row at once
            must not read such tokens.
    """

    def __init__(self, ids: SemanticIds, *, across_items: bool = True) -> None:
        super().__init__()
        plain = np.where(ids.codes >= 0, ids.codes + ids.level_offsets, PADDING)
        table = np.zeros((ids.num_items + 1, plain.shape[1]), np.int64)
        table[1:] = plain
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        self.table: Tensor
        """[items + 1, levels] a token for each code by item number; row 0 is padding."""
        self.pairs = PairTable(ids.merges, ids.vocabulary_size - len(ids.merges))
        self.across_items = across_items
        self.causal = not across_items
        self.max_tokens = plain.shape[1]
        self.generator: torch.Generator | None = None
        """What orders are drawn from where no generator is given (`retrieval.rank_fusion`)."""

    def encode(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> TokenizedHistories:
        """The merged tokens of the histories, computed on the CPU."""
        codes = self.table[items].cpu()  # [batch, seq, levels]
        generator = generator or self.generator
        if generator is not None or self.training:
            order = torch.rand(codes.shape, generator=generator)
            # Ids may differ in length: what an item lacks stays behind its codes.
            order = order.masked_fill(codes == PADDING, 2.0).argsort(-1)
            codes = codes.gather(-1, order)
        plain = pack_tokens(codes)
        of_item = plain.items.numpy()
        starts = plain.places.numpy() == 0
        merged, ends = merge_adjacent(
            plain.tokens.numpy(), self.pairs, None if self.across_items else starts
        )
        item = np.take_along_axis(of_item, ends, 1)  # [batch, tokens]: the item a token ends in
        packed = pack_tokens(torch.from_numpy(merged)[:, :, None])  # one token at each place
        item_of = torch.from_numpy(item).gather(1, packed.items) * (packed.tokens > 0)
        ending = torch.zeros_like(items, device="cpu")
        ending.scatter_add_(1, item_of, (packed.tokens > 0).long())  # tokens that end in each item
        upto = ending.cumsum(1)
        place = torch.arange(packed.tokens.shape[1]) - (upto - ending).gather(1, item_of)
        return TokenizedHistories(
            tokens=packed.tokens.to(items.device),
            items=item_of.to(items.device),
            places=(place * (packed.tokens > 0)).to(items.device),
            last=(upto - 1).clamp(min=0).to(items.device),
        )

    def tokens(
        self, items: Int[Tensor, "batch seq"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch tokens"]:
        """`encode(...).tokens`."""
        return self.encode(items, generator).tokens


class IdTokensConfig(Config):
    """Each item as the tokens of its semantic id."""

    kind: Literal["ids"] = "ids"

    def build(self, ids: SemanticIds) -> IdTokens:
        """The tokens of a catalogue's ids."""
        return IdTokens(ids)


class ActionPieceTokensConfig(Config):
    """Each item as a set of codes that merge with those of its neighbours."""

    kind: Literal["action_piece"] = "action_piece"
    across_items: bool = True
    """Whether tokens of neighbouring items merge; not for models trained at all positions."""

    def build(self, ids: SemanticIds) -> ActionPieceTokens:
        """The tokens of a catalogue's ids."""
        return ActionPieceTokens(ids, across_items=self.across_items)


HistoryTokensConfig = Annotated[
    IdTokensConfig | ActionPieceTokensConfig, Field(discriminator="kind")
]
"""How a model reads histories."""


def pack_tokens(rows: Int[Tensor, "batch seq width"]) -> TokenizedHistories:
    """Tokens of items, each item's padded at the end, moved up against each other."""
    batch, seq, width = rows.shape
    flat = rows.flatten(1)  # [batch, seq * width]
    real = flat != PADDING
    upto = real.cumsum(1)
    count = upto[:, -1:]  # [batch, 1]
    longest = max(1, int(count.max())) if batch else 1
    # Tokens go to their place, padding to a column beyond, which is cut off.
    place = torch.where(real, upto - 1, longest)
    source = torch.zeros(batch, longest + 1, dtype=torch.int64, device=rows.device)
    source.scatter_(1, place, torch.arange(seq * width, device=rows.device).expand_as(flat))
    source = source[:, :longest]
    filled = torch.arange(longest, device=rows.device) < count  # [batch, longest]
    return TokenizedHistories(
        tokens=flat.gather(1, source) * filled,
        items=source // width * filled,
        places=source % width * filled,
        last=(upto.view(batch, seq, width)[:, :, -1] - 1).clamp(min=0),
    )
