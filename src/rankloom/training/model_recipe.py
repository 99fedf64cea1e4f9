"""What recipes of every kind have: a model of the catalog with its settings, on a data set."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from rankloom.catalog import CATALOG, Entry, lookup
from rankloom.config import Config, parse_config
from rankloom.training.config import TrainingConfig


class ModelRecipe(Config):
    """A data set, a model with its settings, and a seed."""

    RETRIEVES: ClassVar[bool]
    """Whether the models of this kind retrieve items; others score rows."""
    EXAMPLE: ClassVar[str]
    """A model of this kind, for messages."""

    name: str
    """Name in tables and records."""
    dataset: str
    """Data set folder that `prepare` wrote, relative to the working folder."""
    seed: int = Field(0, ge=0)
    """Seed of everything that is drawn: initialisation, order, dropout; item vectors and tokenizer
    where there are such."""
    model: dict[str, Any]
    """`name` of a model in the catalog, and the keys of its config."""
    training: TrainingConfig = TrainingConfig()
    """How the model is trained."""

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, values: Any) -> Any:
        # Before the keys are looked at: most of another kind's would be reported as unknown.
        name = model_name(values) if isinstance(values, dict) else None
        entry = CATALOG.get(name) if isinstance(name, str) else None
        if entry is not None and (entry.family == "retrieval") != cls.RETRIEVES:
            raise ValueError(
                f"{name} scores rows; this takes recipes of retrieval models"
                if cls.RETRIEVES
                else f"{name} retrieves items and does not score rows; this takes recipes of "
                "ranking and scenario models"
            )
        return values

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        self.settings()
        return self

    def entry(self) -> Entry:
        """The model's line of the catalog.

        Raises:
            ValueError: no `name`, or one that the catalog does not know.
        """
        name = self.model.get("name")
        if not isinstance(name, str):
            raise ValueError(f'model needs a name, such as name = "{self.EXAMPLE}"')
        return lookup(name)

    def settings(self) -> Config:
        """The model's config.

        Raises:
            ValueError: a key or value that the model's config does not take.
        """
        entry = self.entry()
        values = {key: value for key, value in self.model.items() if key != "name"}
        return parse_config(entry.config, values, f"model {entry.name}")

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default written out, for the record."""
        values = self.model_dump(mode="json")
        values["model"] = {"name": self.entry().name, **self.settings().model_dump(mode="json")}
        return values


def model_name(values: dict[str, Any]) -> Any:
    """The model's name in a recipe's plain values, if there is one."""
    model = values.get("model")
    return model.get("name") if isinstance(model, dict) else None
