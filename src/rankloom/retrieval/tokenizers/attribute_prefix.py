"""Ids that begin with attributes: department, category ... then residual k-means.

Source: none that defines it. Ids whose first tokens are given categories are a common baseline; the
form here is ours.
Equations: s[1 .. a] are the numbers of the item's attributes; r[1] = x - the mean vector of all
items with these attributes; the levels after are residual k-means (`rq_kmeans`) of r[1] with
centres that all items share, so that a code means the same direction under every attribute.
Items that were not fitted come without attributes: they get those of the nearest mean.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.nearest import assign_nearest
from rankloom.retrieval.protocols import Assignment, TokenizerItems
from rankloom.retrieval.tokenizers.item_attributes import named_attributes
from rankloom.retrieval.tokenizers.known_items import KnownItems
from rankloom.retrieval.tokenizers.rq_kmeans import RQKMeansConfig


class AttributePrefixConfig(Config):
    """Settings of ids that begin with attributes."""

    kind: Literal["attribute_prefix"] = "attribute_prefix"
    attributes: tuple[str, ...] = Field(min_length=1)
    """Names of the side fields that make the first levels, coarse to fine."""
    level_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((256, 256), min_length=1)
    """Codes of each level after them."""
    num_iterations: int = Field(25, ge=1)
    """Most iterations of k-means a level."""

    def build(self, width: int) -> "AttributePrefix":
        """The tokenizer of vectors of a width."""
        return AttributePrefix(self, width)


class AttributePrefix(nn.Module):
    """Attributes, then residual k-means. A missing attribute is code 0 of its level."""

    prefixes: Tensor
    means: Tensor
    sizes: Tensor

    def __init__(self, config: AttributePrefixConfig, width: int) -> None:
        super().__init__()
        self.config = config
        count = len(config.attributes)
        self.register_buffer("prefixes", torch.zeros(1, count, dtype=torch.int64))
        """[prefixes, attributes] every combination of attributes that an item has."""
        self.register_buffer("means", torch.zeros(1, width))
        """[prefixes, width] mean vector of the items of each."""
        self.register_buffer("sizes", torch.ones(count, dtype=torch.int64))
        """[attributes] codes of each."""
        self.known = KnownItems(1)
        """The prefix of each fitted item, by its row."""
        self.residual = RQKMeansConfig(
            level_sizes=config.level_sizes, num_iterations=config.num_iterations
        ).build(width)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (*self.sizes.tolist(), *self.residual.level_sizes)

    def code_vectors(self, level: int) -> Float[Tensor, "codes width"]:
        """Means of the items with each value of an attribute, zeros where none has it; centres."""
        if level >= len(self.sizes):
            return self.residual.code_vectors(level - len(self.sizes))
        # Every combination counts alike, as the numbers of their items are not kept.
        values = self.prefixes[:, level]
        sums = self.means.new_zeros(int(self.sizes[level]), self.means.shape[1])
        sums.index_add_(0, values, self.means)
        counts = torch.bincount(values, minlength=len(sums)).clamp(min=1)
        return sums / counts[:, None]

    @torch.no_grad()
    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Learn the means and the centres.

        Raises:
            ValueError: there are no items, or they lack an attribute that the ids begin with.
        """
        vectors = items.vectors
        if len(vectors) == 0:
            raise ValueError("attribute_prefix needs at least one item; got none")
        values = named_attributes(items, self.config.attributes, "attribute_prefix")
        values = values.to(vectors.device)
        prefixes, prefix = torch.unique(values, dim=0, return_inverse=True)
        sums = vectors.new_zeros(len(prefixes), vectors.shape[1]).index_add_(0, prefix, vectors)
        self.register_buffer("prefixes", prefixes)
        self.register_buffer("means", sums / torch.bincount(prefix)[:, None])
        self.register_buffer("sizes", values.amax(0) + 1)
        self.known.remember(vectors, prefix[:, None])
        self.residual.fit(TokenizerItems(vectors - self.means[prefix]), generator)

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """Attributes of the fitted items, the nearest ones of others, then the nearest codes."""
        prefix = self._prefix(vectors)
        means = self.means[prefix]
        rest = self.residual.assign(vectors - means)
        attributes = self.prefixes[prefix].cpu().numpy().astype(np.int32)
        reconstruction = None if rest.reconstruction is None else means + rest.reconstruction
        return Assignment(np.concatenate([attributes, rest.codes], axis=1), reconstruction, vectors)

    @torch.no_grad()
    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
        """What is left of each vector for the last level to quantise."""
        return self.residual.last_residuals(vectors - self.means[self._prefix(vectors)])

    def _prefix(self, vectors: Tensor) -> Int[Tensor, " items"]:
        """The row of each item's attributes in `prefixes`."""
        known = self.known.find(vectors)[:, 0]
        return torch.where(known >= 0, known, assign_nearest(vectors, self.means)[0])
