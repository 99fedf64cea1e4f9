"""From raw interaction logs to served recommendations with the models that scale.

The names below are imported when they are first used, so that `import rankloom` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankloom.config import Config
    from rankloom.data.prepare import prepare
    from rankloom.data.store import Dataset
    from rankloom.training.compare import compare
    from rankloom.training.recipes import run_recipe as train
    from rankloom.training.recipe import Recipe, load_recipe
    from rankloom.training.run import Run
    from rankloom.training.tune import tune

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Dataset",
    "Recipe",
    "Run",
    "compare",
    "load_recipe",
    "prepare",
    "train",
    "tune",
]

_HOMES = {
    "Config": "rankloom.config",
    "Dataset": "rankloom.data.store",
    "Recipe": "rankloom.training.recipe",
    "Run": "rankloom.training.run",
    "compare": "rankloom.training.compare",
    "load_recipe": "rankloom.training.recipe",
    "prepare": "rankloom.data.prepare",
    "train": "rankloom.training.recipes",
    "tune": "rankloom.training.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module rankloom has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
