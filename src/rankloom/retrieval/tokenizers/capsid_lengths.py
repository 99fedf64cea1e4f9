"""CapsID's rules of when an id ends."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from rankloom.config import Config

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

STOP_REASONS = ("confidence", "residual", "all levels", "fixed length")
"""Why an id ends; where both hold, confidence."""


class _Thresholds(Config):
    tau: float = Field(0.82, gt=0)
    """Confidence from which an id ends. What a level can reach depends on the length that is routed
    and on kappa: with the defaults of both nearly every item is above this one at once."""
    eps: float = Field(0.08, ge=0)
    """Length of the residual, of a vector of length 1, up to which an id ends."""

    def stop_probability(self, confidence: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How likely a row ends at a level, as far as gradients need it."""
        return torch.sigmoid((confidence - self.tau) / 0.05)


class PublishedLength(_Thresholds):
    """An id ends when routing is confident or little of the vector is left."""

    kind: Literal["published"] = "published"

    def stops(
        self, confidence: Float[Tensor, " batch"], left: Float[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Which rows end at a level in training."""
        return (confidence >= self.tau) | (left <= self.eps)

    def lengths(
        self, codes: IntArray, confidence: FloatArray, left: FloatArray
    ) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """Length of each id and why it ended there, from [items, levels]."""
        return _first_stop(confidence >= self.tau, left <= self.eps)


class DistinctiveLength(_Thresholds):
    """As published, but no id ends while others have the same codes so far.

    Judged among the vectors that are tokenized in one call, which must be the whole catalogue.
    Training runs all levels, as nothing there says whether the codes are the item's own.
    """

    kind: Literal["distinctive"] = "distinctive"
    max_sharing: int = Field(1, ge=1)
    """Items that may have the codes of an id that ends, itself included."""

    def stops(
        self, confidence: Float[Tensor, " batch"], left: Float[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Which rows end at a level in training."""
        return torch.zeros_like(confidence, dtype=torch.bool)

    def lengths(
        self, codes: IntArray, confidence: FloatArray, left: FloatArray
    ) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """Length of each id and why it ended there, from [items, levels]."""
        distinctive = sharing(codes) <= self.max_sharing
        return _first_stop((confidence >= self.tau) & distinctive, (left <= self.eps) & distinctive)


class FixedLength(Config):
    """Every id has the same number of codes (ablation)."""

    kind: Literal["fixed"] = "fixed"
    length: int | None = Field(None, ge=1)
    """Codes of an id; None: all levels."""

    def stops(
        self, confidence: Float[Tensor, " batch"], left: Float[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Which rows end at a level in training."""
        return torch.zeros_like(confidence, dtype=torch.bool)

    def stop_probability(self, confidence: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How likely a row ends at a level, as far as gradients need it."""
        return torch.zeros_like(confidence)

    def lengths(
        self, codes: IntArray, confidence: FloatArray, left: FloatArray
    ) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """Length of each id and why it ended there, from [items, levels]."""
        levels = codes.shape[1] if self.length is None else self.length
        reason = STOP_REASONS.index("all levels" if levels == codes.shape[1] else "fixed length")
        return np.full(len(codes), levels, np.int32), np.full(len(codes), reason, np.int8)


LengthRule = Annotated[
    PublishedLength | DistinctiveLength | FixedLength, Field(discriminator="kind")
]


def sharing(codes: IntArray) -> npt.NDArray[np.int64]:
    """[items, levels] how many items have an item's codes up to and including a level."""
    counts = np.empty(codes.shape, np.int64)
    groups = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        keys = groups * (int(codes[:, level].max(initial=0)) + 1) + codes[:, level]
        _, groups, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        groups = groups.reshape(-1)
        counts[:, level] = sizes[groups]
    return counts


def _first_stop(
    confident: BoolArray, little_left: BoolArray
) -> tuple[IntArray, npt.NDArray[np.int8]]:
    stopped = confident | little_left
    stopped[:, -1] = True
    last = stopped.argmax(1)
    rows = np.arange(len(last))
    reasons = np.where(confident[rows, last], 0, np.where(little_left[rows, last], 1, 2))
    return (last + 1).astype(np.int32), reasons.astype(np.int8)
