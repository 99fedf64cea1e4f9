"""One level of CapsID's capsules: it routes a residual and takes its share out of it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.capsule_routing import Votes, route
from rankloom.layers.kmeans import kmeans
from rankloom.retrieval.tokenizers.capsid_parts import (
    Centres,
    FromCentres,
    ItemScale,
    Pose,
    Poses,
    Reconstruction,
    ResidualCentres,
    ScaledIdentity,
    Scaling,
    SoftUpdate,
    Update,
)


class LevelConfig(Config):
    """Capsules of a level and how they route; all levels have the same."""

    num_codes: int = Field(256, ge=2)
    """Capsules of a level."""
    rounds: int = Field(3, ge=1, le=5)
    """Rounds of routing, T."""
    read_out: Literal["after_update", "as_published"] = "after_update"
    """Whether the weights are read after the last update of the agreements or before it."""
    kappa: float = Field(20.0, gt=0)
    """Factor of the agreements in the softmax, at the start."""
    learn_kappa: bool = True
    """Whether each level learns its kappa."""
    scaling: Scaling = ItemScale()
    """What each level's input is divided by before it is routed: item, mean or none."""
    pose: Pose = ScaledIdentity()
    """Pose matrices: scaled_identity, low_rank or full."""
    reconstruction: Reconstruction = FromCentres()
    """What leaves the residual: centres or poses."""
    update: Update = SoftUpdate()
    """Whose share leaves the residual: soft or hard_winner."""
    centres: Centres = ResidualCentres()
    """What a capsule's centre follows: residuals or outputs."""
    centre_decay: float = Field(0.99, ge=0, lt=1)
    """Decay per training step of the running means (centres and sigma)."""
    adapter_rank: int = Field(0, ge=0)
    """Rank of the routing adapters of each level; 0: none."""


@dataclass(frozen=True)
class LevelRouting:
    """What one level says of each row."""

    votes: Votes
    weights: Float[Tensor, "batch codes"]
    """Routing weights c; they sum to one."""
    inputs: Float[Tensor, "batch dim"]
    """The residual before the level, scaled."""
    reconstruction: Float[Tensor, "batch dim"]
    """What the level takes out of the residual."""
    residual: Float[Tensor, "batch dim"]
    """The residual after the level."""
    codes: Int[Tensor, " batch"]
    """The capsules of largest weight."""
    confidence: Float[Tensor, " batch"]
    """q: largest weight times length of the routed output."""

    @property
    def before(self) -> Float[Tensor, "batch dim"]:
        """The residual before the level."""
        return self.residual + self.reconstruction

    @property
    def margin(self) -> Float[Tensor, " batch"]:
        """Largest weight less the second largest: small near the border of two capsules."""
        best = self.weights.topk(2, dim=1).values
        return best[:, 0] - best[:, 1]


@dataclass(frozen=True)
class CapsuleTable:
    """What all levels say of many vectors, with no regard to where ids end."""

    codes: npt.NDArray[np.int32]
    """[items, levels]."""
    confidence: Float[Tensor, "items levels"]
    """q of each level."""
    margin: Float[Tensor, "items levels"]
    """Largest routing weight less the second."""
    residual: Float[Tensor, "items levels"]
    """Length of what is left after each level, of a vector of length 1."""


class _Adapter(nn.Module):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, dim).normal_(0, dim**-0.5))
        self.up = nn.Parameter(torch.zeros(rank, dim))

    def forward(self, r: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return r + r @ self.down.T @ self.up


class CapsuleLevel(nn.Module):
    """The capsules of one level."""

    kappa_log: Tensor
    centres: Tensor
    """[codes, dim] centres mu, in the space of the level's scaled input."""
    mass: Tensor
    """[codes] running mean of a capsule's total weight in a batch."""
    mean_length: Tensor
    """Running mean length of the level's input."""

    def __init__(self, config: LevelConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.pose: Poses = config.pose.build(dim, config.num_codes)
        kappa_log = torch.tensor(config.kappa).log()
        if config.learn_kappa:
            self.kappa_log = nn.Parameter(kappa_log)
        else:
            self.register_buffer("kappa_log", kappa_log)
        self.register_buffer("centres", torch.zeros(config.num_codes, dim))
        self.register_buffer("mass", torch.zeros(config.num_codes))
        self.register_buffer("mean_length", torch.tensor(1.0))
        self.adapter: nn.Identity | _Adapter = nn.Identity()
        if config.adapter_rank:
            self.add_adapter(config.adapter_rank)
        # DIFF: as published the weights are read before the last update.
        self.num_updates = config.rounds - int(config.read_out == "as_published")

    def forward(self, residual: Float[Tensor, "batch dim"]) -> LevelRouting:
        """Route a residual."""
        # DIFF: as published no `scaling` and no kappa (1, not learned).
        scale = self.config.scaling.scale(residual, self.sigma)
        inputs = residual / scale
        votes: Votes = self.pose(self.adapter(inputs))
        weights, output = route(votes, self.kappa_log.exp(), self.num_updates)
        shares = self.config.update.shares(weights)
        taken = self.config.reconstruction.reconstruct(votes, shares, self.centres)
        taken = taken * scale
        largest, codes = weights.max(1)
        confidence = largest * torch.linalg.vector_norm(output, dim=1)
        return LevelRouting(votes, weights, inputs, taken, residual - taken, codes, confidence)

    @torch.no_grad()
    def start(self, residual: Float[Tensor, "items dim"], generator: torch.Generator) -> None:
        """Scale, biases and centres by k-means of the level's inputs."""
        self.mean_length = torch.linalg.vector_norm(residual, dim=1).mean()
        inputs = residual / self.config.scaling.scale(residual, self.sigma)
        found, labels = kmeans(inputs, self.config.num_codes, generator)
        sizes = torch.bincount(labels, minlength=self.config.num_codes)
        # A centre that repeats another would share its weight; at zero it agrees with nothing.
        found = torch.where(sizes[:, None] > 0, found, 0.0)
        self.pose.biases.copy_(found)
        self.centres = found.clone()
        self.mass = sizes / len(labels)

    @torch.no_grad()
    def follow(self, routing: LevelRouting, alive: Float[Tensor, " batch"]) -> None:
        """Move centres and scale towards a batch; rows that are done do not count."""
        decay, count = self.config.centre_decay, alive.sum().clamp(min=1)
        weights = routing.weights * alive.unsqueeze(1) / count
        mass = weights.sum(0)  # [codes]
        sums = self.config.centres.sums(routing.votes, routing.inputs, weights)
        # New tensors, not new values in the old ones: backward still needs those.
        self.mass = decay * self.mass + (1 - decay) * mass
        rate = (1 - decay) / self.mass.clamp(min=torch.finfo(torch.float32).tiny)
        self.centres = self.centres + rate[:, None] * (sums - mass[:, None] * self.centres)
        if alive.any():
            lengths = torch.linalg.vector_norm(routing.before, dim=1)
            mean = (lengths * alive).sum() / count
            self.mean_length = decay * self.mean_length + (1 - decay) * mean

    @property
    def sigma(self) -> Float[Tensor, ""]:
        """What the centres are multiplied by where only the codes are known."""
        return self.config.scaling.sigma(self.mean_length)

    def add_adapter(self, rank: int) -> list[nn.Parameter]:
        """Put a fresh adapter, which changes nothing yet, before the votes; its parameters."""
        self.adapter = _Adapter(self.centres.shape[1], rank).to(self.centres.device)
        return list(self.adapter.parameters())
