"""OPQ: a rotation, then a code for each piece of the rotated vector. Codes have no order.

Source: Ge et al., CVPR 2013, "Optimized product quantization"; as a tokenizer, Hou et al. (RPG),
KDD 2025, arXiv:2506.05781, section 3.1.
Equations: y = R^T (x - mean), cut into m pieces y[1] .. y[m]; s[j] = argmin_k ||y[j] - C[j, k]||;
minimise sum_i ||x_i - mean - R c_i||^2 with R^T R = I over codes and centres (k-means a piece) and
over R (orthogonal Procrustes), in turn (section 3.1 of OPQ: its non-parametric solution), from the
parametric solution (section 3.2): principal directions, dealt to the pieces so that the products
of their variances are near equal.
Differs from the papers: RPG fits on items of the training sequences alone; the caller chooses the
items. Whitening, which RPG does first, belongs to the item encoder.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.kmeans import kmeans
from rankloom.layers.nearest import assign_with_margin
from rankloom.retrieval.protocols import Assignment, TokenizerItems

BLOCK_ROWS = 65_536
"""Items that are assigned at once."""


class OPQConfig(Config):
    """Settings of optimised product quantisation."""

    kind: Literal["opq"] = "opq"
    num_digits: int = Field(32, ge=1)
    """Pieces of a vector, each with a code of its own; they must divide the width."""
    num_codes: int = Field(256, ge=1)
    """Codes of each piece."""
    num_rotations: int = Field(20, ge=0)
    """Times that the rotation is learned anew; 0 keeps the parametric one."""
    num_iterations: int = Field(25, ge=1)
    """Most iterations of k-means at the start and at the end; between rotations there is one."""

    def build(self, width: int) -> "OPQ":
        """The tokenizer of vectors of a width.

        Raises:
            ValueError: the pieces do not divide the width.
        """
        return OPQ(self, width)


class OPQ(nn.Module):
    """Optimised product quantisation.

    With fewer distinct pieces than codes, the codes left over are never given.
    """

    mean: Tensor
    rotation: Tensor
    centres: Tensor

    def __init__(self, config: OPQConfig, width: int) -> None:
        super().__init__()
        digits = config.num_digits
        if width % digits:
            raise ValueError(
                f"num_digits must divide the width of the item vectors; got num_digits={digits}, "
                f"width {width}"
            )
        self.config = config
        self.level_sizes = (config.num_codes,) * digits
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rotation", torch.eye(width))
        self.register_buffer("centres", torch.zeros(digits, config.num_codes, width // digits))

    def code_vectors(self, level: int) -> Float[Tensor, "codes width"]:
        """The codes of a piece in the space of the vectors.

        Codes of different pieces are orthogonal; the mean and one code of each piece add up to the
        reconstruction.
        """
        piece = self.centres.shape[2]
        return self.centres[level] @ self.rotation[:, level * piece : (level + 1) * piece].T

    @torch.no_grad()
    def fit(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Learn rotation and codes.

        Raises:
            ValueError: there are no items, or a vector is not finite.
        """
        vectors = items.vectors
        if not len(vectors) or not torch.isfinite(vectors).all():
            raise ValueError("opq needs at least one item, and finite vectors")
        config = self.config
        self.mean.copy_(vectors.mean(0))
        centred = vectors - self.mean
        self.rotation.copy_(parametric_rotation(centred, config.num_digits))
        decoded = self._cluster(centred @ self.rotation, generator, config.num_iterations)
        for _ in range(config.num_rotations):
            left, _, right = torch.linalg.svd(centred.T @ decoded)
            self.rotation.copy_(left @ right)
            decoded = self._cluster(centred @ self.rotation, generator, 1, self.centres)
        if config.num_rotations:
            self._cluster(centred @ self.rotation, generator, config.num_iterations, self.centres)

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The nearest code of each piece; `confidence` is the margin of `assign_with_margin`."""
        num_items, digits = len(vectors), len(self.level_sizes)
        codes = np.empty((num_items, digits), np.int32)
        confidence = vectors.new_empty(num_items, digits)
        reconstruction = torch.empty_like(vectors)
        for begin in range(0, num_items, BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            rotated = (vectors[rows] - self.mean) @ self.rotation
            decoded = torch.empty_like(rotated)
            pieces = torch.split(rotated, self.centres.shape[2], dim=1)
            parts = torch.split(decoded, self.centres.shape[2], dim=1)
            for digit, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
                chosen, confidence[rows, digit] = assign_with_margin(piece, self.centres[digit])
                codes[rows, digit] = chosen.cpu().numpy()
                part.copy_(self.centres[digit][chosen])
            reconstruction[rows] = self.mean + decoded @ self.rotation.T
        return Assignment(codes, reconstruction, vectors, confidence)

    def _cluster(
        self,
        rotated: Tensor,
        generator: torch.Generator,
        num_iterations: int,
        start: Tensor | None = None,
    ) -> Tensor:
        """Fit the codes of every piece; the rotated vectors as their codes have them."""
        decoded = []
        for digit, piece in enumerate(torch.split(rotated, self.centres.shape[2], dim=1)):
            centres, labels = kmeans(
                piece,
                self.config.num_codes,
                generator,
                num_iterations=num_iterations,
                start=None if start is None else start[digit],
            )
            self.centres[digit] = centres
            decoded.append(centres[labels])
        return torch.cat(decoded, 1)  # [items, width]


def parametric_rotation(
    centred: Float[Tensor, "items width"], num_digits: int
) -> Float[Tensor, "width width"]:
    """Principal directions, dealt to the pieces (OPQ, section 3.2.2).

    From the greatest variance on, each goes to the piece with room whose variances' product is the
    smallest so far.
    """
    covariance = centred.T.double() @ centred.double() / len(centred)
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    # A direction without variance must not make its piece's product zero for good.
    floor = max(float(variances[-1]), 1e-30) * 1e-12
    logs = variances.clamp(min=floor).log() - np.log(floor)  # not negative
    room = len(variances) // num_digits
    pieces: list[list[int]] = [[] for _ in range(num_digits)]
    products = [0.0] * num_digits
    for place in reversed(range(len(variances))):
        open_pieces = [piece for piece in range(num_digits) if len(pieces[piece]) < room]
        chosen = min(open_pieces, key=lambda piece: products[piece])
        pieces[chosen].append(place)
        products[chosen] += float(logs[place])
    order = [place for piece in pieces for place in piece]
    return directions[:, order].to(centred.dtype)
