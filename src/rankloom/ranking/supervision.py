"""Settings of how much a loss at every depth of a model counts."""

from typing import Annotated, Literal

from pydantic import Field

from rankloom.config import Config


class UniformSupervision(Config):
    """The mean of the losses at all depths."""

    kind: Literal["uniform"] = "uniform"

    def weights(self, num_depths: int) -> tuple[float, ...]:
        """A weight for every depth, shallowest first."""
        return num_depths * (1 / num_depths,)


class LastSupervision(Config):
    """The loss at the deepest depth alone."""

    kind: Literal["last"] = "last"

    def weights(self, num_depths: int) -> tuple[float, ...]:
        """As `UniformSupervision.weights`."""
        return (*(num_depths - 1) * (0.0,), 1.0)


class FirstSupervision(Config):
    """The loss at the shallowest depth alone: nothing deeper is run or trained."""

    kind: Literal["first"] = "first"

    def weights(self, num_depths: int) -> tuple[float, ...]:
        """As `UniformSupervision.weights`."""
        return (1.0, *(num_depths - 1) * (0.0,))


class WeightedSupervision(Config):
    """The losses times weights of one's own."""

    kind: Literal["weighted"] = "weighted"
    by_depth: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)
    """A weight for every depth, shallowest first; they are taken as they are."""

    def weights(self, num_depths: int) -> tuple[float, ...]:
        """As `UniformSupervision.weights`.

        Raises:
            ValueError: there are more or fewer weights than depths, or none is positive.
        """
        if len(self.by_depth) != num_depths or not any(self.by_depth):
            raise ValueError(
                f"supervision.by_depth needs {num_depths} weights, one for every depth with the "
                f"shallowest first, and a positive one among them; got {list(self.by_depth)}"
            )
        return self.by_depth


Supervision = Annotated[
    UniformSupervision | LastSupervision | FirstSupervision | WeightedSupervision,
    Field(discriminator="kind"),
]
