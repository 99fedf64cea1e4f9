"""Every recipe parses, and its model is built and scores a batch of a schema of its shape."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rankloom.catalog import CATALOG
from rankloom.cli.report import read_published
from rankloom.config import Config, load_config, read_toml
from rankloom.data.examples import random_batch
from rankloom.data.sources import SOURCES
from rankloom.data.table_schema import TableSchema
from rankloom.schema import CategoricalField, IdMember, Label, Schema, SequenceField
from rankloom.training.grid import load_grid, plan_settings
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.scale import ScaleGrid

RECIPES_ROOT = Path(__file__).parents[1] / "recipes"
BESIDE = {"published", "published-dlf", "fuxictr"}
"""Files with results of others, to stand beside ours."""
NO_RECIPES = BESIDE | {"schema", "grid", "scale", "base"}
RETRIEVAL_ENDING = "-sequences"
"""Of the folders whose recipes are of retrieval models."""


def of_retrieval(path: Path) -> bool:
    """Whether a file stands in a folder of retrieval models; `test_retrieval_recipes` tests it."""
    return path.relative_to(RECIPES_ROOT).parts[0].endswith(RETRIEVAL_ENDING)


RECIPES = sorted(
    p for p in RECIPES_ROOT.rglob("*.toml") if p.stem not in NO_RECIPES and not of_retrieval(p)
)
PUBLISHED = sorted(
    p for p in RECIPES_ROOT.rglob("*.toml") if p.stem in BESIDE and not of_retrieval(p)
)
GRIDS = sorted(p for p in RECIPES_ROOT.rglob("grid.toml") if not of_retrieval(p))
SCALES = sorted(RECIPES_ROOT.rglob("scale.toml"))
SCENARIO_FOLDERS = {
    "amazon-domains": "amazon-domains",
    "hillstrom": "hillstrom",
    "ijcai18-cvr": "ijcai18-cvr",
    "movielens-1m-age": "movielens-1m-age",
    "trivago-scenarios": "trivago",
}
"""Folders of recipes for models of many scenarios, and the data set of each."""

FRAPPE = {
    "user": 956,
    "item": 4084,
    "daytime": 9,
    "weekday": 9,
    "isweekend": 4,
    "homework": 5,
    "cost": 4,
    "weather": 11,
    "country": 82,
    "city": 235,
}
"""Rows of the tables in BARS's logs on Frappe_x1."""
BARS_PARAMETERS = {
    "afm": 60_826,
    "afn": 4_066_711,
    "afn_plus": 4_482_205,
    "autoint": 306_051,
    "autoint_plus": 622_180,
    "dcn": 418_591,
    "dcnv2": 458_391,
    "deepfm": 423_280,
    "dlrm": 417_891,
    "edcn": 86_351,
    "fibinet": 743_480,
    "finalmlp": 253_392,
    "finalnet_1b": 256_791,
    "finalnet_2b": 338_502,
    "fm": 59_280,
    "ipnn": 433_491,
    "lr": 5_390,
    "masknet": 571_691,
    "sam": 58_791,
    "wide_deep": 423_280,
    "xdeepfm": 429_809,
}
"""Parameters that BARS reports for its tuned models on Frappe_x1. (Its DNN is two networks.)"""
LATER_FUXICTR = {"finalmlp", "finalnet_1b", "finalnet_2b"}
"""Run with a FuxiCTR whose tables have one row more per field."""
MORE_BIASES = {"deepfm": 1, "fibinet": 1, "wide_deep": 1, "finalmlp": -1}
"""Biases of ours that are only added to another one, or of theirs."""


TWO_TASKS = {"aliccp", "aliexpress", "hillstrom", "synthetic-funnel"}
"""Data sets with two labels."""


def recipe_id(path: Path) -> str:
    return str(path.relative_to(RECIPES_ROOT))


def data_of(recipe: Recipe) -> str:
    """Name of the data set."""
    return recipe.dataset.split("/")[1]


def prior_fields(recipe: Recipe) -> set[str]:
    """Fields that the recipe names for PEPNet's gates."""
    return set(recipe.model.get("structure", {}).get("priors", {}).get("fields", ()))


def schema_for(recipe: Recipe) -> Schema:
    """Fields enough for the recipe, the contexts and the category that it names among them."""
    gates = recipe.model.get("gates", {})
    named = {*gates.get("first_context", ()), *gates.get("second_context", ())}
    plain = sorted({name for name in named if "." not in name} | {"user_id", "item_id", "hour"})
    plain += sorted(prior_fields(recipe) - {*plain})
    category = recipe.model.get("search", {}).get("category")
    members = ["item_id", *([category] if category else [])]
    plain += members[1:]
    return Schema(
        tables=dict.fromkeys(plain, 20),
        categorical=tuple(CategoricalField(name=name, table=name) for name in plain),
        sequences=(
            SequenceField(
                name="history",
                ids=tuple(IdMember(name=name, table=name) for name in members),
                max_length=5,
            ),
        ),
        labels=tuple(Label(name=name) for name in ("label", "later")[: num_tasks(recipe)]),
        scenarios=("<unknown>", "first", "second"),
    )


def num_tasks(recipe: Recipe) -> int:
    """Labels of the recipe's data set."""
    return 2 if data_of(recipe) in TWO_TASKS else 1


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 600
    assert {load_recipe(path).entry().name for path in RECIPES} == {
        name for name, entry in CATALOG.items() if entry.family in ("ranking", "scenario")
    }


def test_recipe_names_are_unique() -> None:
    names = [load_recipe(path).name for path in RECIPES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_recipe_builds_a_model(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name
    schema = schema_for(recipe)
    model = recipe.entry().build(recipe.settings(), schema).eval()
    with torch.inference_mode():
        assert model(random_batch(schema, rows=3, seed=0)).shape == (3, num_tasks(recipe))


@pytest.mark.parametrize("stem", BARS_PARAMETERS)
def test_settings_give_the_parameters_that_bars_reports(stem: str) -> None:
    """A width or layer that differs from the run whose results stand beside ours would show."""
    sizes = dict(FRAPPE)
    # Ours share one padding row between all fields, FuxiCTR's have one each.
    sizes["city"] += len(sizes) - 1
    if stem not in LATER_FUXICTR:
        sizes["city"] -= len(sizes)
    schema = Schema(
        tables=sizes,
        categorical=tuple(CategoricalField(name=name, table=name) for name in sizes),
        labels=(Label(name="label"),),
    )
    recipe = load_recipe(RECIPES_ROOT / "frappe" / f"{stem}.toml")
    with torch.device("meta"):
        model = recipe.entry().build(recipe.settings(), schema)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count - MORE_BIASES.get(stem, 0) == BARS_PARAMETERS[stem]


@pytest.mark.parametrize("path", PUBLISHED, ids=recipe_id)
def test_published_values_are_of_models_or_recipes_that_exist(path: Path) -> None:
    published = read_published(path)
    assert published.keys() == read_toml(path).keys()
    recipes = {load_recipe(p).name for p in RECIPES if p.is_relative_to(path.parent)}
    assert published.keys() <= CATALOG.keys() | recipes


def test_values_in_headers_are_those_published() -> None:
    compared = 0
    for path in RECIPES:
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[2:] for line in lines if line.startswith("# "))
        found = re.search(r"(BARS|paper) reports AUC (0\.\d+) and LogLoss (0\.\d+)", comment)
        if found is None:
            continue
        recipe = load_recipe(path)
        folder = RECIPES_ROOT / path.relative_to(RECIPES_ROOT).parts[0]
        values = read_toml(folder / f"published{'-dlf' if found[1] == 'paper' else ''}.toml")
        entry = values.get(recipe.name) or values[recipe.entry().name]
        given = {key: entry["metrics"][key] for key in ("auc", "log_loss")}
        assert given == {"auc": float(found[2]), "log_loss": float(found[3])}, path
        compared += 1
    assert compared >= 130


@pytest.mark.parametrize("path", SCALES, ids=recipe_id)
def test_scales_fit_the_recipes_that_they_name(path: Path) -> None:
    grid = load_config(ScaleGrid, path)
    named = re.search(r"\{(.*)\}\.toml", path.read_text(encoding="utf-8"))
    assert named is not None
    for name in named[1].split(","):
        sizes, skipped = grid.sizes(load_recipe(path.parent / f"{name}.toml"))
        assert not skipped
        assert len(sizes) >= 4, name  # fewer make no curve


@pytest.mark.parametrize("path", GRIDS, ids=recipe_id)
def test_grids_fit_their_recipes_and_give_each_the_same_budget(path: Path) -> None:
    grid = load_grid(path)
    assert not grid.skip_unknown
    recipes = [load_recipe(p) for p in RECIPES if p.parent == path.parent]
    assert len(recipes) >= 9
    for recipe in recipes:
        keys, skipped = grid.for_recipe(recipe)
        assert not skipped
        plan = plan_settings(recipe, keys, grid.trials, grid.seed)
        assert len(plan.settings) == grid.trials >= 3, recipe.name


@pytest.mark.parametrize("folder", ["frappe-tokens", "movielens-1m-ctr", "trivago"])
def test_models_of_tokens_are_compared_in_one_setting(folder: str) -> None:
    """One data set, one way of training, one size, and no two recipes that are the same run."""
    paths = [path for path in RECIPES if path.is_relative_to(RECIPES_ROOT / folder)]
    recipes = [load_recipe(path) for path in paths]
    shared = load_recipe(RECIPES_ROOT / folder / "onetrans.toml")
    for path, recipe in zip(paths, recipes, strict=True):
        assert (recipe.dataset, recipe.seed) == (shared.dataset, shared.seed)
        assert unsearched(recipe.training) == unsearched(shared.training), path
        assert recipe.evaluation == shared.evaluation
        settings = recipe.resolved()["model"]
        assert settings["embedding_dim"] == 16, path
        assert settings.get("dim", 32) == 32, path
        if path.parent.name == folder:
            assert settings.get("num_layers", settings.get("num_crosses")) == 4, path
    models = [recipe.resolved()["model"] for recipe in recipes]
    for place, model in enumerate(models):
        same = [paths[other].stem for other in range(place) if models[other] == model]
        assert not same, f"{paths[place].stem} is the same model as {', '.join(same)}"


SEARCHED = {"learning_rate", "embedding_l2", "dropout"}
"""Settings that a search chooses for each recipe."""


def unsearched(values: Config | dict[str, Any]) -> dict[str, Any]:
    """The plain values without those that a search chooses."""
    plain = values if isinstance(values, dict) else values.model_dump()
    return {
        key: unsearched(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if key not in SEARCHED
    }


SEQUENCE_FOLDERS = {"amazon-beauty": 20, "amazon-toys": 20, "movielens-1m-sample": 30}
"""Folders of recipes for models that read histories, and how many events they read."""


@pytest.mark.parametrize("folder", SEQUENCE_FOLDERS)
def test_readers_of_histories_are_compared_in_one_setting(folder: str) -> None:
    """As above, but a reader of histories has a depth and widths of its own."""
    paths = [path for path in RECIPES if path.is_relative_to(RECIPES_ROOT / folder)]
    recipes = [load_recipe(path) for path in paths]
    shared = load_recipe(RECIPES_ROOT / folder / "onetrans.toml")
    assert shared.dataset == f"data/{folder}/prepared"
    models = [recipe.resolved()["model"] for recipe in recipes]
    for path, recipe, model in zip(paths, recipes, models, strict=True):
        assert (recipe.dataset, recipe.seed) == (shared.dataset, shared.seed), path
        assert (recipe.training, recipe.evaluation) == (shared.training, shared.evaluation), path
        assert model["embedding_dim"] == 16, path
        assert model.get("dim", 32) == 32, path
        # Models of events read equally many of them; none: all that are kept, in the sample 30.
        read = {**model, **model.get("events", {})}.get("max_length")
        kept = [None] if folder == "movielens-1m-sample" or "max_length" not in model else []
        assert read in [SEQUENCE_FOLDERS[folder], *kept], path
        assert sum(other == model for other in models) == 1, path


def test_the_folders_of_histories_hold_the_same_models() -> None:
    beauty, toys, sample, whole = (
        {
            path.stem: load_recipe(path).resolved()["model"]
            for path in RECIPES
            if path.parent.name == folder
        }
        for folder in (*SEQUENCE_FOLDERS, "movielens-1m-ctr")
    )
    assert beauty == toys
    assert len(beauty) >= 19
    # Films have no category for hard search; a film's genres are several.
    assert beauty.keys() - sample.keys() == {"sim_hard"}
    # The sample is read by the models of tokens as well, and by these as in the whole.
    assert sample.keys() - beauty.keys() < whole.keys() < sample.keys()
    for name, model in whole.items():
        assert sample[name] == model, name


def part_values(model: dict[str, Any], key: str) -> Iterator[Any]:
    """Values of a key in a model's settings and in those of its parts."""
    for name, value in model.items():
        if name == key:
            yield value
        elif isinstance(value, dict):
            yield from part_values(value, key)


@pytest.mark.parametrize("folder", SCENARIO_FOLDERS)
def test_models_of_scenarios_are_compared_in_one_setting(folder: str) -> None:
    """As above, but for the split with new items and the position that is not given."""
    paths = [path for path in RECIPES if path.is_relative_to(RECIPES_ROOT / folder)]
    shared = load_recipe(RECIPES_ROOT / folder / "dnn.toml")
    assert shared.dataset == f"data/{SCENARIO_FOLDERS[folder]}/prepared"
    runs: dict[str, str] = {}
    for path in paths:
        recipe = load_recipe(path)
        dataset, training, evaluation = shared.dataset, shared.training, shared.evaluation
        if path.parent.name == "cold":
            dataset = f"data/{folder}-cold/prepared"
        if path.parent.name == "position":
            evaluation = evaluation.model_copy(update={"switched_off": ("position",)})
            if path.stem.endswith("dropout"):
                training = training.model_copy(update={"field_dropout": {"position": 0.2}})
        assert (recipe.dataset, recipe.seed) == (dataset, shared.seed), path
        assert unsearched(recipe.training) == unsearched(training), path
        assert recipe.evaluation == evaluation, path
        values = recipe.resolved()
        model = values["model"]
        assert set(part_values(model, "embedding_dim")) == {16}, path
        assert set(part_values(model, "dropout")) <= {0.0, 0.2}, path
        for name, kind in (("experts", (64, 32)), ("tower", (32,))):
            assert tuple(model.get(name, {}).get("hidden", kind)) == kind, path
        run = str({key: value for key, value in values.items() if key != "name"})
        assert run not in runs, f"{path.stem} is the same run as {runs[run]}"
        runs[run] = path.stem


@pytest.mark.parametrize("folder", SCENARIO_FOLDERS)
def test_models_of_scenarios_fit_the_data(folder: str) -> None:
    """The data set has the tasks, the group and the fields that its recipes speak of."""
    schemas = SOURCES[SCENARIO_FOLDERS[folder]].forms[0].schemas()
    data = {SCENARIO_FOLDERS[folder]: schemas["schema"].parse()}
    if folder == "ijcai18-cvr":
        data["ijcai18-cvr-cold"] = schemas["schema-cold"].parse()
    for path in RECIPES:
        if not path.is_relative_to(RECIPES_ROOT / folder):
            continue
        recipe = load_recipe(path)
        schema = data[data_of(recipe)]
        assert len(schema.labels) == num_tasks(recipe)
        assert schema.roles.scenario in schema.features
        grouped = "gauc" in recipe.evaluation.metrics
        assert grouped == (schema.roles.group is not None), path
        named = prior_fields(recipe) | {*recipe.evaluation.switched_off}
        assert named | recipe.training.field_dropout.keys() <= field_names(schema), path
        assert recipe.training.monitor in {"auc", *(f"auc/{task}" for task in schema.labels)}


def field_names(schema: TableSchema) -> set[str]:
    """Fields of the rows and of their entities."""
    entities = schema.entities.items()
    return {*schema.features} | {f"{name}.{key}" for name, e in entities for key in e.features}


def test_the_folders_of_scenarios_hold_the_same_models() -> None:
    first, *others = (
        {path.stem: load_recipe(path).model for path in RECIPES if path.parent.name == folder}
        for folder in ("movielens-1m-age", *(SCENARIO_FOLDERS.keys() - {"movielens-1m-age"}))
    )
    assert len(first) == 20
    for models in others:
        # Only Hillstrom's e-mail test has a funnel.
        more = {models[name]["name"] for name in models.keys() - first.keys()}
        assert not more or more >= {"esmm", "escm2", "aitm", "dbmtl"}
        for name, model in first.items():
            for part in (model, models[name]):
                part.get("structure", {}).pop("priors", None)  # fields of the data set
            assert unsearched(models[name]) == unsearched(model), name
