"""RQ-KMeans: residual k-means, level by level, with no network.

Sources: Luo et al. (QARM), arXiv:2411.11739, and Ju et al. (GRID), arXiv:2507.22224, for residual
k-means as a tokenizer; Deng et al. (OneRec), arXiv:2502.18965, section 3.1, for balanced clusters.
Equations: r[0] = x; C[l] = the k-means centres of all r[l]; s[l] = argmin_k ||r[l] - C[l, k]||;
r[l + 1] = r[l] - C[l, s[l]].
With normalised residuals (GRID's open code), r[l] is divided by its own norm before it is clustered
and the centre is subtracted from that.
Differs from the papers: see `# DIFF:`.
The papers do not say: what becomes of the norms, which codes do not carry, when residuals are
normalised. Here the reconstruction uses their means over the fitted items.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.kmeans import kmeans
from rankloom.layers.nearest import assign_nearest, assign_with_margin, balance_prices
from rankloom.retrieval.protocols import Assignment, TokenizerItems

BLOCK_ROWS = 65_536
"""Items that are assigned at once."""
NORM_FLOOR = 1e-12
"""Smallest norm that is divided by."""


class RQKMeansConfig(Config):
    """Settings of RQ-KMeans."""

    kind: Literal["rq_kmeans"] = "rq_kmeans"
    level_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((256, 256, 256), min_length=1)
    """Codes of each level."""
    balanced: bool = False
    """Whether codes are given to about equally many items."""
    normalise_residuals: bool = False
    """Divide every residual by its norm before it is clustered."""
    num_iterations: int = Field(25, ge=1)
    """Most iterations of k-means a level; with `batch_size`, mini-batches a level."""
    batch_size: int | None = Field(None, ge=1)
    """Items of a mini-batch, for very many items; none: every iteration reads all."""

    def build(self, width: int) -> "RQKMeans":
        """The tokenizer of vectors of a width.

        Raises:
            ValueError: balanced clusters by mini-batches.
        """
        return RQKMeans(self, width)


class RQKMeans(nn.Module):
    """Residual k-means.

    With fewer distinct residuals than codes at a level, the codes left over are never given.
    Equal vectors have equal codes.
    """

    scales: Tensor

    def __init__(self, config: RQKMeansConfig, width: int) -> None:
        super().__init__()
        if config.balanced and config.batch_size is not None:
            raise ValueError(
                "balanced clusters need all items at once; set batch_size = none, or balanced = "
                "false"
            )
        self.config = config
        self.level_sizes = config.level_sizes
        self.rescale: Rescale = _unit if config.normalise_residuals else _unchanged
        for level, size in enumerate(self.level_sizes):
            self.register_buffer(f"centres_{level}", torch.zeros(size, width))
            # Added to squared distances; zero without balance.
            self.register_buffer(f"prices_{level}", torch.zeros(size))
        # What the centres of each level are multiplied with in a reconstruction.
        self.register_buffer("scales", torch.ones(len(self.level_sizes)))

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"]:
        """The centres of a level."""
        return self.get_buffer(f"centres_{level}")

    @torch.no_grad()
    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Cluster the items' vectors, then what each level leaves over.

        Raises:
            ValueError: there are no items, or a vector is not finite.
        """
        residual = items.vectors
        scale = residual.new_ones(())
        for level, size in enumerate(self.level_sizes):
            residual, norms = self.rescale(residual)
            scale = scale * norms.mean()
            self.scales[level] = scale
            centres, _ = kmeans(
                residual,
                size,
                generator,
                num_iterations=self.config.num_iterations,
                balanced=self.config.balanced,
                batch_size=self.config.batch_size,
            )
            self.code_vectors(level).copy_(centres)
            if self.config.balanced:
                # DIFF: the labels of balanced k-means exist for the fitted items only. Prices that
                # even out the loads make a rule that holds for new items as well.
                self._prices(level).copy_(balance_prices(residual, centres))
            residual = residual - centres[self._nearest(level, residual)]

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The nearest codes; `confidence` is the margin of `assign_with_margin`."""
        num_items, num_levels = len(vectors), len(self.level_sizes)
        codes = np.empty((num_items, num_levels), np.int32)
        confidence = vectors.new_empty(num_items, num_levels)
        reconstruction = torch.zeros_like(vectors)
        for begin in range(0, num_items, BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            residual = vectors[rows]
            for level in range(num_levels):
                centres = self.code_vectors(level)
                residual, _ = self.rescale(residual)
                chosen, confidence[rows, level] = assign_with_margin(
                    residual, centres, prices=self._prices(level)
                )
                codes[rows, level] = chosen.cpu().numpy()
                reconstruction[rows] += self.scales[level] * centres[chosen]
                residual = residual - centres[chosen]
        return Assignment(codes, reconstruction, vectors, confidence)

    @torch.no_grad()
    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
        """What the last level quantises, for `uniform_mapping`."""
        residuals = torch.empty_like(vectors)
        for begin in range(0, len(vectors), BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            residual, _ = self.rescale(vectors[rows])
            for level in range(len(self.level_sizes) - 1):
                residual = residual - self.code_vectors(level)[self._nearest(level, residual)]
                residual, _ = self.rescale(residual)
            residuals[rows] = residual
        return residuals

    def _nearest(self, level: int, residual: Tensor) -> Tensor:
        """The codes of a level: [items]."""
        return assign_nearest(residual, self.code_vectors(level), prices=self._prices(level))[0]

    def _prices(self, level: int) -> Tensor:
        return self.get_buffer(f"prices_{level}")


Rescale = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Residuals [items, width] -> what is clustered, alike, and the norms taken out of it [items]."""


def _unchanged(residual: Tensor) -> tuple[Tensor, Tensor]:
    return residual, residual.new_ones(len(residual))


def _unit(residual: Tensor) -> tuple[Tensor, Tensor]:
    norms = residual.norm(dim=1)
    return residual / norms.clamp(min=NORM_FLOOR)[:, None], norms
