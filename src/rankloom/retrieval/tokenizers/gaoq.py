"""GAOQ: balanced clusters inside clusters, whose codes point the same way in every parent.

Source: ReSID, arXiv:2602.02338, globally aligned orthogonal quantisation.
Equations: level 1 is balanced k-means into b[1] clusters. At level l > 1 each parent with centroid
m is split by balanced k-means into b[l] children with centroids c[k]; the level has as many anchors
a[g], orthonormal and common to all parents; children get anchors one to one so that
sum_k cos(c[k] - m, a[g(k)]) is greatest, and the code of child k is g(k). At the last level every
item is a child of its own, which makes ids unique.
Differs from the paper: see `# DIFF:`.
The paper does not say: anchors of a level with more codes than dimensions (here several orthonormal
bases); codes of items that were not fitted (here the nearest centroid of each level, then the
nearest anchor, which another item may have).
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.kmeans import kmeans
from rankloom.layers.nearest import squared_distances
from rankloom.retrieval.protocols import Assignment, TokenizerItems
from rankloom.retrieval.tokenizers.known_items import KnownItems

BLOCK_ENTRIES = 2**24
"""Numbers of the centroids that are gathered at once for new items."""


class GAOQConfig(Config):
    """Settings of globally aligned orthogonal quantisation."""

    kind: Literal["gaoq"] = "gaoq"
    branching: tuple[Annotated[int, Field(ge=1)], ...] = Field((24, 32), min_length=1)
    """Clusters of each level but the last. Their product is best a tenth to a twentieth of the
    number of items."""
    last_level_size: int | None = Field(None, ge=1)
    """Codes of the last level; none: as many as the largest cluster has items. More leave room for
    items to come."""
    num_iterations: int = Field(25, ge=1)
    """Most iterations of each k-means."""

    def build(self, width: int) -> "GAOQ":
        """The tokenizer of vectors of a width."""
        return GAOQ(self, width)


class GAOQ(nn.Module):
    """Globally aligned orthogonal quantisation.

    A cluster of fewer vectors than its level has codes uses as many codes as it has vectors.
    """

    def __init__(self, config: GAOQConfig, width: int) -> None:
        super().__init__()
        self.config = config
        parents = 1
        for level, size in enumerate(config.branching):
            # Centroids by parent and code; nan where a parent has no such child.
            self.register_buffer(
                f"centroids_{level}", torch.full((parents, size, width), torch.nan)
            )
            self.register_buffer(f"anchors_{level}", torch.zeros(size, width))
            parents *= size
        last_size = config.last_level_size or 1
        self.register_buffer(f"anchors_{len(config.branching)}", torch.zeros(last_size, width))
        self.known = KnownItems(len(self.level_sizes))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        last = self.get_buffer(f"anchors_{len(self.config.branching)}")
        return (*self.config.branching, last.shape[0])

    def code_vectors(self, level: int) -> Float[Tensor, "codes width"]:
        """The centroids of level 1, the anchors of the others."""
        if level == 0:
            return self.get_buffer("centroids_0")[0].nan_to_num()
        return self.get_buffer(f"anchors_{level}")

    @torch.no_grad()
    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Cluster the items and align the clusters' codes.

        Raises:
            ValueError: there are no items, a vector is not finite, or a cluster has more items than
                `last_level_size`.
        """
        vectors = items.vectors
        if len(vectors) == 0:
            raise ValueError("gaoq needs at least one item; got none")
        parent = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        middle = vectors.mean(0, keepdim=True)  # [parents, width]
        codes = []
        for level, size in enumerate(self.config.branching):
            centroids = self.get_buffer(f"centroids_{level}").fill_(torch.nan)
            anchors = self.get_buffer(f"anchors_{level}")
            anchors.copy_(orthonormal_anchors(size, vectors.shape[1], generator))
            code = torch.empty_like(parent)
            for number in torch.unique(parent).tolist():
                rows = (parent == number).nonzero().squeeze(1)
                centres, label = kmeans(
                    vectors[rows],
                    size,
                    generator,
                    num_iterations=self.config.num_iterations,
                    balanced=True,
                )
                used, child = torch.unique(label, return_inverse=True)
                # DIFF: level 1 has one parent, to which nothing must be aligned; its codes are
                # aligned all the same, as any order of them serves.
                aligned = align(centres[used] - middle[number], anchors)
                centroids[number, aligned] = centres[used]
                code[rows] = aligned[child]
            codes.append(code)
            parent = parent * size + code
            middle = centroids.flatten(0, 1)  # [parents, width]
        counts = torch.bincount(parent)
        size = self.config.last_level_size or int(counts.max())
        if size < int(counts.max()):
            raise ValueError(
                f"last_level_size must be at least the items of the largest cluster, {counts.max()}"
                f"; got {size}; raise it or the branching"
            )
        last = len(self.config.branching)
        anchors = orthonormal_anchors(size, vectors.shape[1], generator).to(vectors)
        self.register_buffer(f"anchors_{last}", anchors)
        code = torch.empty_like(parent)
        for rows in torch.split(parent.argsort(stable=True), counts[counts > 0].tolist()):
            code[rows] = align(vectors[rows] - middle[parent[rows[0]]], anchors)
        self.known.remember(vectors, torch.stack([*codes, code], 1))

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The fitted codes of the items that were fitted, and codes of new ones.

        The reconstruction is the centroid of an item's last cluster.
        """
        codes, middle = self._codes_and_centroids(vectors)
        return Assignment(codes.cpu().numpy().astype(np.int32), middle, vectors)

    @torch.no_grad()
    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
        """Unit vectors from the last clusters' centroids to the items, for the anchors' costs.

        Their squared distance to an anchor is 2 - 2 cos.
        """
        return functional.normalize(vectors - self._codes_and_centroids(vectors)[1], dim=1)

    def _codes_and_centroids(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [items, levels] and the centroids of the last clusters [items, width]."""
        codes = self.known.find(vectors)
        new = (codes[:, 0] < 0).nonzero().squeeze(1)
        codes[new, :-1] = self._nearest_clusters(vectors[new])
        middle = self._centroids_of(codes)
        anchors = self.get_buffer(f"anchors_{len(self.config.branching)}")
        codes[new, -1] = ((vectors[new] - middle[new]) @ anchors.T).argmax(1)
        return codes, middle

    def _nearest_clusters(self, vectors: Tensor) -> Tensor:
        """Codes of all levels but the last, [items, levels - 1]."""
        parent = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        codes = []
        for level, size in enumerate(self.config.branching):
            centroids = self.get_buffer(f"centroids_{level}")
            rows = max(1, BLOCK_ENTRIES // centroids[0].numel())
            code = torch.cat(
                [
                    squared_distances(part[:, None], centroids[of_part])[:, 0]  # [items, codes]
                    .nan_to_num(nan=torch.inf)
                    .argmin(1)
                    for part, of_part in zip(
                        torch.split(vectors, rows), torch.split(parent, rows), strict=True
                    )
                ]
            )
            codes.append(code)
            parent = parent * size + code
        return torch.stack(codes, 1)

    def _centroids_of(self, codes: Int[Tensor, "items levels"]) -> Float[Tensor, "items width"]:
        """Centroids of the items' last clusters."""
        parent = torch.zeros_like(codes[:, 0])
        for level, size in enumerate(self.config.branching[:-1]):
            parent = parent * size + codes[:, level]
        last = len(self.config.branching) - 1
        return self.get_buffer(f"centroids_{last}")[parent, codes[:, last]]


def align(
    directions: Float[Tensor, "children width"], anchors: Float[Tensor, "codes width"]
) -> Int[Tensor, " children"]:
    """An anchor for each direction, all different, of the greatest sum of cosines."""
    cosines = functional.normalize(directions, dim=1) @ functional.normalize(anchors, dim=1).T
    chosen = linear_sum_assignment(cosines.double().cpu().numpy(), maximize=True)[1]
    return torch.from_numpy(chosen).to(directions.device)


def orthonormal_anchors(
    num_anchors: int, width: int, generator: torch.Generator
) -> Float[Tensor, "codes width"]:
    """Orthonormal random directions; beyond `width` of them another basis begins."""
    bases = []
    for _ in range(-(-num_anchors // width)):
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        bases.append(basis.T)
    return torch.cat(bases)[:num_anchors]
