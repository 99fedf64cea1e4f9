"""What the training loop and the evaluation ask of a model."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.batch import Batch


@dataclass(frozen=True)
class Loss:
    """An objective and the named parts it is made of."""

    total: Float[Tensor, ""]
    """Scalar the loop differentiates."""
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Scalars for the record, detached by whoever stores them."""


class TrainingBatch(Protocol):
    """What the training loop asks of a batch; all else is between the loader and the model."""

    @property
    def size(self) -> int:
        """Rows."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Any:
        """The batch on another device."""


@runtime_checkable
class Ranker(Protocol):
    """A model that scores rows: logits, never probabilities."""

    def __call__(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""


@runtime_checkable
class HasLoss(Protocol):
    """A model with an objective of its own, which the loop calls in place of the logits' loss."""

    # Any: a ranker takes a Batch, other models batches of their own kind (`TrainingBatch`).
    def loss(self, batch: Any) -> Loss:
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


@runtime_checkable
class HasDepthSteps(HasDepths, Protocol):
    """A model whose rows can be taken one depth deeper at a time, some of them only.

    The states are the model's own; whoever steps it (`rankloom.evaluation.adaptive`) only hands
    them back. Stepping all rows to a depth and reading its logits gives those of `depth_logits`.
    """

    def start_depths(self, batch: Batch) -> Any:
        """State of all rows at the shallowest depth."""

    def next_depth(self, state: Any) -> Any:
        """The state one depth deeper; the one given is not needed any more."""

    def select_rows(self, state: Any, rows: Int[Tensor, " selected"]) -> Any:
        """The state of some rows, in the given order."""

    def state_logits(self, state: Any) -> Float[Tensor, "rows tasks"]:
        """Logits at the state's depth."""
