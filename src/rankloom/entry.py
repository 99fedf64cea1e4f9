"""What a catalog says of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rankloom.config import Config
from rankloom.schema import Schema

Requirement = Literal["scenario", "funnel", "semantic_ids"]
"""What a model may need of its data: a scenario column, two labels and more in funnel order, or
semantic ids of the items."""


@dataclass(frozen=True)
class Entry:
    """One model of the catalog."""

    name: str
    """Name in recipes."""
    family: str
    """ranking, scenario or retrieval."""
    title: str
    """The model's name as its paper writes it."""
    paper: str
    """Authors, venue, identifier."""
    year: int
    """Year of the paper."""
    idea: str
    """One line."""
    config: type[Config]
    """Its config."""
    build: Callable[..., nn.Module]
    """Its class, called with (config, schema): a `Schema`, or an `ItemSchema` to retrieve items."""
    requires: tuple[Requirement, ...] = ()
    """What the data must have."""

    def check(self, schema: Schema) -> None:
        """Refuse data that lacks what the model needs.

        Raises:
            ValueError: it has no scenarios, or only one label; the message says what to declare.
        """
        if "scenario" in self.requires and schema.num_scenarios < 2:
            raise ValueError(
                f"{self.name} needs rows of known scenarios; name the column in roles.scenario of "
                "the data's schema, or take a model without scenarios"
            )
        if "funnel" in self.requires and schema.num_tasks < 2:
            raise ValueError(
                f"{self.name} needs two or more labels in the order of the funnel, such as click "
                f"and conversion; the data has only {schema.labels[0].name}"
            )
