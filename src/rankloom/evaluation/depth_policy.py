"""When to stop, row by row, in a model that gives logits at several depths, and what to predict.

A policy is a frozen config that JSON holds whole: what was fitted on validation rows
(`rankloom.evaluation.depth_fit`) is in it, and serving needs nothing else. It sees a row's logits
at the depths so far and answers two questions: `stop`, whether the row is done at the deepest of
them, and `combine`, what is predicted if it is. With several tasks a row stops when the policy
would stop for every task: signals are the largest over tasks.

Kinds, with p the sigmoid of the logits:

- `change`: stop at the first depth l >= 1 where |p_l - p_(l-1)| is below the threshold;
- `entropy`: stop at the first depth where -p ln p - (1 - p) ln(1 - p) is below it;
- `halting`: stop at the first depth where a logistic regression, one per depth, finds it less
  likely than the threshold that the next depth lowers the row's loss;
- `ensemble`: never stop before the last of its depths, and predict a weighted sum of the logits.
"""

from typing import Annotated, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor

from rankloom.config import Config


class DepthPolicy(Protocol):
    """What stops a row, and what it predicts then."""

    def stop(self, logits: Float[Tensor, "depths rows tasks"]) -> Bool[Tensor, " rows"]:
        """Whether each row stops at the deepest of the given depths, shallowest first."""

    def combine(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, "rows tasks"]:
        """Logits of rows that stop at the deepest of the given depths."""


class Exit(Config):
    """A policy that stops a row once a signal falls below a threshold; it predicts as that depth.

    The signal is a number per row, at least 0, +inf where the kind has none yet.
    """

    threshold: float = Field(ge=0, allow_inf_nan=False)
    """Rows whose signal lies below it stop; 0 stops none."""

    def signal(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, " rows"]:
        """What is compared with the threshold at the deepest of the given depths, in float64."""
        raise NotImplementedError

    def stop(self, logits: Float[Tensor, "depths rows tasks"]) -> Bool[Tensor, " rows"]:
        """Whether each row's signal lies below the threshold."""
        return self.signal(logits) < self.threshold

    def combine(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, "rows tasks"]:
        """The logits of the depth at which the row stopped."""
        return logits[-1]


class ChangeExit(Exit):
    """Stop once a further depth changed the probability by less than a threshold."""

    kind: Literal["change"] = "change"
    """Name of the policy."""

    def signal(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, " rows"]:
        """The largest change of a task's probability since the depth before; +inf at the first."""
        if logits.shape[0] == 1:
            return logits.new_full(logits.shape[1:2], torch.inf, dtype=torch.float64)
        before, now = torch.sigmoid(logits[-2:].double())
        return (now - before).abs().amax(1)


class EntropyExit(Exit):
    """Stop once the prediction is sure enough."""

    kind: Literal["entropy"] = "entropy"
    """Name of the policy."""

    def signal(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, " rows"]:
        """The largest entropy of a task's prediction, in nats."""
        return entropy(logits[-1].double()).amax(1)


class HaltingUnit(Config):
    """Logistic regression of one depth over the features of `halting_features`."""

    weights: tuple[float, ...]
    """A weight per feature, on the features as they are."""
    bias: float
    """Added to the weighted sum."""


class HaltingExit(Exit):
    """Stop where going on is unlikely to help."""

    kind: Literal["halting"] = "halting"
    """Name of the policy."""
    units: tuple[HaltingUnit, ...]
    """One for every depth but the last."""

    def signal(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, " rows"]:
        """The probability that the next depth lowers the row's loss; 0 at the last depth."""
        depth = logits.shape[0] - 1
        if depth >= len(self.units):
            return logits.new_zeros(logits.shape[1], dtype=torch.float64)
        features = halting_features(logits)
        unit = self.units[depth]
        return torch.sigmoid(features @ features.new_tensor(unit.weights) + unit.bias)


class Ensemble(Config):
    """A weighted sum of the logits of the first depths, for all rows."""

    kind: Literal["ensemble"] = "ensemble"
    """Name of the policy."""
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    """A weight per depth, shallowest first. Their sum need not be 1: it is a temperature."""

    @model_validator(mode="after")
    def _not_all_zero(self) -> "Ensemble":
        if not any(self.weights):
            raise ValueError("an ensemble needs a weight above 0; all are 0")
        return self

    def stop(self, logits: Float[Tensor, "depths rows tasks"]) -> Bool[Tensor, " rows"]:
        """Every row once all weighted depths are there."""
        done = logits.shape[0] >= len(self.weights)
        return torch.full(logits.shape[1:2], done, device=logits.device)

    def combine(self, logits: Float[Tensor, "depths rows tasks"]) -> Float[Tensor, "rows tasks"]:
        """The weighted sum."""
        if logits.shape[0] != len(self.weights):
            raise ValueError(
                f"an ensemble of {len(self.weights)} depths needs the logits of as many; got "
                f"{logits.shape[0]}"
            )
        weights = logits.new_tensor(self.weights, dtype=torch.float64)
        return torch.einsum("d,drt->rt", weights, logits.double()).to(logits.dtype)


Policy = Annotated[ChangeExit | EntropyExit | HaltingExit | Ensemble, Field(discriminator="kind")]
"""Any of the policies, told apart by their `kind`."""

_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)


def read_policy(text: str) -> Policy:
    """A policy from its JSON text (`policy.model_dump_json()`).

    Raises:
        ValueError: the text is no policy.
    """
    return _POLICY.validate_json(text)


def apply_policy(
    policy: DepthPolicy, logits: Float[Tensor, "depths rows tasks"]
) -> tuple[Float[Tensor, "rows tasks"], Int[Tensor, " rows"]]:
    """What a policy predicts where the logits of all depths are known.

    Returns:
        logits [rows, tasks], and for every row the depth it stopped at, 0 being the shallowest. A
        row that nothing stops goes to the last depth.

    Raises:
        ValueError: there is no depth, or the policy needs others.
    """
    if not logits.shape[0]:
        raise ValueError("a policy needs the logits of a depth at least; got none")
    depth = torch.full(logits.shape[1:2], -1, dtype=torch.int64, device=logits.device)
    chosen = torch.empty_like(logits[0])
    for last in range(logits.shape[0]):
        running = depth < 0
        ends = last == logits.shape[0] - 1
        stops = running if ends else running & policy.stop(logits[: last + 1])
        if stops.any():
            chosen[stops] = policy.combine(logits[: last + 1, stops])
            depth[stops] = last
    return chosen, depth


def entropy(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Entropy of the prediction in nats, from logits; without cancellation at either end."""
    p = torch.sigmoid(logits)
    softplus = torch.nn.functional.softplus
    return p * softplus(-logits) + (1 - p) * softplus(logits)


def halting_features(
    logits: Float[Tensor, "depths rows tasks"],
) -> Float[Tensor, "rows features"]:
    """What the halting policy reads at the deepest of the given depths, in float64.

    Of every task: the logits so far, the changes of probability from depth to depth, and the
    entropies: 3 * depths - 1 features.
    """
    z = logits.double()
    p = torch.sigmoid(z)
    parts = torch.cat([z, p.diff(dim=0), entropy(z)])  # [features of a task, rows, tasks]
    return parts.permute(1, 0, 2).flatten(1)
