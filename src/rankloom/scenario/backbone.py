"""A ranking model of the catalog as a part of another model.

A recipe names it in a table of its own, its settings beside its name:

    [model.backbone]
    name = "dcnv2"
    embedding_dim = 16
"""

from typing import Any

from pydantic import ConfigDict, PrivateAttr
from torch import nn

from rankloom.config import Config, parse_config, toml_values
from rankloom.entry import Entry
from rankloom.ranking.catalog import RANKING_ENTRIES
from rankloom.schema import Label, Schema

RANKERS: dict[str, Entry] = {entry.name: entry for entry in RANKING_ENTRIES}


class Backbone(Config):
    """A ranking model: its name, and beside it the settings that the model knows.

    Raises:
        ValueError: no ranking model has the name, or it does not know a setting.
    """

    model_config = ConfigDict(extra="allow")

    name: str = "dnn"
    """Name of a ranking model."""

    _settings: Config = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Read the settings as the model's own."""
        if self.name not in RANKERS:
            raise ValueError(
                f"unknown ranking model {self.name!r}; known ones: {', '.join(sorted(RANKERS))}"
            )
        stated = self.model_extra
        assert stated is not None  # extra = "allow"
        self._settings = parse_config(RANKERS[self.name].config, dict(stated), self.name)
        stated.update(toml_values(self._settings))  # a record says all of them

    @property
    def settings(self) -> Config:
        """The model's config."""
        return self._settings

    def build(self, schema: Schema) -> nn.Module:
        """The model on some data."""
        return RANKERS[self.name].build(self._settings, schema)

    def build_bottom(self, schema: Schema, width: int) -> nn.Module:
        """The model with `width` outputs in place of the tasks' logits, for towers to read.

        Its last layer, which gives the logits elsewhere, gives the outputs here. An objective of
        the model's own is not used.
        """
        outputs = tuple(Label(name=f"unit {index}") for index in range(width))
        return self.build(schema.model_copy(update={"labels": outputs}))
