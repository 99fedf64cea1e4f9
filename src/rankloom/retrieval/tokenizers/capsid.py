"""CapsID: semantic ids by capsule routing, with residuals taken softly and lengths by confidence.

Source: CapsID and SemanticBPE, arXiv:2605.05096, as far as public accounts of it go; the full text
    was not to be had, and no code is published. A reconstruction.
Equations, for a vector x of length 1, r_0 = x, level l with capsules k:
    votes           u_k = W_k r_{l-1} / sigma + b_k
    routing         `layers.capsule_routing`, T rounds -> weights c, output o
    code            s_l = argmax_k c_k, confidence q_l = max_k c_k ||o||
    residual        r_l = r_{l-1} - sigma sum_k c_k mu_k    (published: squash(u_k) for mu_k)
    length          first l with q_l >= tau or ||r_l|| <= eps, else all levels
    loss            ||x - xhat||^2, xhat = x - r_L, + spread + length + what `capsid_losses` says
Differs from the paper by default, since its description does not work as it stands (each has a
switch; `CapsIDConfig.strict_paper` sets all of them as published):
    - the weights are read after the T-th update of the agreements, not before it: as published,
      one round gives every item the same code (`read_out`)
    - a learned factor kappa on the agreements: without it 256 weights stay near 1/256
    - sigma makes every level's input equally long (`scaling`): deep residuals are short, and would
      be squashed away
    - the residual loses what the centres mu say, not what the votes say, which can copy it
      (`reconstruction`); W_k = w I with fixed w, so that the votes are never held (`pose`)
    - an id also goes on while another item has the same codes (`length`): confidence says that a
      choice is clear, not that the item is told apart
    - centre tie, reconstruction from the codes and usage entropy are in the loss
The paper does not say: widths (the residual's, as it loses what capsules say), the start (poses
    0.5 I, biases k-means centres of the residuals, level by level), weights of the losses, how deep
    levels are trained (an item that is done goes on with probability 0.1), what a code's centre is
    (the running mean of what is routed to its capsule, by weight).
"""

from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.protocols import Loss
from rankloom.retrieval.protocols import Assignment, TokenizerItems, VectorBatch
from rankloom.retrieval.tokenizers.capsid_lengths import (
    STOP_REASONS,
    DistinctiveLength,
    FixedLength,
    LengthRule,
    PublishedLength,
)
from rankloom.retrieval.tokenizers.capsid_level import (
    CapsuleLevel,
    CapsuleTable,
    LevelConfig,
    LevelRouting,
)
from rankloom.retrieval.tokenizers.capsid_losses import (
    LossWeights,
    centre_distances,
    entropy,
    expected_length,
    spread,
)
from rankloom.retrieval.tokenizers.capsid_parts import (
    FromPoses,
    Full,
    LearnedProjection,
    NoScale,
    OutputCentres,
    PrincipalProjection,
    winner,
)

_BLOCK_FLOATS = 2**24
"""Numbers that routing may hold at once outside training."""


class CapsIDConfig(LevelConfig):
    """Sizes of the capsules, how they route, and when an id ends."""

    kind: Literal["capsid"] = "capsid"
    dim: int = Field(64, gt=0)
    """Width the item vectors are projected to; at most theirs."""
    num_levels: int = Field(6, ge=1)
    """Codes of the longest id."""
    projection: Annotated[PrincipalProjection | LearnedProjection, Field(discriminator="kind")] = (
        PrincipalProjection()
    )
    """How vectors become `dim` wide: principal or learned."""
    length: LengthRule = DistinctiveLength()
    """When an id ends: published, distinctive or fixed."""
    weights: LossWeights = LossWeights()
    """Weights of the losses."""
    continue_probability: float = Field(0.1, ge=0, le=1)
    """How likely an item that is done goes on to the next level in training."""
    start_sample: int = Field(20_000, ge=1)
    """Items that the start is computed from, at most."""

    @classmethod
    def strict_paper(cls, **changes: Any) -> "CapsIDConfig":
        """As published throughout; degenerate with ordinary vectors, for comparison only.

        Weights stay near equal, ids never end by confidence, and with one round every item has the
        same codes.
        """
        published: dict[str, Any] = {
            "read_out": "as_published",
            "kappa": 1.0,
            "learn_kappa": False,
            "scaling": NoScale(),
            "projection": LearnedProjection(),
            "pose": Full(),
            "reconstruction": FromPoses(),
            "centres": OutputCentres(),
            "length": PublishedLength(),
            "weights": LossWeights(usage=0.0, centre_tie=0.0, code_reconstruction=0.0),
        }
        return cls(**(published | changes))

    def build(self, width: int) -> "CapsID":
        """The tokenizer of vectors of a width.

        Raises:
            ValueError: the fixed length is beyond the levels.
        """
        return CapsID(self, width)


class CapsID(nn.Module):
    """Levels of capsules."""

    def __init__(self, config: CapsIDConfig, width: int) -> None:
        super().__init__()
        rule = config.length
        if isinstance(rule, FixedLength) and (rule.length or 1) > config.num_levels:
            raise ValueError(
                "length of fixed ids must be at most num_levels; "
                f"got length={rule.length}, num_levels={config.num_levels}"
            )
        self.config = config
        self.dim = min(config.dim, width)
        self.project = config.projection.build(width, self.dim)
        levels = [CapsuleLevel(config, self.dim) for _ in range(config.num_levels)]
        self.levels = cast(list[CapsuleLevel], nn.ModuleList(levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (self.config.num_codes,) * self.config.num_levels

    def route(self, x: Float[Tensor, "batch dim"]) -> list[LevelRouting]:
        """All levels on projected vectors of length 1."""
        routings = list[LevelRouting]()
        residual = x
        for level in self.levels:
            routings.append(level(residual))
            residual = routings[-1].residual
        return routings

    def normalise(self, vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """Projected vectors of length 1; one at the centre of all has length 0."""
        return functional.normalize(self.project(vectors), dim=1)

    @torch.no_grad()
    def start(self, items: TokenizerItems, generator: torch.Generator) -> None:
        """Projection of all vectors; level by level scale, biases and centres of a sample."""
        self.project.start(items.vectors)
        chosen = torch.randperm(items.num_items, generator=generator)[: self.config.start_sample]
        residual = self.normalise(items.vectors[chosen.to(items.vectors.device)])
        for level in self.levels:
            level.start(residual, generator)
            residual = torch.cat([level(block).residual for block in self._blocks(residual)])

    def loss(self, batch: VectorBatch) -> Loss:
        """The objective on some items; in training the centres and scales follow them.

        Returns:
            The weighted sum, and its parts without their weights.
        """
        x = self.normalise(batch.vectors)
        routings = self.route(x)
        alive = self._alive(routings)  # [batch, levels]
        weights, margin = self.config.weights, self.config.weights.margin(batch.progress)
        soft, hard = torch.zeros_like(x), torch.zeros_like(x)
        ties, spreads, usages = list[Tensor](), list[Tensor](), list[Tensor]()
        for column, (level, routing) in enumerate(zip(self.levels, routings, strict=True)):
            on = alive[:, column]
            soft = soft + on.unsqueeze(1) * routing.reconstruction
            said = winner(routing.weights) @ level.centres
            hard = hard + on.unsqueeze(1) * level.sigma * said
            ties.append(on * centre_distances(routing, level.centres))
            spreads.append(on * spread(routing.weights, margin))
            mean = (on.unsqueeze(1) * routing.weights).sum(0) / on.sum().clamp(min=1)  # [codes]
            usages.append(entropy(mean))
        rows = alive.sum()
        confidence = torch.stack([routing.confidence for routing in routings], dim=1)
        parts = {
            "route": (x - soft).square().sum(1).mean(),
            "code_reconstruction": (x - hard).square().sum(1).mean(),
            "centre_tie": torch.stack(ties).sum() / rows,
            "spread": torch.stack(spreads).sum() / rows,
            "length": expected_length(self.config.length.stop_probability(confidence)).mean(),
            "usage_entropy": torch.stack(usages).mean(),
        }
        # DIFF: as published without centre tie, code reconstruction and usage (weight 0).
        total = (
            parts["route"]
            + weights.code_reconstruction * parts["code_reconstruction"]
            + weights.centre_tie * parts["centre_tie"]
            + weights.spread * parts["spread"]
            + weights.length * parts["length"]
            - weights.usage * parts["usage_entropy"]
        )
        if self.training:
            for column, (level, routing) in enumerate(zip(self.levels, routings, strict=True)):
                level.follow(routing, alive[:, column])
        return Loss(total, parts)

    @torch.no_grad()
    def table(self, vectors: Float[Tensor, "items width"]) -> CapsuleTable:
        """Codes, confidence, margin and residual of every level, in blocks."""
        codes, confidence, margin, left = ([], [], [], [])
        for block in self._blocks(vectors):
            routings = self.route(self.normalise(block))
            codes.append(torch.stack([r.codes for r in routings], 1))
            confidence.append(torch.stack([r.confidence for r in routings], 1))
            margin.append(torch.stack([r.margin for r in routings], 1))
            lengths = [torch.linalg.vector_norm(r.residual, dim=1) for r in routings]
            left.append(torch.stack(lengths, 1))
        numbers = torch.cat(codes).cpu().numpy().astype(np.int32)
        return CapsuleTable(numbers, torch.cat(confidence), torch.cat(margin), torch.cat(left))

    @torch.no_grad()
    def assign(self, vectors: Float[Tensor, "items width"]) -> Assignment:
        """Codes of vectors, why their ids end, and all levels' codes to extend them with.

        The reconstruction is that of the winners' centres up to an id's end; it and its target are
        in the projected space, where vectors have length 1. Confidence is the margin of the
        routing weights; the paper's q is in `table`.
        """
        table = self.table(vectors)
        lengths, reasons = self.config.length.lengths(
            table.codes, table.confidence.cpu().numpy(), table.residual.cpu().numpy()
        )
        present = np.arange(table.codes.shape[1]) < lengths[:, None]
        codes = np.where(present, table.codes, -1).astype(np.int32)
        target = torch.cat([self.normalise(block) for block in self._blocks(vectors)])
        said = torch.zeros_like(target)
        for column, level in enumerate(self.levels):
            rows = torch.from_numpy(np.flatnonzero(present[:, column])).to(target.device)
            winners = torch.from_numpy(codes[present[:, column], column]).to(target.device).long()
            said.index_add_(0, rows, level.sigma * level.centres[winners])
        return Assignment(
            codes, said, target, table.margin, reasons, STOP_REASONS, alternatives=table.codes
        )

    def code_vectors(self, level: int) -> Float[Tensor, "codes dim"]:
        """The centres of a level's capsules."""
        return self.levels[level].centres

    def _alive(self, routings: list[LevelRouting]) -> Float[Tensor, "batch levels"]:
        """One where a level counts: up to an item's end, and sometimes beyond it in training."""
        columns = [torch.ones_like(routings[0].confidence)]
        for routing in routings[:-1]:
            left = torch.linalg.vector_norm(routing.residual, dim=1)
            stops = self.config.length.stops(routing.confidence, left)
            if self.training:
                goes_on = torch.rand(stops.shape, device=stops.device)
                stops = stops & (goes_on >= self.config.continue_probability)
            columns.append(columns[-1] * (~stops).to(columns[-1].dtype))
        return torch.stack(columns, dim=1)

    def _blocks(self, vectors: Tensor) -> tuple[Tensor, ...]:
        floats = self.config.pose.row_floats(self.dim, self.config.num_codes)
        return torch.split(vectors, max(_BLOCK_FLOATS // floats, 1))
