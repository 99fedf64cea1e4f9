"""MI-DPG's exchangeable parts but its fusions: what conditions, and bounds of mutual information.

The equations stand in `rankloom.scenario.mi_dpg`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.mlp import MLP, linear
from rankloom.layers.row_conditions import RowConditions, ScenarioBatch, SingleRows
from rankloom.layers.scenarios import ScenarioEmbedding, num_known, scenario_of
from rankloom.schema import Schema

LENGTH_EPS = 1e-2
"""Added to squared lengths: nothing is generated at first, and zeros have no direction."""


class Conditioned(NamedTuple):
    """A batch with its conditions."""

    rows: RowConditions
    """Which condition every row has."""
    batch: Batch
    """The rows, in the order that `rows` speaks of."""
    order: ScenarioBatch | None
    """How they were sorted; None: they were not."""
    vectors: Float[Tensor, "conditions dim"]
    """The conditions: the s of the equations."""
    scenario: Int[Tensor, " conditions"]
    """Scenario of every condition, 0 to K."""


class ScenarioAlone(Config):
    """The scenario alone: weights are made once for a scenario, not for a row."""

    kind: Literal["scenario"] = "scenario"
    dim: int = Field(16, gt=0)
    """Width of a scenario's vector."""

    def build(self, schema: Schema, backbone: nn.Module) -> "ScenarioConditions":
        """What makes the conditions."""
        return ScenarioConditions(num_known(schema), self.dim)


class ScenarioAndContext(Config):
    """The scenario and the row's own fields: every row has weights of its own."""

    kind: Literal["context"] = "context"
    dim: int = Field(16, gt=0)
    """Width of a scenario's vector."""
    fields: tuple[str, ...] = ()
    """Fields whose embeddings stand beside it, without gradient; empty: all."""

    def build(self, schema: Schema, backbone: nn.Module) -> "ContextConditions":
        """What makes the conditions."""
        return ContextConditions(num_known(schema), self.dim, backbone, self.fields)


Condition = Annotated[ScenarioAlone | ScenarioAndContext, Field(discriminator="kind")]


def _embedding(num_scenarios: int, dim: int) -> ScenarioEmbedding:
    # Vectors of about unit length: the fields' own tiny start would leave scenarios alike for long.
    return ScenarioEmbedding(num_scenarios, dim, init_std=dim**-0.5)


class ScenarioConditions(nn.Module):
    """A condition for every scenario, the unknown one included."""

    by_row = False
    """Whether rows have conditions of their own."""

    def __init__(self, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.scenarios = _embedding(num_scenarios, dim)
        self.num_scenarios = num_scenarios
        self.width = dim

    def forward(self, batch: Batch, backbone: nn.Module) -> Conditioned:
        """The conditions, and the batch sorted by them."""
        order = ScenarioBatch.of(batch, self.num_scenarios)
        vectors = self.scenarios.all()  # [scenarios + 1, dim]
        every = torch.arange(vectors.shape[0], device=vectors.device)
        return Conditioned(order.rows, order.batch, order, vectors, every)


class ContextConditions(nn.Module):
    """A condition for every row: its scenario's vector beside embeddings of its fields.

    The embeddings are the backbone's own, and the conditions pass them no gradient.

    Raises:
        ValueError: the backbone has no embeddings of fields, or not of all those that are named.
    """

    by_row = True
    """Whether rows have conditions of their own."""

    def __init__(
        self, num_scenarios: int, dim: int, backbone: nn.Module, fields: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.scenarios = _embedding(num_scenarios, dim)
        self.path, embedding = _field_embedding(backbone)
        known = embedding.field_names
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(
                f"no such field in the condition: {', '.join(unknown)}; "
                f"the fields are {', '.join(known)}"
            )
        places = [known.index(name) for name in fields or known]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.places: Tensor
        self.width = dim + len(places) * embedding.dim

    def forward(self, batch: Batch, backbone: nn.Module) -> Conditioned:
        """The conditions; the batch stays as it is."""
        scenario = scenario_of(batch)
        with torch.no_grad():
            fields = backbone.get_submodule(self.path)(batch)  # [batch, fields, dim]
        chosen = fields.detach().index_select(1, self.places).flatten(1)
        vectors = torch.cat([self.scenarios(scenario), chosen], 1)  # [batch, width]
        return Conditioned(SingleRows(batch.size), batch, None, vectors, scenario.long())


def _field_embedding(backbone: nn.Module) -> tuple[str, FieldEmbedding]:
    """The widest embedding of all fields, and its path."""
    found = [(path, m) for path, m in backbone.named_modules() if isinstance(m, FieldEmbedding)]
    if not found:
        raise ValueError(
            f"{type(backbone).__name__} has no embeddings of fields to take a context from; "
            "use condition.kind = 'scenario'"
        )
    return max(found, key=lambda pair: (len(pair[1].field_names), pair[1].dim))


class NoInformation(Config):
    """No term."""

    kind: Literal["none"] = "none"

    def build(self, num_scenarios: int, width: int, sizes: Sequence[int]) -> None:
        """Nothing."""
        return


class Classifier(Config):
    """Barber-Agakov: a network tells the scenario from what was generated."""

    kind: Literal["classifier"] = "classifier"
    weight: float = Field(0.1, gt=0)
    """Weight of the term in the objective."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the network's hidden layers."""

    def build(self, num_scenarios: int, width: int, sizes: Sequence[int]) -> "ClassifierBound":
        """The term."""
        return ClassifierBound(num_scenarios, sum(sizes), self.hidden)


class InfoNCE(Config):
    """InfoNCE: a scenario's condition tells its own generated weights from those of others."""

    kind: Literal["info_nce"] = "info_nce"
    weight: float = Field(0.1, gt=0)
    """Weight of the term in the objective."""
    temperature: float = Field(0.1, gt=0)
    """What similarities are divided by."""

    def build(self, num_scenarios: int, width: int, sizes: Sequence[int]) -> "InfoNCEBound":
        """The term over layers of these sizes."""
        return InfoNCEBound(num_scenarios, width, sizes, self.temperature)


Information = Annotated[NoInformation | Classifier | InfoNCE, Field(discriminator="kind")]


class ClassifierBound(nn.Module):
    """CE(scenario, q(S)): the mean over conditions of known scenarios; 0 where there are none."""

    def __init__(self, num_scenarios: int, num_generated: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.classifier = MLP(num_generated, hidden, out_features=num_scenarios)

    def forward(
        self,
        vectors: Float[Tensor, "conditions dim"],
        generated: Float[Tensor, "conditions numbers"],
        scenario: Int[Tensor, " conditions"],
    ) -> Float[Tensor, ""]:
        """The term, to be minimised."""
        logits = self.classifier(generated).float()
        known = scenario > 0
        each = functional.cross_entropy(logits, (scenario - 1).clamp(min=0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)


class InfoNCEBound(nn.Module):
    """-log softmax_j(cos(f(s_i), S_j) / temperature) at j = i, one sample of every scenario.

    The cosine is the mean of the layers' own. S itself is compared, not a projection of it: a
    learned projection could tell scenarios by a part of S that hardly weighs. The sample is the
    scenario's first condition: a shuffled batch makes that a random row. 0 with fewer than two
    scenarios.
    """

    def __init__(
        self, num_scenarios: int, width: int, sizes: Sequence[int], temperature: float
    ) -> None:
        super().__init__()
        self.of_condition = linear(width, sum(sizes), bias=False)
        self.num_scenarios = num_scenarios
        self.temperature = temperature
        # [numbers, layers]: which layer a number belongs to, for sums over every layer at once.
        layer = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        layers = functional.one_hot(layer, len(sizes)).float()
        self.register_buffer("layers", layers, persistent=False)
        self.layers: Tensor

    def forward(
        self,
        vectors: Float[Tensor, "conditions dim"],
        generated: Float[Tensor, "conditions numbers"],
        scenario: Int[Tensor, " conditions"],
    ) -> Float[Tensor, ""]:
        """The term, to be minimised."""
        count = scenario.shape[0]
        first = torch.full((self.num_scenarios + 1,), count, device=scenario.device)
        place = torch.arange(count, device=scenario.device)
        first = first.scatter_reduce(0, scenario, place, "amin")[1:]  # [scenarios]
        absent = first == count
        first = first.clamp(max=count - 1)
        f = self._units(self.of_condition(vectors.index_select(0, first)))
        g = self._units(generated.index_select(0, first))
        scores = f @ g.T / (self.layers.shape[1] * self.temperature)  # [scenarios, scenarios]
        scores = scores.masked_fill(absent, torch.finfo(scores.dtype).min)
        each = -scores.log_softmax(1).diagonal()
        return each.masked_fill(absent, 0.0).sum() / (~absent).sum().clamp(min=1)

    def _units(self, x: Float[Tensor, "scenarios numbers"]) -> Float[Tensor, "scenarios numbers"]:
        """Every layer's numbers at length one."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            squares = x.square() @ self.layers  # [scenarios, layers]
            return x * (torch.rsqrt(squares + LENGTH_EPS) @ self.layers.T)
