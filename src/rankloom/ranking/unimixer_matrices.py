"""The mixing matrices of UniMixer and UniMixer-Lite: how many there are, and what they may be.

Source and equations: `rankloom.ranking.unimixer`.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.sinkhorn import sinkhorn


class SinkhornMatrices(Config):
    """Positive matrices whose rows sum to one, and whose columns nearly do."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    num_steps: int = Field(5, ge=1)
    """Sinkhorn steps."""
    symmetric: bool = True
    """Whether a matrix and its transpose are averaged first."""
    start_temperature: float = Field(1.0, gt=0)
    """Temperature of the first batch; a low one makes matrices sparse."""
    end_temperature: float = Field(0.05, gt=0)
    """Temperature after `temperature_steps` batches; in between it moves in a line."""
    temperature_steps: int = Field(10_000, ge=1)
    """Training batches until the last temperature is reached."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the starting values before Sinkhorn."""

    def build(self) -> nn.Module:
        """What turns parameters into mixing matrices."""
        return _Sinkhorn(self)

    def starting_std(self, size: int) -> float:
        """Standard deviation of the starting values of a matrix of `size` rows and columns."""
        return self.init_std


class FreeMatrices(Config):
    """Matrices of any real values."""

    kind: Literal["free"] = "free"

    def build(self) -> nn.Module:
        """What turns parameters into mixing matrices."""
        return _Free()

    def starting_std(self, size: int) -> float:
        """Standard deviation of the starting values of a matrix of `size` rows and columns."""
        return size**-0.5


Matrices = Annotated[SinkhornMatrices | FreeMatrices, Field(discriminator="kind")]


class OwnMatrices(Config):
    """A matrix for every block."""

    kind: Literal["own"] = "own"

    def build(self, num_blocks: int, size: int, std: float) -> nn.Module:
        """Makes the matrices of `num_blocks` blocks."""
        return _Drawn(num_blocks, size, std)


class SharedMatrix(Config):
    """One matrix for all blocks."""

    kind: Literal["shared"] = "shared"

    def build(self, num_blocks: int, size: int, std: float) -> nn.Module:
        """Makes the one matrix."""
        return _Drawn(1, size, std)


class BasisMatrices(Config):
    """A matrix for every block, each a weighted sum of the same few (UniMixer-Lite)."""

    kind: Literal["bases"] = "bases"
    num_bases: int = Field(4, ge=1)
    """Matrices that all blocks share."""

    def build(self, num_blocks: int, size: int, std: float) -> nn.Module:
        """Makes the matrices of `num_blocks` blocks."""
        return _Bases(num_blocks, size, self.num_bases, std)


LocalMatrices = Annotated[OwnMatrices | SharedMatrix | BasisMatrices, Field(discriminator="kind")]


class FullMatrix(Config):
    """A weight for every pair of blocks."""

    kind: Literal["full"] = "full"

    def build(self, num_blocks: int, std: float) -> nn.Module:
        """Makes the matrix over `num_blocks` blocks."""
        return _Drawn(1, num_blocks, std)


class LowRankMatrix(Config):
    """A product of two narrow matrices (UniMixer-Lite)."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(256, ge=1)
    """Rank; no more than there are blocks."""

    def build(self, num_blocks: int, std: float) -> nn.Module:
        """Makes the matrix over `num_blocks` blocks."""
        return _LowRank(num_blocks, min(self.rank, num_blocks), std)


GlobalMatrix = Annotated[FullMatrix | LowRankMatrix, Field(discriminator="kind")]


class _Sinkhorn(nn.Module):
    """Mixing matrices at a temperature that moves with every batch of training."""

    steps: Tensor

    def __init__(self, config: SinkhornMatrices) -> None:
        super().__init__()
        self.config = config
        self.transposed_share = 0.5 if config.symmetric else 0.0
        # A buffer: it is saved with the weights, which fit the temperature they were trained at.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def temperature(self) -> Float[Tensor, ""]:
        start, end = self.config.start_temperature, self.config.end_temperature
        return start + (end - start) * (self.steps / self.config.temperature_steps).clamp(max=1)

    def forward(self, *weights: Tensor) -> list[Tensor]:
        temperature = self.temperature()
        if self.training:
            self.steps += 1  # DIFF: with forward passes, so that any training loop will do.
        mirrored = [torch.lerp(v, v.mT, self.transposed_share) for v in weights]
        return [sinkhorn(v / temperature, self.config.num_steps) for v in mirrored]


class _Free(nn.Module):
    def forward(self, *weights: Tensor) -> list[Tensor]:
        return list(weights)


class _Drawn(nn.Module):
    """Square matrices that are parameters themselves."""

    def __init__(self, count: int, size: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, size, size) * std)

    def forward(self) -> Float[Tensor, "count size size"]:
        return self.weight


class _Bases(nn.Module):
    """Square matrices that are weighted sums of a few."""

    def __init__(self, count: int, size: int, num_bases: int, std: float) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.randn(num_bases, size, size) * std)
        self.shares = nn.Parameter(torch.randn(count, num_bases) * num_bases**-0.5)

    def forward(self) -> Float[Tensor, "count size size"]:
        return torch.tensordot(self.shares, self.bases, dims=1)


class _LowRank(nn.Module):
    """One square matrix of low rank."""

    def __init__(self, size: int, rank: int, std: float) -> None:
        super().__init__()
        scale = (std * rank**-0.5) ** 0.5  # of either factor, so that the product has `std`
        self.left = nn.Parameter(torch.randn(1, size, rank) * scale)
        self.right = nn.Parameter(torch.randn(1, rank, size) * scale)

    def forward(self) -> Float[Tensor, "1 size size"]:
        return self.left @ self.right
