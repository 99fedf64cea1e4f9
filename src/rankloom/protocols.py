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
