"""Every recipe of a retrieval model parses, builds, and is compared with others in one setting."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankloom.catalog import CATALOG
from rankloom.cli.report import read_published
from rankloom.data.sources import SOURCES
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import FittedTokenizer, TrainedTokenizer
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.capsid import CapsIDConfig
from rankloom.retrieval.tokenizers.catalog import build_tokenizer
from rankloom.training.grid import load_grid, plan_settings
from rankloom.training.recipes import load_any_recipe
from rankloom.training.retrieval_recipe import RetrievalRecipe, load_retrieval_recipe

RECIPES_ROOT = Path(__file__).parents[1] / "recipes"
FOLDERS = {
    "amazon-beauty-sequences": "amazon-beauty",
    "amazon-toys-sequences": "amazon-toys",
    "amazon-sports-sequences": "amazon-sports",
    "movielens-1m-sequences": "movielens-1m",
}
"""Folders of recipes of retrieval models, and the data set of each."""
NO_RECIPES = {"base", "grid", "published"}
RECIPES = sorted(
    p
    for folder in FOLDERS
    for p in (RECIPES_ROOT / folder).rglob("*.toml")
    if p.stem not in NO_RECIPES
)
OTHER_GENERATORS = {"cobra", "rpg", "encdec", "action_piece_encdec", "famae"}
"""Recipes that are about another generator than the folder's, or about an encoder of items."""


def recipe_id(path: Path) -> str:
    return str(path.relative_to(RECIPES_ROOT))


def recipes_of(folder: str) -> dict[str, RetrievalRecipe]:
    """Path without ending -> recipe, of one folder."""
    root = RECIPES_ROOT / folder
    return {
        str(path.relative_to(root).with_suffix("")): load_retrieval_recipe(path)
        for path in RECIPES
        if path.is_relative_to(root)
    }


def test_there_are_folders_for_all_of_them() -> None:
    found = {path.name for path in RECIPES_ROOT.iterdir() if path.name.endswith("-sequences")}
    assert found == FOLDERS.keys()
    assert len(RECIPES) >= 100
    assert {load_retrieval_recipe(path).entry().name for path in RECIPES} == {
        name for name, entry in CATALOG.items() if entry.family == "retrieval"
    }


def test_names_are_those_of_the_files() -> None:
    """So they are unique, also beside the recipes of other families."""
    for path in RECIPES:
        inside = path.relative_to(RECIPES_ROOT).with_suffix("")
        folder, *parts = inside.parts
        assert load_any_recipe(path).name == "-".join([*parts, folder])


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_recipe_builds_its_tokenizer_and_model(path: Path) -> None:
    """Tokenizers on the vectors' width, which has to suit digits and capsules."""
    recipe = load_retrieval_recipe(path)
    # Vectors of FAMAE are the embeddings of several fields.
    width = getattr(recipe.items, "dim", 3 * 64)
    ids = None
    if recipe.tokenizer is not None:
        tokenizer = build_tokenizer(recipe.tokenizer, width)
        assert isinstance(tokenizer, FittedTokenizer | TrainedTokenizer)
        ids = SemanticIds((np.arange(12)[:, None] // (1, 4)).astype(np.int32) % 4, (4, 4))
    schema = ItemSchema(
        12,
        num_users=3,
        ids=ids,
        vectors=torch.zeros(12, width),
        attributes=torch.ones(12, 2).long(),
    )
    assert isinstance(recipe.entry().build(recipe.settings(), schema), torch.nn.Module)


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokenizers_are_compared_in_one_setting(folder: str) -> None:
    """One data set, one evaluation, and for tokenizers one encoder, generator and training."""
    recipes = recipes_of(folder)
    shared = recipes["rq_kmeans"]
    runs: dict[str, str] = {}
    for name, recipe in recipes.items():
        assert recipe.dataset == f"data/{FOLDERS[folder]}/sequences"
        assert recipe.seed == shared.seed
        # Models that score all items are quick to evaluate: on all users while they are trained.
        assert recipe.evaluation in (
            shared.evaluation,
            shared.evaluation.model_copy(update={"validation_users": None}),
        ), name
        if recipe.tokenizer is not None and name != "resid":
            assert recipe.items == shared.items, name
        if recipe.tokenizer is not None and name not in OTHER_GENERATORS:
            assert recipe.evaluation == shared.evaluation, name
            assert recipe.model == shared.model, name
            assert recipe.training == shared.training, name
        run = str({key: value for key, value in recipe.resolved().items() if key != "name"})
        assert run not in runs, f"{name} is the same run as {runs[run]}"
        runs[run] = name


def test_the_folders_hold_the_same_recipes() -> None:
    beauty, *others = (recipes_of(folder) for folder in FOLDERS)
    main = {name for name in beauty if "/" not in name}
    assert len(main) >= 20
    for recipes in others:
        assert recipes.keys() == main
        for name, recipe in recipes.items():
            ours, theirs = recipe.tokenizer, beauty[name].tokenizer
            assert type(ours) is type(theirs), name
            if name not in {"gaoq", "resid", "attribute_prefix"}:  # sizes, fields of the data set
                assert ours == theirs, name
            assert recipe.merges == beauty[name].merges, name
            assert recipe.collisions == beauty[name].collisions, name


def test_ablations_of_capsid_change_one_thing() -> None:
    """Each but the two forms of its own differs from the full recipe in few keys."""
    recipes = recipes_of("amazon-beauty-sequences")
    full = flat(recipes["capsid_bpe"].resolved())
    ablations = {name: flat(r.resolved()) for name, r in recipes.items() if "/" in name}
    assert len(ablations) >= 14
    for name, values in ablations.items():
        changed = {key for key in full.keys() | values.keys() if full.get(key) != values.get(key)}
        changed -= {"name"}
        parts = {key.split(".")[0] for key in changed}
        if name == "capsid/strict_paper":
            assert parts == {"tokenizer", "collisions", "merges"}
        elif name.startswith("capsid/fixed"):
            assert parts == {"tokenizer", "collisions"}
        elif name == "capsid/frequency-only":
            assert all(key.startswith("merges.score") for key in changed), changed
        elif name == "capsid/distinctive":
            assert changed <= {
                "tokenizer.kappa",
                "tokenizer.scaling.length",
                "tokenizer.length.kind",
                "tokenizer.length.max_sharing",
            }
        else:
            assert len(changed) == 1, (name, changed)
            assert parts == {"tokenizer"}


def test_strict_paper_is_that_of_the_config() -> None:
    recipe = recipes_of("amazon-beauty-sequences")["capsid/strict_paper"]
    assert recipe.tokenizer == CapsIDConfig.strict_paper()


@pytest.mark.parametrize("folder", FOLDERS)
def test_attributes_are_those_of_the_data(folder: str) -> None:
    texts = [form.sequences() for form in SOURCES[FOLDERS[folder]].forms]
    inputs = [text.parse().items for text in texts if text is not None]
    known = {name for given in inputs if given is not None for name in given.attributes}
    for name, recipe in recipes_of(folder).items():
        used = getattr(recipe.tokenizer, "attributes", ())
        assert {*used} <= known, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_grids_fit_their_recipes(folder: str) -> None:
    grid = load_grid(RECIPES_ROOT / folder / "grid.toml")
    recipes = recipes_of(folder)
    for name in ("item_knn", "sasrec", "rq_kmeans", "capsid_bpe"):
        keys, skipped = grid.for_recipe(recipes[name])
        assert not skipped
        plan = plan_settings(recipes[name], keys, grid.trials, grid.seed)
        assert len(plan.settings) == grid.trials == 8


@pytest.mark.parametrize("folder", sorted(FOLDERS.keys() - {"movielens-1m-sequences"}))
def test_published_values_are_of_recipes_that_exist(folder: str) -> None:
    path = RECIPES_ROOT / folder / "published.toml"
    published = read_published(path)
    recipes = {recipe.name: recipe for recipe in recipes_of(folder).values()}
    assert published.keys() <= recipes.keys()
    for name, found in published.items():
        cutoffs = {int(metric.partition("@")[2]) for metric in found.metrics}
        assert cutoffs <= {*recipes[name].evaluation.cutoffs}, name
        assert {metric.partition("@")[0] for metric in found.metrics} <= {"recall", "ndcg"}


def test_values_in_headers_are_those_published() -> None:
    compared = 0
    values = read_published(RECIPES_ROOT / "amazon-beauty-sequences" / "published.toml")
    for path in RECIPES:
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[2:] for line in lines if line.startswith("# "))
        found = re.search(r"The paper reports Recall@10 (\.\d+)", comment)
        if found is not None:
            given = values[load_retrieval_recipe(path).name].metrics["recall@10"]
            assert given == float(found[1]), path
            compared += 1
    assert compared >= 12


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
