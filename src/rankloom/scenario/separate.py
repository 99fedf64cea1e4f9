"""One model per scenario: nothing is shared, not even the embeddings.

Source: the baseline of the multi-scenario papers (among them MI-DPG, CIKM 2023, arXiv:2603.21209).
Equation: logits = model[k](row) with k the row's scenario.
The papers do not say: whether the models are trained apart. Here they are trained in one run, each
    on its own rows of every batch; early stopping looks at all together. A scenario with one row in
    a training batch is normalised as at evaluation there, when the model has batch norm. An
    objective of the model's own is not used.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.scenarios import ScenarioRows, num_known, scenario_of
from rankloom.scenario.backbone import Backbone
from rankloom.schema import Schema


class SeparateConfig(Config):
    """The model that every scenario has one of."""

    backbone: Backbone = Backbone()
    """Ranking model."""


class Separate(nn.Module):
    """As many ranking models as there are known scenarios."""

    def __init__(self, config: SeparateConfig, schema: Schema) -> None:
        super().__init__()
        self.models = nn.ModuleList(config.backbone.build(schema) for _ in range(num_known(schema)))

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        return self._train(batch) if self.training else self._run(batch)

    # A compiled program gives every model all rows, and batch norm would learn from them.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _train(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        return self._run(batch)

    def _run(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        rows = ScenarioRows.of(scenario_of(batch), len(self.models))
        pairs = zip(self.models, rows.rows(), strict=True)
        return rows.merge([self._scores(model, batch.select(own)) for model, own in pairs])

    def _scores(self, model: nn.Module, own: Batch) -> Float[Tensor, "rows tasks"]:
        if not self.training or own.size > 1:
            return model(own)
        model.eval()
        logits = model(own)
        model.train()
        return logits
