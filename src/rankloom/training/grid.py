"""The grid of a search: which settings are tried, and which of them when there are many.

```toml
trials = 6        # of each recipe, its own setting included
seed = 0

[grid]
"training.embedding_l2" = [0.01, 0.05, 0.1]
"model.dropout" = [0.0, 0.2, 0.4]

[models.finalmlp.grid]
"model.dropout" = []
"model.first.dropout, model.second.dropout" = [0.0, 0.2, 0.4]
```

Keys joined by commas take the same value together.
"""

import copy
import math
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from rankloom.catalog import lookup
from rankloom.config import NONE, Config, parse_config, read_toml, to_toml
from rankloom.runs.record import recipe_hash
from rankloom.training.recipes import AnyRecipe

AnyRecipeT = TypeVar("AnyRecipeT", bound=AnyRecipe)
SEARCHED_TABLES = (
    "model",
    "training",
    "items",
    "tokenizer",
    "tokenizer_training",
    "collisions",
    "merges",
)
"""Tables of a recipe whose keys a search may change, as far as the recipe has them."""
LARGEST_GRID = 1_000_000
"""Most combinations of a grid."""
FIXED = ("model.name", "training.monitor", "training.monitor_mode")
"""Keys that a search cannot change: what is compared, and by what."""


def _flat(values: Any) -> Any:
    """Lists by dotted key, whether or not the dots were quoted in the TOML."""
    if not isinstance(values, Mapping):
        return values
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{rest}": found for rest, found in _flat(value).items()}
        else:
            flat[key] = value
    return flat


Values = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_flat)]
"""The values to try of each dotted key of a recipe, or of several keys joined by commas."""


class ModelGrid(Config):
    """What is different for one model."""

    grid: Values = Field(default_factory=dict)
    """Keys that replace those of the general grid; an empty list drops a key."""


class Grid(Config):
    """What is searched, and with which budget."""

    trials: int = Field(gt=0)
    """Trials of each recipe, its own setting included; a smaller grid is tried as a whole."""
    seed: int = Field(0, ge=0)
    """Which part of a larger grid is tried, and the seed that every trial trains with."""
    skip_unknown: bool = False
    """Leave out `model` keys of the general grid for models that do not have them."""
    grid: Values = Field(default_factory=dict)
    """Values by dotted key, for all models."""
    models: dict[str, ModelGrid] = Field(default_factory=dict)
    """What is different, by name of the model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"{key} has no values to try")
        for model in self.models:
            lookup(model)
        for values_by_key in (self.grid, *(own.grid for own in self.models.values())):
            for key, values in values_by_key.items():
                for part in _parts(key):
                    if part in FIXED or part.partition(".")[0] not in SEARCHED_TABLES:
                        raise ValueError(
                            f"{part} cannot be searched; a grid takes keys of model and training, "
                            "of what makes the ids of a retrieval model (items, tokenizer, "
                            "tokenizer_training, collisions, merges), "
                            f"but not {', '.join(FIXED)}"
                        )
                if any(value in values[:place] for place, value in enumerate(values)):
                    raise ValueError(f"{key} has a value twice: {list(values)}")
        return self

    def for_recipe(self, recipe: AnyRecipe) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
        """What is tried for a recipe's model, and the keys skipped because it lacks them.

        Raises:
            ValueError: the model does not have a key (all such keys are named), or a key stands in
                two places.
        """
        model = recipe.entry().name
        own = self.models[model].grid if model in self.models else {}
        wanted = {key: values for key, values in {**self.grid, **own}.items() if values}
        unknown = [key for key in wanted if not all(_has(recipe, part) for part in _parts(key))]
        skipped = [
            key
            for key in unknown
            if self.skip_unknown and key not in own and "training." not in key
        ]
        wrong = [key for key in unknown if key not in skipped]
        if wrong:
            raise ValueError(
                f"{recipe.name}, model {model}: unknown {', '.join(wrong)}; correct the key, give "
                f"it an empty list under [models.{model}.grid], or, for a model's key, set "
                "skip_unknown = true"
            )
        searched = {key: values for key, values in wanted.items() if key not in skipped}
        parts = [part for key in searched for part in _parts(key)]
        twice = sorted({part for part in parts if parts.count(part) > 1})
        if twice:
            raise ValueError(
                f"{recipe.name}, model {model}: {', '.join(twice)} is searched under two keys of "
                f"the grid; drop one by an empty list under [models.{model}.grid]"
            )
        return searched, skipped


@dataclass(frozen=True)
class Setting:
    """One point of a search."""

    values: dict[str, Any]
    """Value of every searched key; of keys joined by commas that differ, all their values."""
    recipe: AnyRecipe
    """The recipe with these values."""


@dataclass(frozen=True)
class Plan:
    """The settings that are tried for one recipe."""

    settings: list[Setting]
    """The recipe's own one first."""
    combinations: int
    """Combinations of the grid."""
    whole: bool
    """Whether every combination is among them."""


def load_grid(path: str | Path, *, trials: int | None = None, seed: int | None = None) -> Grid:
    """Read a grid file; `trials` and `seed` replace the file's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is wrong, one line per problem.
    """
    given = {"trials": trials, "seed": seed}
    values = read_toml(path) | {key: value for key, value in given.items() if value is not None}
    return parse_config(Grid, values, str(path))


def plan_settings(
    recipe: AnyRecipe, grid: Mapping[str, tuple[Any, ...]], trials: int, seed: int
) -> Plan:
    """The settings to try: the recipe's own one, then combinations in an order drawn by `seed`.

    More trials with the same seed begin with the same settings.

    Raises:
        ValueError: the grid is too large, or a combination is no valid recipe.
    """
    combinations = math.prod(len(values) for values in grid.values())
    if combinations > LARGEST_GRID:
        raise ValueError(
            f"{recipe.name}: the grid has {combinations:,} combinations, more than "
            f"{LARGEST_GRID:,}; search fewer keys or values"
        )
    resolved = recipe.resolved()
    settings = [Setting({key: _value_at(resolved, key) for key in grid}, recipe)]
    seen = {recipe_hash(resolved)}
    order = list(range(combinations))
    random.Random(seed).shuffle(order)
    for index in order:
        values = {}
        for key, choices in grid.items():
            index, choice = divmod(index, len(choices))
            values[key] = choices[choice]
        changed = changed_recipe(recipe, values)
        identity = recipe_hash(changed.resolved())
        if identity in seen:
            continue  # the recipe's own setting
        if len(settings) == trials:
            return Plan(settings, combinations, whole=False)
        seen.add(identity)
        settings.append(Setting(values, changed))
    return Plan(settings, combinations, whole=True)


def changed_recipe(recipe: AnyRecipeT, values: Mapping[str, Any]) -> AnyRecipeT:
    """The recipe with other values of some dotted keys.

    Raises:
        ValueError: a value that the recipe cannot take.
    """
    shown = ", ".join(f"{key} = {value}" for key, value in values.items())
    return parse_config(type(recipe), recipe_values(recipe, values), f"{recipe.name} with {shown}")


def recipe_values(recipe: AnyRecipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe file: what the recipe states, with other values of some dotted keys.

    Where a key lies in a table that the recipe does not state, the whole table is written out:
    its other values are those that the model has without it.
    """
    stated = _without_none(recipe.model_dump(mode="json", exclude_unset=True))
    everything: dict[str, Any] = {
        name: tomllib.loads(to_toml(settings))
        for name in SEARCHED_TABLES
        if (settings := _table(recipe, name)) is not None
    }
    for joined, value in values.items():
        for key in _parts(joined):
            part, *parents, last = key.split(".")
            table, whole = stated.setdefault(part, {}), everything[part]
            for parent in parents:
                whole = whole.get(parent, {})
                table = table.setdefault(parent, copy.deepcopy(whole))
            table[last] = NONE if value is None else copy.deepcopy(value)
    return stated


def _parts(joined: str) -> list[str]:
    """The dotted keys of a key of the grid."""
    return [key.strip() for key in joined.split(",")]


def _table(recipe: AnyRecipe, name: str) -> BaseModel | None:
    """The settings of one table of a recipe; None: it has none."""
    return recipe.settings() if name == "model" else getattr(recipe, name, None)


def _has(recipe: AnyRecipe, key: str) -> bool:
    """Whether a dotted key is a setting of the recipe."""
    table, *names = key.split(".")
    holder: Any = _table(recipe, table)
    for name in names:
        if not isinstance(holder, BaseModel):
            return False
        # The settings of a ranking model that is a part stand beside its name as further keys.
        known = (*type(holder).model_fields, *(holder.model_extra or ()))
        if name not in known:
            return False
        holder = getattr(holder, name)
    return True


def _value_at(values: Mapping[str, Any], joined: str) -> Any:
    """The value of a key; of joined keys the one that they share, or all of them."""
    found = []
    for key in _parts(joined):
        value: Any = values
        for name in key.split("."):
            value = value[name]
        found.append(value)
    return found[0] if all(value == found[0] for value in found) else found


def _without_none(values: Any) -> Any:
    """Values as TOML can hold them."""
    if isinstance(values, Mapping):
        return {key: _without_none(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_none(value) for value in values]
    return NONE if values is None else values
