"""A recipe: everything that decides a run, in one TOML file.

```toml
name = "dcnv2-frappe"
dataset = "data/frappe/prepared"
seed = 2021

[model]
name = "dcnv2"
embedding_dim = 10

[training]
batch_size = 4096

[evaluation]
metrics = ["auc", "log_loss"]
```

A recipe that differs from another one in a few settings names it, relative to itself, and states
those alone (its name is the file's where it states none; a list replaces the other's list):

```toml
base = "dcnv2.toml"
name = "dcnv2-frappe-deep"

[model]
num_crosses = 8
```
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from rankloom.catalog import CATALOG, Entry, lookup
from rankloom.config import Config, apply_overrides, complete, parse_config, read_toml
from rankloom.evaluation.protocol import EvaluationConfig
from rankloom.training.config import TrainingConfig


class Recipe(Config):
    """One run: a data set, a model with its settings, how it is trained and evaluated."""

    name: str
    """Name in tables and records."""
    dataset: str
    """Data set folder that `prepare` wrote, relative to the working folder."""
    seed: int = Field(0, ge=0)
    """Seed of initialisation, order and dropout."""
    model: dict[str, Any]
    """`name` of a model in the catalog, and the keys of its config."""
    training: TrainingConfig = TrainingConfig()
    """Training settings."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Metrics."""

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, values: Any) -> Any:
        # Before the keys are looked at: most of another kind's would be reported as unknown.
        name = _model_name(values) if isinstance(values, dict) else None
        entry = CATALOG.get(name) if isinstance(name, str) else None
        if entry is not None and entry.family == "retrieval":
            raise ValueError(
                f"{name} retrieves items and does not score rows; this takes recipes of ranking "
                "and scenario models"
            )
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.settings()
        return self

    def entry(self) -> Entry:
        """The model's line of the catalog.

        Raises:
            ValueError: no `name`, or one that the catalog does not know.
        """
        name = self.model.get("name")
        if not isinstance(name, str):
            raise ValueError('model needs a name, such as name = "dcnv2"')
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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with dotted `key=value` overrides as `--set` gives them.

    Raises:
        FileNotFoundError: there is no such file, or no such base.
        ValueError: what is wrong, one line per problem.
    """
    return parse_config(Recipe, recipe_file_values(path, overrides), str(path))


def recipe_file_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Values of a recipe file of any kind, completed from its base, with overrides.

    Raises:
        FileNotFoundError: there is no such file, or no such base.
        ValueError: it is not TOML, a base leads back to itself, or an override is wrong.
    """
    values = apply_overrides(_with_base(Path(path), ()), list(overrides))
    values.setdefault("name", Path(path).stem)
    return values


def _with_base(path: Path, derived: tuple[Path, ...]) -> dict[str, Any]:
    """Values of a recipe file, completed from its base.

    Args:
        path: the file.
        derived: the files that name it as their base, at whatever distance.
    """
    values = read_toml(path)
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise ValueError(f"{path}: base must be the path of a recipe; got {base!r}")
    known = (*derived, path.resolve())
    following = path.parent / base
    if following.resolve() in known:
        raise ValueError(f"{path}: base {base} leads back to this recipe")
    given = _with_base(following, known)
    if _model_name(values) not in (None, _model_name(given)):
        given.pop("model", None)  # another model's settings
    completed: dict[str, Any] = complete({"name": path.stem} | values, given)
    return completed


def _model_name(values: dict[str, Any]) -> Any:
    model = values.get("model")
    return model.get("name") if isinstance(model, dict) else None
