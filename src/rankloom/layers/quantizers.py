"""Vector quantisers: nearest codes, the gradients that pass through them, and residual levels.

Sources: van den Oord et al. (VQ-VAE), NeurIPS 2017, arXiv:1711.00937, equation 3: codebook and
commitment losses, straight-through gradients; Zeghidour et al. (SoundStream), IEEE/ACM TASLP 2022,
arXiv:2107.03312, section III-C: residual levels, k-means start, revival of codes that are not used;
Fifty et al., ICLR 2025, arXiv:2410.06424: the rotation trick.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.kmeans import kmeans
from rankloom.layers.nearest import assign_nearest, assign_with_margin, squared_distances
from rankloom.layers.sinkhorn_codes import sinkhorn_codes

GradientEstimator = Callable[[Tensor, Tensor], Tensor]
"""(vectors, codes) -> the codes, whose gradient goes to the vectors; both [batch, dim]."""

CodeChoice = Callable[[Tensor, Tensor], Tensor]
"""(vectors [batch, dim], codebook [codes, dim]) -> codes [batch], in training."""

NORM_FLOOR = 1e-6
"""Below this norm a vector has no direction to turn from."""


def straight_through(
    vectors: Float[Tensor, "batch dim"], codes: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    """The codes; their gradient is that of the vectors, unchanged."""
    return vectors + (codes - vectors).detach()


def rotation_trick(
    vectors: Float[Tensor, "batch dim"], codes: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    """The codes, as a rotation and scaling of the vectors that counts as constant.

    Source: Fifty et al., ICLR 2025, arXiv:2410.06424, equation 4 and section 4.2. With e^ and q^
    the directions of vector and code and r = (e^ + q^) / ||e^ + q^||,

        q = (||q|| / ||e||) (e - 2 r r^T e + 2 q^ e^^T e),

    so the gradient is turned back from the code's direction to the vector's.

    Where the rotation is not defined (a vector or code of zero, or opposite ones) the gradient is
    straight-through.
    """
    # DIFF: the paper does not treat those cases.
    with torch.no_grad():
        vector_norm, code_norm = vectors.norm(dim=-1), codes.norm(dim=-1)  # [batch]
        direction = vectors / vector_norm.clamp(min=NORM_FLOOR).unsqueeze(-1)
        target = codes / code_norm.clamp(min=NORM_FLOOR).unsqueeze(-1)
        total = direction + target
        total_norm = total.norm(dim=-1)
        between = total / total_norm.clamp(min=NORM_FLOOR).unsqueeze(-1)
        scale = (code_norm / vector_norm.clamp(min=NORM_FLOOR)).unsqueeze(-1)
        defined = (vector_norm > NORM_FLOOR) & (code_norm > NORM_FLOOR) & (total_norm > NORM_FLOOR)
    turned = scale * (
        vectors
        - 2 * between * (vectors * between).sum(-1, keepdim=True)
        + 2 * target * (vectors * direction).sum(-1, keepdim=True)
    )
    return torch.where(defined.unsqueeze(-1), turned, straight_through(vectors, codes))


class NearestCodes:
    """Each vector takes its nearest code."""

    def __call__(
        self, vectors: Float[Tensor, "batch dim"], codebook: Float[Tensor, "codes dim"]
    ) -> Int[Tensor, " batch"]:
        """The codes."""
        return assign_nearest(vectors.detach(), codebook.detach())[0]


class SinkhornCodes:
    """The vectors of a batch share out the codes about equally; see `sinkhorn_codes`.

    Args:
        epsilon: regularisation of the transport.
        num_steps: Sinkhorn's steps.
    """

    def __init__(self, epsilon: float, num_steps: int) -> None:
        self.epsilon, self.num_steps = epsilon, num_steps

    def __call__(
        self, vectors: Float[Tensor, "batch dim"], codebook: Float[Tensor, "codes dim"]
    ) -> Int[Tensor, " batch"]:
        """The codes."""
        distances = squared_distances(vectors.detach(), codebook.detach())
        return sinkhorn_codes(distances, self.epsilon, self.num_steps)


class Codebook(nn.Module):
    """The codes of one level, with revival of those that are not used.

    Args:
        num_codes: codes.
        dim: width of a code.
        revive_after: steps of training without use after which a code moves to a vector of the
            batch, drawn by the global random state as dropout is; 0: never.
    """

    idle_steps: Tensor

    def __init__(self, num_codes: int, dim: int, *, revive_after: int) -> None:
        super().__init__()
        self.revive_after = revive_after if revive_after > 0 else torch.iinfo(torch.int64).max
        self.vectors = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1, 1) / num_codes)
        self.register_buffer("idle_steps", torch.zeros(num_codes, dtype=torch.int64))

    @torch.no_grad()
    def revive(self, vectors: Float[Tensor, "batch dim"]) -> None:
        """Move codes that were idle too long; before the codes of a step are read."""
        idle = self.idle_steps >= self.revive_after
        drawn = torch.randint(len(vectors), (len(idle),), device=vectors.device)
        self.vectors.copy_(torch.where(idle[:, None], vectors[drawn], self.vectors))
        self.idle_steps.masked_fill_(idle, 0)

    @torch.no_grad()
    def count(self, codes: Int[Tensor, " batch"]) -> None:
        """Note which codes a step used."""
        self.idle_steps += 1
        self.idle_steps[codes] = 0


@dataclass(frozen=True)
class Quantized:
    """A batch after all levels."""

    codes: Int[Tensor, "batch levels"]
    """int64 code of each level."""
    vectors: Float[Tensor, "batch dim"]
    """Sum of the codes' vectors, with the gradient estimator's gradient."""
    code_sum: Float[Tensor, "batch dim"]
    """The same, with the gradient of the codes."""
    codebook_losses: Float[Tensor, " levels"]
    """||sg(residual) - code||^2 of each level, mean over batch and width: moves the codes."""
    commitment_losses: Float[Tensor, " levels"]
    """||residual - sg(code)||^2 likewise: moves the vectors."""


@dataclass(frozen=True)
class NearestPath:
    """Vectors after all levels, by nearest codes."""

    codes: Int[Tensor, "items levels"]
    """int64 code of each level."""
    margins: Float[Tensor, "items levels"]
    """How clear each choice was; see `assign_with_margin`."""
    code_sum: Float[Tensor, "items dim"]
    """Sum of the codes' vectors."""
    last_residuals: Float[Tensor, "items dim"]
    """What the last level quantised."""


class ResidualQuantizer(nn.Module):
    """Levels of codes, each for what the levels before it left over.

    r[0] = z; c[l] = nearest code to r[l]; r[l + 1] = r[l] - e[l, c[l]]; the output is the sum of
    the chosen codes.

    Residuals subtract the codes as constants, so that the commitment loss of every level reaches
    the input; the estimator is applied once, to the input and the sum of the codes, so that the
    output's gradient reaches the input once and not once a level.

    Args:
        level_sizes: codes of each level.
        dim: width.
        estimator: how gradients pass from the output to the input.
        last_choice: how the last level chooses codes in `forward`; the others take the nearest
            there, and in `nearest` all do.
        revive_after: see `Codebook`.
    """

    def __init__(
        self,
        level_sizes: Sequence[int],
        dim: int,
        *,
        estimator: GradientEstimator = straight_through,
        last_choice: CodeChoice | None = None,
        revive_after: int = 0,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            Codebook(size, dim, revive_after=revive_after) for size in level_sizes
        )
        nearest = NearestCodes()
        self.choices: list[CodeChoice] = [nearest] * len(level_sizes)
        self.choices[-1] = last_choice or nearest
        self.estimator = estimator

    @property
    def codebooks(self) -> list[Codebook]:
        """The codes of each level."""
        return cast(list[Codebook], list(self.levels))

    def forward(self, vectors: Float[Tensor, "batch dim"]) -> Quantized:
        """Quantise a batch; in training, codes that lie idle are revived first."""
        residual = vectors
        code_sum = torch.zeros_like(vectors)
        codes, codebook_losses, commitment_losses = [], [], []
        for level, choose in zip(self.codebooks, self.choices, strict=True):
            if self.training:
                level.revive(residual)
            chosen = choose(residual, level.vectors)  # [batch]
            if self.training:
                level.count(chosen)
            code = functional.embedding(chosen, level.vectors)  # [batch, dim]
            codebook_losses.append(functional.mse_loss(code, residual.detach()))
            commitment_losses.append(functional.mse_loss(residual, code.detach()))
            residual = residual - code.detach()
            code_sum = code_sum + code
            codes.append(chosen)
        return Quantized(
            torch.stack(codes, 1),
            self.estimator(vectors, code_sum),
            code_sum,
            torch.stack(codebook_losses),
            torch.stack(commitment_losses),
        )

    @torch.no_grad()
    def start(
        self,
        vectors: Float[Tensor, "items dim"],
        generator: torch.Generator,
        *,
        balanced: bool = False,
    ) -> None:
        """Codes by k-means, level by level, each on what the nearest codes before it leave over.

        Args:
            vectors: a sample of the inputs.
            generator: decides the start of k-means.
            balanced: whether k-means keeps clusters of equal size; the codes are its centres.
        """
        residual = vectors
        for level in self.codebooks:
            centres, _ = kmeans(residual, len(level.vectors), generator, balanced=balanced)
            level.vectors.copy_(centres)
            residual = residual - centres[assign_nearest(residual, centres)[0]]

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "items dim"]) -> NearestPath:
        """The nearest codes of every level, nothing being learned."""
        residual = last_residual = vectors
        codes, margins = [], []
        for level in self.codebooks:
            chosen, margin = assign_with_margin(residual, level.vectors)
            last_residual = residual
            residual = residual - level.vectors[chosen]
            codes.append(chosen)
            margins.append(margin)
        return NearestPath(
            torch.stack(codes, 1), torch.stack(margins, 1), vectors - residual, last_residual
        )
