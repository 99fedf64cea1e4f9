"""Every recipe parses, and its model is built and scores a batch of a schema of its shape."""

from pathlib import Path

import pytest
import torch

from rankloom.config import read_toml
from rankloom.data.examples import random_batch
from rankloom.schema import CategoricalField, IdMember, Label, Schema, SequenceField
from rankloom.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
BESIDE = {"published", "fuxictr"}
"""Files with results of others, to stand beside ours."""
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.toml") if p.stem not in BESIDE)


def schema_for(recipe: Recipe) -> Schema:
    """Fields enough for the recipe, the contexts that it names among them."""
    gates = recipe.model.get("gates", {})
    named = {*gates.get("first_context", ()), *gates.get("second_context", ())}
    names = sorted(named | {"user_id", "item_id", "hour"})
    plain = [name for name in names if "." not in name]
    return Schema(
        tables=dict.fromkeys(plain, 20),
        categorical=tuple(CategoricalField(name=name, table=name) for name in plain),
        sequences=(
            SequenceField(
                name="history", ids=(IdMember(name="item_id", table="item_id"),), max_length=5
            ),
        ),
        labels=(Label(name="label"),),
    )


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 35


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "recipes")))
def test_recipe_builds_a_model(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name
    schema = schema_for(recipe)
    model = recipe.entry().build(recipe.settings(), schema).eval()
    with torch.inference_mode():
        assert model(random_batch(schema, rows=3, seed=0)).shape == (3, 1)


def test_published_values_are_of_models_in_the_catalog() -> None:
    from rankloom.catalog import CATALOG
    from rankloom.cli.report import read_published

    paths = [path for path in (ROOT / "recipes").rglob("*.toml") if path.stem in BESIDE]
    assert paths
    for path in paths:
        published = read_published(path)
        assert published.keys() == read_toml(path).keys()
        assert published.keys() <= CATALOG.keys()
