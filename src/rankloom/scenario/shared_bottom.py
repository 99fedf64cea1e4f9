"""Shared-bottom: one network for all, a small tower for every scenario or task.

Source: Caruana, Machine Learning 28, 1997 (multi-task learning by hard sharing); a tower per
    scenario as Scenario-Wise-Rec (arXiv:2412.17374) has it.
Equation: h = activation(bottom(x)), logits = tower[k](h) with k the row's scenario, or one tower
    for every task.
Differs from the paper: the bottom is any ranking model of the catalog whose last layer gives h;
    the default is a plain network.
The paper does not say: what a scenario without a tower gets. Here the mean of all towers' logits.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.mlp import ActivationName, activation_builder
from rankloom.scenario.backbone import Backbone
from rankloom.scenario.heads import Heads, ScenarioHeads, Tower
from rankloom.schema import Schema


class SharedBottomConfig(Config):
    """The bottom and the towers."""

    bottom: Backbone = Backbone()
    """Ranking model whose outputs the towers read."""
    width: int = Field(64, gt=0)
    """Outputs of the bottom."""
    activation: ActivationName = "relu"
    """Activation of the bottom's outputs."""
    heads: Heads = ScenarioHeads()
    """What has a tower: scenario or task."""
    tower: Tower = Tower()
    """The towers."""


class SharedBottom(nn.Module):
    """A ranking model whose last layers are apart."""

    def __init__(self, config: SharedBottomConfig, schema: Schema) -> None:
        super().__init__()
        self.bottom = config.bottom.build_bottom(schema, config.width)
        self.activation = activation_builder(config.activation)(config.width)
        outputs = config.heads.tower_outputs(schema)
        self.heads = config.heads.build(
            schema,
            [config.tower.build(config.width, outputs) for _ in range(config.heads.count(schema))],
        )

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        hidden = self.activation(self.bottom(batch))  # [batch, width]
        return self.heads([hidden] * len(self.heads.towers), batch)
