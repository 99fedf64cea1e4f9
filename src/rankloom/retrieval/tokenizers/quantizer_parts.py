"""Settings of the parts of a learned quantiser: gradient estimators, choice of the last code."""

from typing import Annotated, Literal

from pydantic import Field

from rankloom.config import Config
from rankloom.layers.quantizers import (
    CodeChoice,
    GradientEstimator,
    NearestCodes,
    SinkhornCodes,
    rotation_trick,
    straight_through,
)


class StraightThrough(Config):
    """The gradient of the quantised vector goes to the encoder's output unchanged."""

    kind: Literal["straight_through"] = "straight_through"

    def build(self) -> GradientEstimator:
        """The estimator."""
        return straight_through


class RotationTrick(Config):
    """The gradient is turned and scaled as the encoder's output is to become its codes."""

    kind: Literal["rotation_trick"] = "rotation_trick"

    def build(self) -> GradientEstimator:
        """The estimator."""
        return rotation_trick


Estimator = Annotated[StraightThrough | RotationTrick, Field(discriminator="kind")]
"""How gradients pass the quantiser."""


class NearestLast(Config):
    """The last level takes the nearest code, as the others do."""

    kind: Literal["nearest"] = "nearest"

    def build(self) -> CodeChoice:
        """The choice."""
        return NearestCodes()


class SinkhornLast(Config):
    """In training, the items of a batch share out the last level's codes about equally."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    epsilon: float = Field(0.003, gt=0)
    """Regularisation of the transport, for distances that run from -1 to 1."""
    num_steps: int = Field(50, ge=1)
    """Steps of Sinkhorn's iteration."""

    def build(self) -> CodeChoice:
        """The choice."""
        return SinkhornCodes(self.epsilon, self.num_steps)


LastLevel = Annotated[NearestLast | SinkhornLast, Field(discriminator="kind")]
"""How the last level chooses its codes in training."""
