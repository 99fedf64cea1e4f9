"""ActionPiece: an item is a set of features, and what occurs together in histories becomes a token.

Source: Hou et al., ICML 2025, arXiv:2502.13581, and the sizes of the authors' code: four digits of
optimised product quantisation and a bucket, which tells items with the same digits apart.
Here are the features, as the codes of an id. The vocabulary is learned from histories after
collisions are settled (`retrieval.set_merges`), and histories are written by
`retrieval.history_tokens.ActionPieceTokens`.
Differs from the paper: see `# DIFF:`. In the paper the tokens of a target are drawn anew in each
epoch, as those of its history are. Here a target has one form, as a trie of all ids needs it: its
codes in the order of the levels, with those merges applied that join neighbours among them.
The paper does not say: features of items that were not fitted (here their digits, or no attribute,
and a bucket by a hash of the vector).
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.retrieval.collisions import group_numbers
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.protocols import Assignment, TokenizerItems
from rankloom.retrieval.semantic_ids import IntArray, SemanticIds
from rankloom.retrieval.set_merges import SetMergesConfig
from rankloom.retrieval.tokenizers.item_attributes import named_attributes
from rankloom.retrieval.tokenizers.known_items import KnownItems, fingerprints
from rankloom.retrieval.tokenizers.opq import OPQConfig


class AttributesConfig(Config):
    """Side fields as features."""

    kind: Literal["attributes"] = "attributes"
    names: tuple[str, ...] = Field(min_length=1)
    """Names of the side fields."""

    def build(self, width: int) -> "Attributes":
        """The features."""
        return Attributes(self)


class ActionPieceConfig(Config):
    """Settings of ActionPiece."""

    kind: Literal["action_piece"] = "action_piece"
    features: Annotated[OPQConfig | AttributesConfig, Field(discriminator="kind")] = OPQConfig(
        num_digits=4
    )
    """What makes the features of an item: digits of its vector, or its side fields."""
    num_buckets: int = Field(64, ge=1)
    """Values of the last feature. Items with the same other features get different ones, as far as
    they go."""
    merges: SetMergesConfig = SetMergesConfig()
    """How the vocabulary is learned."""

    def build(self, width: int) -> "ActionPiece":
        """The tokenizer of vectors of a width.

        Raises:
            ValueError: the digits do not divide the width.
        """
        return ActionPiece(self, width)


class ActionPiece(nn.Module):
    """The features of ActionPiece, a code each, and a bucket."""

    def __init__(self, config: ActionPieceConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.features = config.features.build(width)
        self.known = KnownItems(1)
        """The bucket of each fitted item."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each feature, buckets last."""
        return (*self.features.level_sizes, self.config.num_buckets)

    def code_vectors(self, level: int) -> Float[Tensor, "codes width"] | None:
        """Vectors of the features' codes; a bucket says nothing: zeros."""
        if level < len(self.features.level_sizes):
            return self.features.code_vectors(level)
        return self.known.fingerprints.new_zeros(
            self.config.num_buckets, self.width, dtype=torch.float32
        )

    @torch.no_grad()
    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Learn the features, and deal out the buckets.

        Raises:
            ValueError: there are no items, or they lack what the features are made of.
        """
        if items.num_items == 0:
            raise ValueError("action_piece needs at least one item; got none")
        self.features.fit(items, generator)
        group = torch.from_numpy(group_numbers(self.features.assign(items.vectors).codes))
        # DIFF: a group's members, in random order, get buckets that follow on a random one; the
        # authors draw each group's buckets one by one.
        member = torch.randperm(len(group), generator=generator)
        member = member[group[member].argsort(stable=True)]  # by group, random within it
        counts = torch.bincount(group)
        starts = counts.cumsum(0) - counts
        rank = torch.empty_like(group)
        rank[member] = torch.arange(len(group)) - starts[group[member]]
        first = torch.randint(self.config.num_buckets, (len(counts),), generator=generator)
        buckets = (first[group] + rank) % self.config.num_buckets
        self.known.remember(items.vectors, buckets[:, None])

    def learn_merges(self, ids: SemanticIds, histories: Histories) -> IntArray:
        """The vocabulary over the training histories, for ids that this tokenizer's codes became.

        Raises:
            ValueError: the histories are of another number of items than the ids.
        """
        return self.config.merges.learn(ids, histories)

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The features, and the buckets of the fitted items; a hash gives those of others."""
        features = self.features.assign(vectors)
        known = self.known.find(vectors)
        hashed = fingerprints(vectors)[:, None].remainder(self.config.num_buckets)
        bucket = torch.where(known >= 0, known, hashed).cpu().numpy().astype(np.int32)
        codes = np.concatenate([features.codes, bucket], axis=1)
        return Assignment(codes, features.reconstruction, features.target)

    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
        """Zeros: any bucket serves an item as well, where collisions are settled by last codes."""
        return torch.zeros_like(vectors)


class Attributes(nn.Module):
    """Side fields of the fitted items as codes; items that were not fitted have none of them.

    A missing value is code 0.
    """

    sizes: Tensor

    def __init__(self, config: AttributesConfig) -> None:
        super().__init__()
        self.names = config.names
        self.register_buffer("sizes", torch.ones(len(config.names), dtype=torch.int64))
        self.known = KnownItems(len(config.names))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Values of each side field."""
        return tuple(self.sizes.tolist())

    def code_vectors(self, level: int) -> None:
        """Values have no vectors."""

    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Take the items' values.

        Raises:
            ValueError: the items lack a side field.
        """
        values = named_attributes(items, self.names, "action_piece")
        self.sizes.copy_(values.amax(0) + 1)
        self.known.remember(items.vectors, values)

    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The values."""
        return Assignment(self.known.find(vectors).clamp(min=0).cpu().numpy().astype(np.int32))
