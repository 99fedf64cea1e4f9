"""From raw interaction logs to served recommendations with the models that scale.

The names below are imported when they are first used, so that `import rankloom` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankloom.config import Config
    from rankloom.data.prepare import prepare
    from rankloom.data.sequences import SequenceData, prepare_sequences
    from rankloom.data.store import Dataset
    from rankloom.training.compare import compare
    from rankloom.training.recipe import Recipe
    from rankloom.training.recipes import load_any_recipe as load_recipe
    from rankloom.training.recipes import run_recipe as train
    from rankloom.training.retrieval_recipe import RetrievalRecipe
    from rankloom.training.retrieval_run import RetrievalRun
    from rankloom.training.run import Run
    from rankloom.training.tokenize import tokenize
    from rankloom.training.tune import tune

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Dataset",
    "Recipe",
    "RetrievalRecipe",
    "RetrievalRun",
    "Run",
    "SequenceData",
    "compare",
    "load_recipe",
    "prepare",
    "prepare_sequences",
    "tokenize",
    "train",
    "tune",
]

_HOMES = {
    "Config": "rankloom.config",
    "Dataset": "rankloom.data.store",
    "Recipe": "rankloom.training.recipe",
    "RetrievalRecipe": "rankloom.training.retrieval_recipe",
    "RetrievalRun": "rankloom.training.retrieval_run",
    "Run": "rankloom.training.run",
    "SequenceData": "rankloom.data.sequences",
    "compare": "rankloom.training.compare",
    "load_recipe": "rankloom.training.recipes:load_any_recipe",
    "prepare": "rankloom.data.prepare",
    "prepare_sequences": "rankloom.data.sequences",
    "tokenize": "rankloom.training.tokenize",
    "train": "rankloom.training.recipes:run_recipe",
    "tune": "rankloom.training.tune",
}
"""Module of each name, and its name there after a colon where that is another one."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module rankloom has no attribute {name!r}")
    from importlib import import_module

    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(module), own or name)
