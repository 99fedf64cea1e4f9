"""LETTER: RQ-VAE whose codes also agree with interactions and spread evenly.

Source: Wang et al., CIKM 2024, arXiv:2405.07314, section 3.2.
Equations, with z^ the sum of an item's codes e[l, c[l]] and h its collaborative vector:
L = L_RQ-VAE + alpha L_CF + beta L_Div;
L_CF = - mean_i log( exp(z^_i . h_i) / sum_j exp(z^_i . h_j) ), j over the batch;
L_Div = - mean_i log( exp(e_i . e_+) / sum_{k != c_i} exp(e_i . e_k) ) for each level, where e_i is
the item's code and e_+ another code of its group, drawn anew each time. Groups come from k-means
with equal sizes over the level's codes, once an epoch.
As in the official code, a level's losses are averaged over levels, L_CF's gradient reaches the
encoder through the gradient estimator, and codes start by k-means with clusters of equal size.
Differs from the paper: see `# DIFF:`. The official encoder's hidden layers, of 2,048 to 64 units,
are for language-model vectors of width 4,096; the default here suits widths below 1,000.
The paper's ranking-guided generation loss, a temperature on the generator's logits, belongs to the
generator: set its temperature, not this tokenizer.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.kmeans import kmeans
from rankloom.protocols import Loss
from rankloom.retrieval.protocols import Assignment, TokenizerItems, VectorBatch
from rankloom.retrieval.tokenizers.quantizer_parts import SinkhornLast
from rankloom.retrieval.tokenizers.rq_vae import RQVAEConfig


class LETTERConfig(Config):
    """Settings of LETTER."""

    kind: Literal["letter"] = "letter"
    network: RQVAEConfig = RQVAEConfig(
        level_sizes=(256, 256, 256, 256), last_level=SinkhornLast(), balanced_start=True
    )
    """The RQ-VAE it is built on; its `latent_dim` is the collaborative vectors' width."""
    collaborative_weight: float = Field(0.1, ge=0)
    """alpha: weight of the agreement with collaborative vectors. The official code publishes .1 for
    Beauty and .01 for Instruments."""
    diversity_weight: float = Field(1e-4, ge=0)
    """beta: weight of the codes' diversity."""
    num_groups: int = Field(10, ge=1)
    """Groups of a level's codes in the diversity loss."""

    def build(self, width: int) -> "LETTER":
        """The tokenizer of vectors of a width."""
        return LETTER(self, width)


class LETTER(nn.Module):
    """RQ-VAE with collaborative and diversity losses."""

    collaborative: Tensor
    seen: Tensor
    round: Tensor

    def __init__(self, config: LETTERConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.network = config.network.build(width)
        self.level_sizes = self.network.level_sizes
        # Kept with the weights: a run that is resumed needs them.
        self.register_buffer("collaborative", torch.zeros(0, config.network.latent_dim))
        for level, size in enumerate(self.level_sizes):
            self.register_buffer(f"groups_{level}", torch.zeros(size, dtype=torch.int64))
        # Items since the codes were grouped last, and how often they were.
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("round", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Start the RQ-VAE, keep the collaborative vectors, group the codes.

        Raises:
            ValueError: there are no collaborative vectors, or of another width than the codes.
        """
        if items.collaborative is None:
            raise ValueError(
                "letter needs collaborative item vectors, learned from interactions; state where "
                "they come from beside the item vectors (sasrec or ppmi)"
            )
        width, latent_dim = items.collaborative.shape[1], self.config.network.latent_dim
        if width != latent_dim:
            raise ValueError(
                f"network.latent_dim must be the width of the collaborative vectors; got "
                f"latent_dim={latent_dim}, width {width}"
            )
        self.network.start(items, generator)
        self.collaborative = items.collaborative.to(self.seen.device).clone()
        self._group_codes()

    def loss(self, batch: VectorBatch) -> Loss:
        """RQ-VAE's losses, agreement with the collaborative vectors, diversity of the codes."""
        # Once an epoch's worth of items, before the codes of this step are read.
        if self.training and int(self.seen) >= len(self.collaborative):
            self._group_codes()
        coded = self.network(batch.vectors)
        quantized = coded.quantized
        if self.training:
            self.seen += batch.size
        diversity = [
            diversity_loss(book.vectors, quantized.codes[:, level], self.groups(level))
            for level, book in enumerate(self.network.quantizer.codebooks)
        ]
        parts = {
            "reconstruction": coded.reconstruction_loss,
            "codebook": quantized.codebook_losses.mean(),
            "commitment": quantized.commitment_losses.mean(),
            "collaborative": collaborative_loss(quantized.vectors, self.collaborative[batch.rows]),
            "diversity": torch.stack(diversity).mean(),
        }
        total = (
            parts["reconstruction"]
            + parts["codebook"]
            + self.config.network.commitment * parts["commitment"]
            + self.config.collaborative_weight * parts["collaborative"]
            + self.config.diversity_weight * parts["diversity"]
        )
        return Loss(total, parts)

    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """As RQ-VAE's; collaborative vectors are not needed."""
        return self.network.assign(vectors)

    def last_residuals(self, vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items dim"]:
        """What the last level quantises, for `uniform_mapping`."""
        return self.network.last_residuals(vectors)

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"]:
        """The codes of a level, in the latent space."""
        return self.network.code_vectors(level)

    def groups(self, level: int) -> Int[Tensor, " codes"]:
        """The group of each code of a level."""
        return self.get_buffer(f"groups_{level}")

    @torch.no_grad()
    def _group_codes(self) -> None:
        """Group each level's codes by k-means with equal sizes; seeded by how often it was done."""
        generator = torch.Generator().manual_seed(int(self.round))
        for level, book in enumerate(self.network.quantizer.codebooks):
            num_groups = min(self.config.num_groups, len(book.vectors))
            _, groups = kmeans(book.vectors, num_groups, generator, balanced=True)
            self.groups(level).copy_(groups)
        self.seen.zero_()
        self.round += 1


def collaborative_loss(
    quantized: Float[Tensor, "batch dim"], collaborative: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Cross-entropy of each item's own collaborative vector among those of the batch.

    Items with a vector of zero, which were in no training sequence, are left out.
    """
    # DIFF: the paper's items all have one.
    known = collaborative.any(1)
    if not known.any():
        return quantized.sum() * 0
    logits = (quantized @ collaborative.T).masked_fill(~known, -torch.inf)  # [batch, batch]
    targets = torch.where(known, torch.arange(len(known), device=known.device), -100)
    return functional.cross_entropy(logits, targets, ignore_index=-100)


def diversity_loss(
    codebook: Float[Tensor, "codes dim"],
    chosen: Int[Tensor, " batch"],
    groups: Int[Tensor, " codes"],
) -> Float[Tensor, ""]:
    """Cross-entropy of another code of the item's group among all codes but its own.

    The other code is drawn by the global random state, as dropout is. Items whose code is alone in
    its group have no other code and are left out.
    """
    own = functional.one_hot(chosen, len(codebook)).bool()  # [batch, codes]
    partners = (groups[chosen][:, None] == groups) & ~own
    drawn = torch.rand(partners.shape, device=partners.device).masked_fill(~partners, -1).argmax(1)
    has_partner = partners.any(1)
    if not has_partner.any():
        return codebook.sum() * 0
    code = functional.embedding(chosen, codebook)
    logits = (code @ codebook.T).masked_fill(own, -torch.inf)
    return functional.cross_entropy(
        logits, torch.where(has_partner, drawn, -100), ignore_index=-100
    )
