"""Recipes of retrieval models: what they hold, what they refuse, and which kind a file is."""

from pathlib import Path

import pytest
from retrieval_toy import toy_recipe

from rankloom.config import parse_config, to_toml
from rankloom.runs.record import recipe_hash
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.recipes import load_any_recipe
from rankloom.training.retrieval_recipe import RetrievalRecipe, load_retrieval_recipe

BASE = """
dataset = "data"

[tokenizer]
kind = "rq_kmeans"
level_sizes = [6, 5]

[model]
name = "decoder"
dim = 16
"""


def test_a_recipe_survives_toml(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, merges={"max_merges": 3}, collisions={"kind": "leave"})
    (tmp_path / "toy.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert load_retrieval_recipe(tmp_path / "toy.toml") == recipe
    assert recipe_hash(recipe.resolved()) == recipe_hash(
        load_retrieval_recipe(tmp_path / "toy.toml", ["name=other", "seed=9"]).resolved()
    )


def test_a_recipe_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    text = 'base = "base.toml"\n[model]\nnum_layers = 2\n[tokenizer]\nlevel_sizes = [4]\n'
    (tmp_path / "other.toml").write_text(text, encoding="utf-8")
    other = load_retrieval_recipe(tmp_path / "other.toml", ["model.dropout=0.3"])
    assert other.name == "other"
    assert other.model == {"name": "decoder", "dim": 16, "num_layers": 2, "dropout": 0.3}
    assert other.tokenizer is not None
    assert other.tokenizer.model_dump()["level_sizes"] == (4,)
    assert other.max_length == 50
    assert other.training.monitor == "ndcg@10"


def test_the_family_of_the_model_says_of_which_kind_a_recipe_is(tmp_path: Path) -> None:
    (tmp_path / "decoder.toml").write_text(BASE, encoding="utf-8")
    (tmp_path / "lr.toml").write_text('dataset = "d"\n[model]\nname = "lr"\n', encoding="utf-8")
    (tmp_path / "none.toml").write_text('dataset = "d"\n[model]\nname = "x"\n', encoding="utf-8")
    assert isinstance(load_any_recipe(tmp_path / "decoder.toml"), RetrievalRecipe)
    assert isinstance(load_any_recipe(tmp_path / "lr.toml"), Recipe)
    with pytest.raises(ValueError, match="unknown model 'x'; known models: adaptdhm"):
        load_any_recipe(tmp_path / "none.toml")
    with pytest.raises(
        ValueError, match="^.*decoder.toml: decoder retrieves items and does not score rows.*$"
    ):
        load_recipe(tmp_path / "decoder.toml")


def test_models_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="popularity retrieves items and does not score rows"):
        parse_config(Recipe, {"name": "a", "dataset": "d", "model": {"name": "popularity"}}, "r")
    with pytest.raises(ValueError, match="lr scores rows; this takes recipes of retrieval models"):
        parse_config(RetrievalRecipe, {"name": "a", "dataset": "d", "model": {"name": "lr"}}, "r")


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoder needs semantic ids: add a tokenizer"):
        toy_recipe(tmp_path, tokenizer=None)
    with pytest.raises(ValueError, match="merges are of the tokens of semantic ids"):
        toy_recipe(tmp_path, tokenizer=None, model={"name": "sasrec"}, merges={})
    with pytest.raises(ValueError, match='model needs a name, such as name = "decoder"'):
        toy_recipe(tmp_path, model={})
    with pytest.raises(ValueError, match="model decoder: unknown key dims; did you mean dim"):
        toy_recipe(tmp_path, model={"name": "decoder", "dims": 3})
    values = toy_recipe(tmp_path).model_dump(mode="json") | {"tokenizer": {"kind": "kmeans"}}
    with pytest.raises(ValueError, match="unknown kind 'kmeans' of tokenizer"):
        parse_config(RetrievalRecipe, values, "recipe")
