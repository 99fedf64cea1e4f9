"""How SIM searches a history: what a search says of every event, and its settings."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.config import Config
from rankloom.layers.mlp import linear
from rankloom.ranking.histories import History, HistoryShape
from rankloom.schema import NUM_RESERVED


class Relevance(NamedTuple):
    """What a search says of every event."""

    scores: Float[Tensor, "batch events"]
    """The higher, the sooner an event is found."""
    allowed: Bool[Tensor, "batch events"]
    """True at events that may be found; never at padding."""


class CategorySearch(nn.Module):
    """Events whose id is the target's, all equally relevant.

    Padding never matches, nor do ids that training did not keep: they may be of any category.

    Args:
        member: place of the id among the history's `id_members`.
    """

    def __init__(self, member: int) -> None:
        super().__init__()
        self.member = member

    def forward(self, history: History) -> Relevance:
        """Scores of all events."""
        ids = cast(Tensor, history.ids)[:, :, self.member]
        target = cast(Tensor, history.target_ids)[:, self.member, None]
        matches = (ids == target) & (ids >= NUM_RESERVED)
        return Relevance(matches.to(history.events.dtype), matches)


class EmbeddingSearch(nn.Module):
    """Inner products of the embeddings themselves."""

    def forward(self, history: History) -> Relevance:
        """Scores of all events."""
        # Not matmul, which an exported program could not repeat for a batch of no rows.
        scores = torch.bmm(history.keys, history.target.unsqueeze(2)).squeeze(2)
        return Relevance(scores, history.mask)


class ProjectedSearch(nn.Module):
    """Inner products of projections; the events' matrix is applied to the target instead.

    Args:
        target_dim: width of the target, and of the part of an event that is compared with it.
        dim: width of both projections.
    """

    def __init__(self, target_dim: int, dim: int) -> None:
        super().__init__()
        self.of_target = linear(target_dim, dim, bias=False)
        self.of_event = linear(target_dim, dim, bias=False)

    def forward(self, history: History) -> Relevance:
        """Scores of all events."""
        asked = self.of_target(history.target) @ self.of_event.weight  # [batch, target_dim]
        scores = torch.bmm(history.keys, asked.unsqueeze(2)).squeeze(2)
        return Relevance(scores, history.mask)


class HardSearch(Config):
    """Events of the target's category."""

    kind: Literal["hard"] = "hard"
    category: str | dict[str, str] | None = None
    """Id member that must be equal, of every history or by history; none: the second of those that
    the target has too, or the only one."""

    auxiliary_weight: ClassVar[float] = 0.0
    """Nothing is trained."""

    def build(self, shapes: Sequence[HistoryShape]) -> nn.ModuleList:
        """The searches in all histories.

        Raises:
            ValueError: no such history, it has no such member, or none with one id in event and
                target.
        """
        by_history = self.category if isinstance(self.category, dict) else {}
        unknown = sorted(by_history.keys() - {shape.name for shape in shapes})
        if unknown:
            raise ValueError(
                f"search.category names no history: {', '.join(unknown)}; they are "
                f"{', '.join(shape.name for shape in shapes) or 'none'}"
            )
        return nn.ModuleList(CategorySearch(self._member(shape)) for shape in shapes)

    def _member(self, shape: HistoryShape) -> int:
        """Place of the member that is compared among those that can be."""
        known = shape.id_members
        if not known:
            raise ValueError(
                f"history {shape.name} has no member with one id in an event and in the target, "
                'which hard search compares; set search.kind = "soft"'
            )
        default = known[min(1, len(known) - 1)]
        if isinstance(self.category, dict):
            name = self.category.get(shape.name, default)
        else:
            name = self.category or default
        if name not in known:
            raise ValueError(
                f"search.category of history {shape.name} must be one of {', '.join(known)}; "
                f"got {name}"
            )
        return known.index(name)


class SoftSearch(Config):
    """Events with the highest inner product with the target, trained by a loss of its own."""

    kind: Literal["soft"] = "soft"
    dim: int = Field(64, ge=0)
    """Width that event and target are projected to; 0: the embeddings as they are."""
    auxiliary_weight: float = Field(1.0, gt=0)
    """Weight of the search's own loss."""

    def build(self, shapes: Sequence[HistoryShape]) -> nn.ModuleList:
        """The searches in all histories."""
        return nn.ModuleList(
            ProjectedSearch(shape.target_dim, self.dim) if self.dim else EmbeddingSearch()
            for shape in shapes
        )


Search = Annotated[HardSearch | SoftSearch, Field(discriminator="kind")]
