"""RQ-VAE: an autoencoder whose latent vector is quantised level by level.

Sources: Rajput et al. (TIGER), NeurIPS 2023, arXiv:2305.05065, section 3.1; Lee et al., CVPR 2022,
arXiv:2203.01941, for residual quantisation; Zheng et al. (LC-Rec), ICDE 2024, arXiv:2311.09049, for
Sinkhorn's assignment at the last level; Fifty et al., ICLR 2025, arXiv:2410.06424, for the rotation
trick.
Equations: z = encode(x); r[0] = z; c[l] = argmin_k ||r[l] - e[l, k]||;
r[l + 1] = r[l] - e[l, c[l]];
x^ = decode(sum_l e[l, c[l]]);
L = ||x - x^||^2 + sum_l ||sg(r[l]) - e[l, c[l]]||^2 + beta ||r[l] - sg(e[l, c[l]])||^2.
Differs from the papers: see `# DIFF:`. Codes that lie idle are revived, which TIGER does not do;
`revive_after = 0` leaves that out. TIGER's further code for items that collide is a collision
policy, LC-Rec's mapping is `uniform_mapping`.
The papers do not say: which vectors inputs are standardised to (here zero mean and unit variance a
column, as in a public reproduction that reaches TIGER's figures), how many items k-means starts on
(TIGER: a first batch; here a sample of all).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.mlp import MLP
from rankloom.layers.quantizers import Quantized, ResidualQuantizer
from rankloom.protocols import Loss
from rankloom.retrieval.protocols import Assignment, TokenizerItems, VectorBatch
from rankloom.retrieval.tokenizers.quantizer_parts import (
    Estimator,
    LastLevel,
    NearestLast,
    StraightThrough,
)

BLOCK_ROWS = 16_384
"""Items that are encoded at once outside training."""


class RQVAEConfig(Config):
    """Settings of RQ-VAE."""

    kind: Literal["rq_vae"] = "rq_vae"
    level_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((256, 256, 256), min_length=1)
    """Codes of each level."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256, 128)
    """Hidden layers of the encoder; the decoder has them the other way round."""
    latent_dim: int = Field(32, ge=1)
    """Width of the latent vector and the codes."""
    commitment: float = Field(0.25, ge=0)
    """beta: weight of the loss that keeps the encoder's output near its codes."""
    estimator: Estimator = StraightThrough()
    """How gradients pass the quantiser: straight_through or rotation_trick."""
    last_level: LastLevel = NearestLast()
    """How the last level chooses codes in training: nearest or sinkhorn."""
    standardise: bool = True
    """Bring every column of the inputs to zero mean and unit variance."""
    start_items: int = Field(16_384, ge=1)
    """Most items that codes are started on by k-means."""
    balanced_start: bool = False
    """Whether that k-means keeps clusters of equal size."""
    revive_after: int = Field(100, ge=0)
    """Training steps without use after which a code moves to an item of the batch; 0: never."""

    def build(self, width: int) -> "RQVAE":
        """The tokenizer of vectors of a width."""
        return RQVAE(self, width)


@dataclass(frozen=True)
class Coded:
    """A batch after encoder, quantiser and decoder."""

    target: Float[Tensor, "batch width"]
    """What is to be reconstructed: the standardised inputs."""
    reconstruction: Float[Tensor, "batch width"]
    """The decoder's output."""
    quantized: Quantized
    """Codes and their losses."""

    @property
    def reconstruction_loss(self) -> Float[Tensor, ""]:
        """Mean squared error over batch and width."""
        return functional.mse_loss(self.reconstruction, self.target)


class RQVAE(nn.Module):
    """Residual-quantised autoencoder; codes are started by `start`, before training."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: RQVAEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.level_sizes = config.level_sizes
        self.encoder = MLP(width, config.hidden, out_features=config.latent_dim)
        self.decoder = MLP(config.latent_dim, config.hidden[::-1], out_features=width)
        self.quantizer = ResidualQuantizer(
            config.level_sizes,
            config.latent_dim,
            estimator=config.estimator.build(),
            last_choice=config.last_level.build(),
            revive_after=config.revive_after,
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    @torch.no_grad()
    def start(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Statistics of the inputs; codes by k-means on the outputs of the encoder as it is.

        Raises:
            ValueError: there are no items, or a vector is not finite.
        """
        vectors = items.vectors
        if not len(vectors) or not torch.isfinite(vectors).all():
            raise ValueError("rq_vae needs at least one item, and finite vectors")
        if self.config.standardise:
            self.mean.copy_(vectors.mean(0))
            deviation = vectors.std(0, correction=0)
            # A constant column stays at zero.
            self.scale.copy_(torch.where(deviation > 1e-7, deviation, 1.0))
        rows = torch.randperm(len(vectors), generator=generator)[: self.config.start_items]
        latents = self.encode(self.standardised(vectors[rows.to(vectors.device)]))
        self.quantizer.start(latents, generator, balanced=self.config.balanced_start)

    def standardised(self, vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Vectors as the encoder reads them."""
        return (vectors - self.mean) / self.scale

    def encode(self, inputs: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """Latent vectors of standardised inputs."""
        return self.encoder(inputs)

    def forward(self, vectors: Float[Tensor, "batch width"]) -> Coded:
        """Encode, quantise, decode."""
        target = self.standardised(vectors)
        quantized = self.quantizer(self.encode(target))
        return Coded(target, self.decoder(quantized.vectors), quantized)

    def loss(self, batch: VectorBatch) -> Loss:
        """Reconstruction, codebook and commitment losses."""
        # DIFF: squares are means over the width, not sums, as in the public implementations.
        coded = self(batch.vectors)
        parts = {
            "reconstruction": coded.reconstruction_loss,
            "codebook": coded.quantized.codebook_losses.sum(),
            "commitment": coded.quantized.commitment_losses.sum(),
        }
        total = (
            parts["reconstruction"]
            + parts["codebook"]
            + self.config.commitment * parts["commitment"]
        )
        return Loss(total, parts)

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """The nearest codes at every level; `confidence` is the margin of `assign_with_margin`.

        Reconstruction and target are standardised.
        """
        num_items, num_levels = len(vectors), len(self.level_sizes)
        codes = np.empty((num_items, num_levels), np.int32)
        confidence = vectors.new_empty(num_items, num_levels)
        reconstruction = torch.empty_like(vectors)
        for begin in range(0, num_items, BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            path = self.quantizer.nearest(self.encode(self.standardised(vectors[rows])))
            codes[rows] = path.codes.cpu().numpy()
            confidence[rows] = path.margins
            reconstruction[rows] = self.decoder(path.code_sum)
        return Assignment(codes, reconstruction, self.standardised(vectors), confidence)

    @torch.no_grad()
    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items dim"]:
        """What the last level quantises, for `uniform_mapping`."""
        residuals = vectors.new_empty(len(vectors), self.config.latent_dim)
        for begin in range(0, len(vectors), BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            latents = self.encode(self.standardised(vectors[rows]))
            residuals[rows] = self.quantizer.nearest(latents).last_residuals
        return residuals

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"]:
        """The codes of a level, in the latent space."""
        return self.quantizer.codebooks[level].vectors.detach()
