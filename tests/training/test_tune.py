"""A search: what is tried, how the best is chosen, and that it can go on where it stopped."""

from pathlib import Path
from typing import Any

import pytest

from rankloom.data.store import Dataset, StoredSplit
from rankloom.report.tuning import best_recipe, to_markdown, write_tuning
from rankloom.runs.history import read_history
from rankloom.runs.record import find_records, read_record
from rankloom.training.compare import compare
from rankloom.training.course import Progress
from rankloom.training.grid import Grid, changed_recipe, load_grid, plan_settings, recipe_values
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.run import Run
from rankloom.training.trials import Search, Trial, TuneResult, best_trial, read_result
from rankloom.training.tune import PlannedTrial, tune


def recipe_of(dataset: Path, model: str = "fm", **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": f"{model}-log",
        "dataset": str(dataset / "log"),
        "seed": 3,
        "model": {"name": model, "embedding_dim": 4},
        "training": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01},
        "evaluation": {"metrics": ["log_loss"]},  # the monitored one need not be among them
    }
    return Recipe.model_validate(values | changes)


GRID = Grid.model_validate(
    {"trials": 3, "seed": 5, "grid": {"training.learning_rate": [0.01, 0.001, 0.05]}}
)


@pytest.fixture(scope="module")
def searched(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuneResult]:
    out = tmp_path_factory.mktemp("search")
    return out, tune([recipe_of(small_log)], GRID, out=out)


def test_the_best_trial_is_the_one_of_the_best_validation_metric(
    searched: tuple[Path, TuneResult],
) -> None:
    _, result = searched
    (search,) = result.searches
    assert (search.combinations, search.whole_grid, search.planned) == (3, True, 3)
    assert [trial.number for trial in search.trials] == [1, 2, 3]
    assert search.trials[0].settings == {"training.learning_rate": 0.01}  # the recipe's own
    rates = {trial.settings["training.learning_rate"] for trial in search.trials}
    assert rates == {0.01, 0.001, 0.05}
    metrics = []
    for trial in search.trials:
        assert trial.folder is not None
        history = read_history(trial.folder)
        metrics.append(float(history["auc"].to_numpy().max()))
        assert trial.metric == metrics[-1]
        run = Run.open(trial.folder)
        assert run.evaluate("valid", metrics=["auc"]).metrics["auc"] == pytest.approx(trial.metric)
        assert run.record.seed == 5
        assert run.record.training is not None
        assert (trial.epochs, trial.seconds) == (2, run.record.training.seconds)
        assert trial.threads == run.record.machine.threads
    assert len(set(metrics)) == 3
    assert search.best == 1 + metrics.index(max(metrics))


def test_no_row_of_the_test_split_is_read(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    whole, by_index, ascending = StoredSplit.slice, StoredSplit.gather, StoredSplit.gather_ascending

    def sliced(self: StoredSplit, start: int, stop: int) -> Any:
        read.add(self.name)
        return whole(self, start, stop)

    def gathered(self: StoredSplit, rows: Any) -> Any:
        read.add(self.name)
        return by_index(self, rows)

    def gathered_ascending(self: StoredSplit, rows: Any) -> Any:
        read.add(self.name)
        return ascending(self, rows)

    monkeypatch.setattr(StoredSplit, "slice", sliced)
    monkeypatch.setattr(StoredSplit, "gather", gathered)
    monkeypatch.setattr(StoredSplit, "gather_ascending", gathered_ascending)
    result = tune([recipe_of(small_log)], Grid(trials=1), out=tmp_path)
    assert read == {"train", "valid"}
    (run,) = find_records(tmp_path)
    assert set(run.record.metrics) == {"valid"}
    assert result.searches[0].rows == {"train": 4800, "valid": 600}
    compare([recipe_of(small_log, seed=0)], seeds=1, out=tmp_path)
    assert read == {"train", "valid", "test"}  # the test above would have seen it


def test_the_same_search_again_trains_nothing(
    searched: tuple[Path, TuneResult], small_log: Path
) -> None:
    out, result = searched
    plans: list[PlannedTrial] = []
    again = tune([recipe_of(small_log)], GRID, out=out, announce=plans.append)
    assert all(plan.recorded for plan in plans)
    assert [(plan.trial, plan.trials, plan.number, plan.total) for plan in plans] == [
        (1, 3, 1, 3),
        (2, 3, 2, 3),
        (3, 3, 3, 3),
    ]
    assert again.searches == result.searches


def test_parallel_trials_equal_those_one_after_another(
    searched: tuple[Path, TuneResult], small_log: Path, tmp_path: Path
) -> None:
    _, expected = searched
    ended: list[int] = []
    result = tune(
        [recipe_of(small_log)],
        GRID,
        out=tmp_path,
        jobs=2,
        finished=lambda planned, trial, so_far: ended.append(len(so_far.searches[0].trials)),
    )
    assert ended == [1, 2, 3]
    assert result.jobs == 2

    def figures(search: Search) -> list[tuple[Any, ...]]:
        return [(trial.settings, trial.metric, trial.epochs) for trial in search.trials]

    assert figures(result.searches[0]) == figures(expected.searches[0])
    assert result.searches[0].best == expected.searches[0].best
    assert {trial.threads for trial in result.searches[0].trials} == {1}


def test_an_interrupted_search_goes_on(
    searched: tuple[Path, TuneResult], small_log: Path, tmp_path: Path
) -> None:
    _, expected = searched

    def interrupt(planned: PlannedTrial, state: Progress) -> None:
        if planned.trial == 2 and state.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune([recipe_of(small_log)], GRID, out=tmp_path, progress=interrupt)
    assert len(find_records(tmp_path)) == 1
    plans: list[PlannedTrial] = []
    result = tune([recipe_of(small_log)], GRID, out=tmp_path, announce=plans.append)
    assert [plan.recorded for plan in plans] == [True, False, False]
    metrics = [trial.metric for trial in result.searches[0].trials]
    assert metrics == [trial.metric for trial in expected.searches[0].trials]
    second = read_record(str(result.searches[0].trials[1].folder))
    assert second.training is not None
    assert second.training.resumed


def test_a_trial_that_diverges_or_cannot_run_fails_and_the_others_go_on(
    small_log: Path, tmp_path: Path
) -> None:
    grid = Grid(
        trials=4,
        grid={"training.learning_rate": (1e30,), "training.batch_size": (100_000, 512)},
    )
    values = {"epochs": 1, "batch_size": 512, "clip_norm": None}
    result = tune([recipe_of(small_log, training=values)], grid, out=tmp_path)
    (search,) = result.searches
    assert search.planned == 3
    errors = {}
    for trial in search.trials[1:]:
        assert trial.status == "failed"
        assert trial.metric is None
        errors[trial.settings["training.batch_size"]] = trial.error
    assert "batch_size 100000 is more than the 4800 training rows" in str(errors[100_000])
    assert "the loss is not a finite number at step" in str(errors[512])
    assert search.best == 1
    assert "failed: the loss is not a finite number" in to_markdown(result)


def test_written_results(
    searched: tuple[Path, TuneResult], small_log: Path, tmp_path: Path
) -> None:
    _, result = searched
    files = write_tuning(tmp_path, result, command="rankloom tune fm.toml --grid grid.toml")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "tune.json",
        "tune.md",
        "best/fm-log.toml",
    ]
    assert read_result(tmp_path) == result
    (search,) = result.searches
    best = search.trials[search.best - 1]  # type: ignore[operator]
    assert best.metric is not None
    page = files[1].read_text(encoding="utf-8")
    assert f"{best.metric:.6f}" in page
    assert "trials: 3 (all of a grid of 3)" in page
    assert "rankloom tune fm.toml --grid grid.toml" in page
    found = load_recipe(files[2])
    recipe = recipe_of(small_log)
    assert found == changed_recipe(recipe, best.settings)
    assert found.seed == 3  # its own, not that of the search
    header = [line for line in files[2].read_text(encoding="utf-8").splitlines() if "#" in line]
    assert f"trial {best.number} of 3 (all of a grid of 3); seed 5." in header[0]
    assert f"Validation auc {best.metric:.6f}" in header[1]
    assert f"own setting {search.trials[0].metric:.6f}" in header[1]


def test_the_best_recipe_is_compared_without_training_what_the_search_trained(
    searched: tuple[Path, TuneResult], tmp_path: Path
) -> None:
    out, result = searched
    (search,) = result.searches
    files = write_tuning(tmp_path, result)
    best = load_recipe(files[2]).model_copy(update={"seed": 5})
    (run,) = compare([best], seeds=1, out=out)
    trial = search.trials[search.best - 1]  # type: ignore[operator]
    assert str(run.folder) == trial.folder
    assert set(run.record.metrics) == {"valid", "test"}
    assert run.record.finished <= result.finished


def trial_of(number: int, metric: float | None) -> Trial:
    status = "failed" if metric is None else "completed"
    return Trial(number=number, settings={}, status=status, metric=metric)


def test_of_equal_trials_the_earlier_one_is_the_best() -> None:
    trials = [trial_of(1, 0.5), trial_of(2, None), trial_of(3, 0.75), trial_of(4, 0.75)]
    highest, lowest = best_trial(trials, "max"), best_trial(trials, "min")
    assert highest is not None
    assert lowest is not None
    assert (highest.number, lowest.number) == (3, 1)
    lowest = best_trial([trial_of(1, 0.5), trial_of(2, 0.25), trial_of(3, 0.25)], "min")
    assert lowest is not None
    assert lowest.number == 2
    assert best_trial([trial_of(1, None)], "max") is None


def test_a_recipe_whose_trials_all_failed_has_no_best(small_log: Path, tmp_path: Path) -> None:
    recipe = recipe_of(small_log, training={"batch_size": 10**6})
    result = tune([recipe], Grid(trials=1), out=tmp_path)
    assert result.searches[0].best is None
    assert [file.name for file in write_tuning(tmp_path, result)] == ["tune.json", "tune.md"]
    with pytest.raises(ValueError, match="no trial of fm-log is completed"):
        best_recipe(result, result.searches[0])


def test_every_recipe_has_the_same_budget(small_log: Path, tmp_path: Path) -> None:
    grid = Grid(
        trials=3,
        skip_unknown=True,
        grid={"training.embedding_l2": (0.0, 0.1), "model.dropout": (0.0, 0.2)},
    )
    plans: list[PlannedTrial] = []
    training = {"epochs": 1, "batch_size": 2048}
    recipes = [
        recipe_of(small_log, "dnn", training=training),
        recipe_of(small_log, training=training),
    ]
    result = tune(recipes, grid, out=tmp_path, announce=plans.append)
    dnn, fm = result.searches
    assert (dnn.planned, dnn.combinations, dnn.whole_grid) == (3, 4, False)
    assert (fm.planned, fm.combinations, fm.whole_grid) == (2, 2, True)
    assert fm.skipped == ("model.dropout",)
    assert [plan.number for plan in plans] == [1, 2, 3, 4, 5]
    page = to_markdown(result)
    assert "trials: 3 (from a grid of 4)" in page
    assert "trials: 2 (all of a grid of 2)" in page
    assert "Not settings of this model: model.dropout." in page


def test_the_order_is_drawn_by_the_seed_without_repeats(small_log: Path) -> None:
    recipe = recipe_of(small_log, "dnn")
    grid: dict[str, tuple[Any, ...]] = {
        "model.dropout": (0.0, 0.1, 0.2, 0.3),
        "training.embedding_l2": (0.0, 0.1, 0.2),
    }
    whole = plan_settings(recipe, grid, 100, seed=1)
    settings = [tuple(setting.values.values()) for setting in whole.settings]
    assert whole.whole
    assert settings[0] == (0.0, 0.0)  # the recipe's own is on this grid, and stands there once
    assert sorted(settings) == sorted(
        (dropout, l2) for dropout in (0.0, 0.1, 0.2, 0.3) for l2 in (0.0, 0.1, 0.2)
    )
    part = plan_settings(recipe, grid, 5, seed=1)
    assert [tuple(setting.values.values()) for setting in part.settings] == settings[:5]
    assert not part.whole
    assert plan_settings(recipe, grid, 12, seed=1).whole
    other = plan_settings(recipe, grid, 5, seed=2)
    assert other.settings != part.settings
    outside = plan_settings(recipe, {"model.dropout": (0.1, 0.2)}, 100, seed=1)
    assert outside.settings[0].values["model.dropout"] == 0.0
    assert len(outside.settings) == 3
    assert outside.settings[1].recipe.settings().model_dump()["dropout"] in (0.1, 0.2)
    with pytest.raises(ValueError, match="has 1,048,576 combinations, more than 1,000,000"):
        plan_settings(recipe, {f"training.{i}": (1, 2) for i in range(20)}, 3, seed=1)


def test_a_nested_value_keeps_the_other_values_of_its_table(small_log: Path) -> None:
    """Wukong's networks have widths of their own; naming their dropout leaves these."""
    recipe = recipe_of(small_log, "wukong")
    changes = {"model.block.dropout": 0.5, "training.clip_norm": None}
    values = recipe_values(recipe, changes)
    assert values["model"]["block"]["hidden"] == [512, 256]
    assert values["model"]["block"]["dropout"] == 0.5
    assert values["model"].keys() == {"name", "embedding_dim", "block"}
    assert values["training"]["clip_norm"] == "none"
    assert values["training"]["epochs"] == 2
    assert "schedule" not in values["training"]
    expected = recipe.resolved()
    expected["model"]["block"]["dropout"] = 0.5
    expected["training"]["clip_norm"] = None
    assert changed_recipe(recipe, changes).resolved() == expected
    nested = changed_recipe(recipe, {"training.schedule.factor": 0.5})
    assert nested.training.schedule.model_dump()["factor"] == 0.5
    assert recipe_values(recipe, {}) == recipe.model_dump(mode="json", exclude_unset=True)
    assert changed_recipe(recipe, {}) == recipe


def test_joined_keys_take_the_same_value(small_log: Path) -> None:
    recipe = recipe_of(small_log, "finalmlp")
    key = "model.first.dropout, model.second.dropout"
    grid = Grid(trials=9, grid={key: (0.0, 0.2, 0.4), "training.embedding_l2": (0.0, 0.1)})
    values, _ = grid.for_recipe(recipe)
    plan = plan_settings(recipe, values, 9, seed=0)
    assert plan.combinations == len(plan.settings) == 6
    assert plan.settings[0].values == {key: 0.0, "training.embedding_l2": 0.0}
    for setting in plan.settings:
        model = setting.recipe.resolved()["model"]
        assert model["first"]["dropout"] == model["second"]["dropout"] == setting.values[key]
    two = changed_recipe(recipe, {"model.first.dropout": 0.5})
    own = plan_settings(two, values, 9, seed=0).settings
    assert own[0].values[key] == [0.5, 0.0]
    assert len(own) == 7
    both = Grid(trials=9, grid={key: (0.0, 0.2), "model.first.dropout": (0.0,)})
    with pytest.raises(ValueError, match="model.first.dropout is searched under two keys"):
        both.for_recipe(recipe)
    skipping = Grid(trials=9, skip_unknown=True, grid={key: (0.0,)})
    assert skipping.for_recipe(recipe_of(small_log)) == ({}, [key])


def test_settings_of_a_model_that_is_a_part_can_be_searched(small_log: Path) -> None:
    key = "model.bottom.dropout, model.tower.dropout"
    grid = Grid(trials=9, grid={key: (0.0, 0.2)})
    stated = {"name": "shared_bottom", "bottom": {"name": "dnn", "hidden": [8]}}
    for model, hidden in (({"name": "shared_bottom"}, [400, 400, 400]), (stated, [8])):
        recipe = recipe_of(small_log).model_copy(update={"model": model})
        values, _ = grid.for_recipe(recipe)
        first, second = plan_settings(recipe, values, 9, seed=0).settings
        assert first.values == {key: 0.0}
        settings = second.recipe.resolved()["model"]
        assert settings["bottom"]["dropout"] == settings["tower"]["dropout"] == 0.2
        assert settings["bottom"]["hidden"] == hidden
    for wrong in ("model.bottom.num_crosses", "model.bottom.hidden.first"):
        with pytest.raises(ValueError, match=f"unknown {wrong}"):
            Grid(trials=9, grid={wrong: (3,)}).for_recipe(recipe)


def test_grid_files(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'trials = 4\n[grid]\n"model.dropout" = [0.0, 0.2]\ntraining.embedding_l2 = [0.1]\n'
        '[models.fm.grid]\n"model.dropout" = []\n"training.embedding_l2" = [0.5, 1.0]\n'
    )
    grid = load_grid(path, seed=9)
    assert (grid.trials, grid.seed) == (4, 9)
    assert grid.grid == {"model.dropout": (0.0, 0.2), "training.embedding_l2": (0.1,)}
    fm = Recipe(name="a", dataset="x", model={"name": "fm"})
    assert grid.for_recipe(fm) == ({"training.embedding_l2": (0.5, 1.0)}, [])
    assert load_grid(path, trials=2).trials == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[grid]\n"model.dropout" = [0.1]', "trials is missing"),
        ("trials = 0", "trials: Input should be greater than 0"),
        ('trials = 1\n[grid]\n"model.dropout" = []', "model.dropout has no values to try"),
        ('trials = 1\n[grid]\n"model.dropout" = 0.1', "model.dropout"),
        ('trials = 1\n[grid]\n"model.dropout" = [0, 0.0]', "model.dropout has a value twice"),
        ('trials = 1\n[grid]\n"seed" = [1, 2]', "seed cannot be searched; a grid takes keys of"),
        ('trials = 1\n[grid]\n"training.monitor" = ["auc"]', "training.monitor cannot be searched"),
        ("trials = 1\n[models.deepfmm.grid]", "unknown model 'deepfmm'"),
        ("trial = 1", "unknown key trial; did you mean trials?"),
    ],
)
def test_wrong_grid_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="grid.toml") as error:
        load_grid(path)
    assert message in str(error.value)


def test_wrong_searches_end_before_the_first_trial(small_log: Path, tmp_path: Path) -> None:
    fm, dnn = recipe_of(small_log), recipe_of(small_log, "dnn")
    wrong = Grid(trials=2, grid={"model.dropout": (0.1,), "training.lr": (1.0,)})
    with pytest.raises(ValueError, match="fm-log, model fm: unknown model.dropout") as error:
        tune([dnn, fm], wrong, out=tmp_path)
    assert "dnn-log, model dnn: unknown training.lr; correct the key" in str(error.value)
    skipping = wrong.model_copy(update={"skip_unknown": True})
    with pytest.raises(ValueError, match="fm-log, model fm: unknown training.lr; correct"):
        tune([fm], skipping, out=tmp_path)
    own = {"models": {"fm": {"grid": {"model.dropout": [0.1]}}}, "skip_unknown": True}
    with pytest.raises(ValueError, match="fm-log, model fm: unknown model.dropout"):
        tune([fm], Grid.model_validate({"trials": 2} | own), out=tmp_path)
    with pytest.raises(
        ValueError, match="dnn-log with model.dropout = 2.0: .*less than 1; got 2.0"
    ):
        tune([dnn], Grid(trials=2, grid={"model.dropout": (2.0,)}), out=tmp_path)
    with pytest.raises(ValueError, match="two recipes are called fm-log"):
        tune([fm, fm], GRID, out=tmp_path)
    with pytest.raises(ValueError, match="at least one recipe"):
        tune([], GRID, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_search_needs_a_validation_split(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "splits", ("train", "test"))
    with pytest.raises(ValueError, match="has no valid split, which a search needs; it has train"):
        tune([recipe_of(small_log)], GRID, out=tmp_path)
