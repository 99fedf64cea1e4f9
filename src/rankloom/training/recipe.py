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
from typing import Any

from rankloom.config import apply_overrides, complete, parse_config, read_toml
from rankloom.evaluation.protocol import EvaluationConfig
from rankloom.training.model_recipe import ModelRecipe, model_name


class Recipe(ModelRecipe):
    """One run: a data set, a model with its settings, how it is trained and evaluated."""

    RETRIEVES = False
    EXAMPLE = "dcnv2"

    evaluation: EvaluationConfig = EvaluationConfig()
    """Metrics."""


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
    if model_name(values) not in (None, model_name(given)):
        given.pop("model", None)  # another model's settings
    completed: dict[str, Any] = complete({"name": path.stem} | values, given)
    return completed
