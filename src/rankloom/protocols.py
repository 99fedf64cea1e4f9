"""What the training loop and the evaluation ask of a model."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rankloom.batch import Batch


@dataclass(frozen=True)
class Loss:
    """An objective and the named parts it is made of."""

    total: Float[Tensor, ""]
    """Scalar the loop differentiates."""
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Scalars for the record, detached by whoever stores them."""


@runtime_checkable
class Ranker(Protocol):
    """A model that scores rows: logits, never probabilities."""

    def __call__(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""


@runtime_checkable
class HasLoss(Protocol):
    """A model with an objective of its own, which the loop calls in place of the logits' loss."""

    def loss(self, batch: Batch) -> Loss:
        """The objective on a batch of training rows."""


@runtime_checkable
class HasDepths(Protocol):
    """A model that can give its logits after fewer or more of its layers or loops."""

    num_depths: int
    """Depths it was trained at, the shallowest included."""

    def depth_logits(
        self, batch: Batch, num_depths: int | None = None
    ) -> Float[Tensor, "depths batch tasks"]:
        """Logits of the first `num_depths` depths, shallowest first; None: of all.

        Layers beyond the deepest one that is asked for are not run.
        """
