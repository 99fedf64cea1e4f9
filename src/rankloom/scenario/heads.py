"""What a model of several heads has one of: every scenario, or every task.

Multi-task models serve many scenarios by a head per scenario; the head of the row's own scenario
gives the prediction and takes the loss. The same models have a head per task where they are used as
their papers do.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.mlp import MLP, ActivationName
from rankloom.layers.scenarios import ScenarioRows, num_known, scenario_of
from rankloom.schema import Schema


class ScenarioHeads(Config):
    """A head for every known scenario, with a logit for every task."""

    kind: Literal["scenario"] = "scenario"

    def count(self, schema: Schema) -> int:
        """Heads on some data.

        Raises:
            ValueError: the data has no scenarios.
        """
        if schema.num_scenarios < 2:
            raise ValueError(
                "heads of scenarios need data with scenarios; name their column in roles.scenario "
                'of the data\'s schema, or set heads = {kind = "task"}'
            )
        return num_known(schema)

    def build(self, schema: Schema, towers: Sequence[nn.Module]) -> "OwnScenario":
        """The part that applies the towers, one for every head."""
        return OwnScenario(towers)

    def tower_outputs(self, schema: Schema) -> int:
        """Logits of every tower."""
        return schema.num_tasks


class TaskHeads(Config):
    """A head for every task, with one logit; scenarios are not looked at."""

    kind: Literal["task"] = "task"

    def count(self, schema: Schema) -> int:
        """Heads on some data."""
        return schema.num_tasks

    def build(self, schema: Schema, towers: Sequence[nn.Module]) -> "EveryTask":
        """The part that applies the towers, one for every head."""
        return EveryTask(towers)

    def tower_outputs(self, schema: Schema) -> int:
        """Logits of every tower."""
        return 1


Heads = Annotated[ScenarioHeads | TaskHeads, Field(discriminator="kind")]


class OwnScenario(nn.Module):
    """Towers of scenarios, each over its own rows."""

    def __init__(self, towers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(
        self,
        inputs: Sequence[Float[Tensor, "batch dim"]],
        batch: Batch,
        *shared: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch tasks"]:
        """Logits.

        Args:
            inputs: what every head reads, one tensor per head; the same one for all is fine.
            batch: tells the scenarios.
            shared: what all heads read beside; every tower is given its rows of these too.
        """
        rows = ScenarioRows.of(scenario_of(batch), len(self.towers))
        parts = zip(own_rows(rows, inputs), *(rows.split(x) for x in shared), strict=True)
        pairs = zip(self.towers, parts, strict=True)
        return rows.merge([tower(*part) for tower, part in pairs])


class EveryTask(nn.Module):
    """Towers of tasks, each over all rows."""

    def __init__(self, towers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(
        self,
        inputs: Sequence[Float[Tensor, "batch dim"]],
        batch: Batch,
        *shared: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch tasks"]:
        """Logits; arguments as in `OwnScenario`."""
        pairs = zip(self.towers, inputs, strict=True)
        return torch.cat([tower(x, *shared) for tower, x in pairs], 1)  # [batch, tasks]


def own_rows(
    rows: ScenarioRows, inputs: Sequence[Float[Tensor, "batch dim"]]
) -> list[Float[Tensor, "rows dim"]]:
    """Of every scenario's input, its own rows."""
    if all(x is inputs[0] for x in inputs):  # one gather in place of one for every scenario
        return list(rows.split(inputs[0]))
    return [x.index_select(0, own) for x, own in zip(inputs, rows.rows(), strict=True)]


class Tower(Config):
    """The small network of a head."""

    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers; empty: the head is linear."""
    activation: ActivationName = "relu"
    """Activation of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""

    # No batch norm: a batch may have one row of a scenario, or none.

    def build(self, in_features: int, out_features: int) -> MLP:
        """The network."""
        return MLP(
            in_features,
            self.hidden,
            out_features=out_features,
            activation=self.activation,
            dropout=self.dropout,
        )

    def build_hidden(self, in_features: int) -> MLP:
        """The network without its last layer, for what reads its hidden units.

        Its outputs are the last hidden layer's; without hidden layers, its inputs.
        """
        return MLP(in_features, self.hidden, activation=self.activation, dropout=self.dropout)
