"""The grid of sizes: what is trained, what is skipped, and what is found again."""

from pathlib import Path
from typing import Any

import pytest

from rankloom.config import parse_config
from rankloom.runs.record import find_records, recipe_hash
from rankloom.training.grid import ModelGrid
from rankloom.training.jobs import Job
from rankloom.training.recipe import Recipe
from rankloom.training.scale import PlannedSize, ScaleGrid, scale, size_name


def recipe_of(dataset: Path, model: str = "dnn", **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": f"{model}-log",
        "dataset": str(dataset / "log"),
        "seed": 3,
        "model": {"name": model, "embedding_dim": 4},
        "training": {"epochs": 1, "batch_size": 1024, "learning_rate": 0.01},
        "evaluation": {"metrics": ["auc"]},
    }
    return Recipe.model_validate(values | changes)


def grid_of(**values: Any) -> ScaleGrid:
    return parse_config(ScaleGrid, values, "scale.toml")


SIZES = {"model.hidden": [[4], [8, 8]], "model.embedding_dim": [2, 4]}


def test_every_combination_is_a_size(small_log: Path) -> None:
    found, skipped = grid_of(grid=SIZES).sizes(recipe_of(small_log))
    assert [settings for settings, _ in found] == [
        {"model.hidden": [4], "model.embedding_dim": 2},
        {"model.hidden": [4], "model.embedding_dim": 4},
        {"model.hidden": [8, 8], "model.embedding_dim": 2},
        {"model.hidden": [8, 8], "model.embedding_dim": 4},
    ]
    assert skipped == []
    for settings, recipe in found:
        resolved = recipe.resolved()["model"]
        assert resolved["hidden"] == settings["model.hidden"]
        assert resolved["embedding_dim"] == settings["model.embedding_dim"]
        assert (recipe.name, recipe.seed, recipe.training.epochs) == ("dnn-log", 3, 1)


def test_a_model_or_a_recipe_has_sizes_of_its_own(small_log: Path) -> None:
    grid = grid_of(
        grid={"model.embedding_dim": [2, 4]},
        models={
            "dnn": {"grid": {"model.embedding_dim": [8]}},
            "wide": {"grid": {"model.embedding_dim": [], "model.hidden": [[4], [16]]}},
        },
    )

    def settings(recipe: Recipe) -> list[dict[str, Any]]:
        return [found for found, _ in grid.sizes(recipe)[0]]

    assert settings(recipe_of(small_log, "fm")) == [
        {"model.embedding_dim": 2},
        {"model.embedding_dim": 4},
    ]
    assert settings(recipe_of(small_log)) == [{"model.embedding_dim": 8}]
    wide = recipe_of(small_log, name="wide")  # of model dnn, but the recipe's name comes first
    assert settings(wide) == [{"model.hidden": [4]}, {"model.hidden": [16]}]


def test_keys_that_a_model_lacks_are_skipped_when_asked(small_log: Path) -> None:
    fm = recipe_of(small_log, "fm")
    with pytest.raises(ValueError, match=r"fm-log, model fm: unknown model.hidden"):
        grid_of(grid=SIZES).sizes(fm)
    found, skipped = grid_of(grid=SIZES, skip_unknown=True).sizes(fm)
    assert [settings for settings, _ in found] == [
        {"model.embedding_dim": 2},
        {"model.embedding_dim": 4},
    ]
    assert skipped == ["model.hidden"]


def test_a_grid_without_keys_is_the_recipe_itself(small_log: Path) -> None:
    recipe = recipe_of(small_log)
    assert grid_of().sizes(recipe) == ([({}, recipe)], [])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model.num_layers": 4, "model.dim": 64}, "num_layers=4, dim=64"),
        ({"model.first.dim": 4, "model.second.dim": 8}, "first.dim=4, second.dim=8"),
        ({"model.first.dim, model.second.dim": 4}, "dim=4"),
        ({"model.hidden": [8, 8]}, "hidden=[8, 8]"),
        ({}, "own setting"),
    ],
)
def test_size_name(settings: dict[str, Any], name: str) -> None:
    assert size_name(settings) == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": {"model.name": ["fm"]}}, "model.name cannot be searched"),
        ({"grid": {"model.dim": [4, 4]}}, "model.dim has a value twice"),
        ({"grid": {"model.dim": []}}, "model.dim has no values to try"),
        ({"models": {"fm": {"grid": {"seed": [1]}}}}, "seed cannot be searched"),
        ({"seeds": 0}, "seeds"),
        ({"sizes": 3}, "unknown"),
    ],
)
def test_wrong_grids(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(**values)


def test_runs_are_recorded_found_again_and_stated_by_seed(small_log: Path, tmp_path: Path) -> None:
    grid = grid_of(seeds=2, grid={"model.hidden": [[4], [8]]})
    plans: list[PlannedSize] = []
    sizes = scale([recipe_of(small_log)], grid, out=tmp_path, announce=plans.append)
    assert [(plan.number, plan.total, plan.recorded) for plan in plans] == [
        (number, 4, False) for number in (1, 2, 3, 4)
    ]
    assert [size.settings for size in sizes] == [{"model.hidden": [4]}, {"model.hidden": [8]}]
    for size in sizes:
        assert list(size.runs) == [3, 4]  # from the recipe's own seed on
        assert not size.failures
        for seed, run in size.runs.items():
            assert run.record.seed == seed
            assert run.record.recipe_hash == recipe_hash(size.recipe.resolved())
            assert "auc" in run.record.metrics["test"]
    small, large = (size.runs[3].record.cost["flops_per_row"] for size in sizes)
    assert 0 < small < large
    assert len(find_records(tmp_path)) == 4

    again: list[PlannedSize] = []
    more = scale([recipe_of(small_log)], grid, seeds=3, out=tmp_path, announce=again.append)
    assert [plan.recorded for plan in again] == [True, True, False, True, True, False]
    assert [list(size.runs) for size in more] == [[3, 4, 5], [3, 4, 5]]
    assert more[0].runs[3].record == sizes[0].runs[3].record


def test_a_failed_run_is_listed_and_the_others_go_on(small_log: Path, tmp_path: Path) -> None:
    grid = grid_of(seeds=1, grid={"training.batch_size": [1024, 50_000, 512]})
    ended: list[tuple[int, str]] = []
    sizes = scale(
        [recipe_of(small_log)],
        grid,
        out=tmp_path,
        finished=lambda plan, outcome: ended.append((plan.number, type(outcome).__name__)),
    )
    assert ended == [(1, "StoredRun"), (2, "ValueError"), (3, "StoredRun")]
    assert [len(size.runs) for size in sizes] == [1, 0, 1]
    assert sizes[1].failures[3].startswith("batch_size 50000 is more than the 4800 training rows")


def test_wrong_plans_are_found_before_the_first_run(small_log: Path, tmp_path: Path) -> None:
    recipe, fm = recipe_of(small_log), recipe_of(small_log, "fm")

    def fails(match: str, recipes: list[Recipe], **values: Any) -> None:
        seeds = values.pop("run_seeds", None)
        with pytest.raises(ValueError, match=match):
            scale(recipes, grid_of(**values), seeds=seeds, out=tmp_path / "runs")
        assert not (tmp_path / "runs").exists()

    fails("scale needs at least one recipe", [])
    fails("two recipes are called dnn-log", [recipe, recipe])
    fails("seeds must be at least 1; got 0", [recipe], run_seeds=0)
    fails(
        r"\[models.dnm\] is neither one of the recipes, dnn-log, nor", [recipe], models={"dnm": {}}
    )
    fails(
        r"unknown model.depth[^\n]*\n.*unknown model.depth", [recipe, fm], grid={"model.depth": [1]}
    )
    fails("hidden", [recipe], grid={"model.hidden": ["deep"]})
    same = {"training.learning_rate": [0.01, "0.01"]}
    fails("dnn-log: two sizes of the grid are the same recipe", [recipe], grid=same)


def test_recipes_of_two_data_sets_are_refused(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.training import scale as module

    class Opened:
        def __init__(self, folder: str) -> None:
            self.data_hash = folder

    monkeypatch.setattr(module.Dataset, "open", Opened)
    here, there = recipe_of(small_log), recipe_of(tmp_path, "fm")
    with pytest.raises(ValueError, match="curves are compared on one data set; the recipes name"):
        scale([here, there], ScaleGrid(models={"fm": ModelGrid()}), out=tmp_path)


@pytest.mark.parametrize("fresh", [False, True])
def test_fresh_neither_finds_nor_resumes(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    from rankloom.training import scale as module

    found: list[bool] = []
    jobs: list[Job] = []
    monkeypatch.setattr(module, "find_run", lambda *_: found.append(True))
    monkeypatch.setattr(module, "run_jobs", lambda pending, *_, **__: jobs.extend(pending))
    grid = grid_of(seeds=2, grid={"model.embedding_dim": [2]})
    scale([recipe_of(small_log)], grid, out=tmp_path, fresh=fresh)
    assert [(job.recipe.seed, job.resume) for job in jobs] == [(3, not fresh), (4, not fresh)]
    assert len(found) == (0 if fresh else 2)
