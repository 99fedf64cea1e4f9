"""From recipe to run folder and back, on a small made-up log."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from rankloom.data.store import Dataset
from rankloom.evaluation.by_scenario import SUMMARIES, split_summary
from rankloom.runs.history import read_history
from rankloom.runs.record import read_record
from rankloom.training.compare import PlannedRun, compare
from rankloom.training.experiment import train
from rankloom.training.recipe import Recipe, load_recipe
from rankloom.training.run import Run


def make_recipe(dataset: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "dataset": str(dataset),
        "seed": 3,
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 3, "batch_size": 256, "learning_rate": 0.01},
        "evaluation": {"metrics": ["auc", "log_loss"]},
    }
    return Recipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def finished(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(make_recipe(small_log / "log"), out=tmp_path_factory.mktemp("runs"))


def test_a_run_folder_is_complete(finished: Run) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"recipe.toml", "record.json", "metrics.parquet", "model.safetensors"}
    record = read_record(finished.folder)
    assert record.seed == 3
    assert record.training is not None
    assert record.training.steps == record.training.epochs * 19  # 4,800 rows in batches of 256
    assert set(record.metrics) == {"valid", "test"}
    over = {f"{name}_{ending}" for name in ("auc", "log_loss") for ending in SUMMARIES}
    assert set(record.metrics["test"]) == {"auc", "log_loss"} | over
    worst = min(record.scenarios["test"].values(), key=lambda figures: figures["auc"])
    assert record.metrics["test"]["auc_worst"] == worst["auc"]
    assert {"rows", "positives", "auc", "log_loss"} == set(worst)
    assert record.metrics["test"]["auc"] > 0.6
    assert record.cost["embedding_parameters"] > 0
    assert record.cost["inference_rows_per_second"] > 0
    history = read_history(finished.folder)
    assert history.height == record.training.epochs
    assert history["auc"].max() == pytest.approx(record.metrics["valid"]["auc"], abs=1e-12)


def test_the_recorded_weights_are_those_of_the_best_evaluation(finished: Run) -> None:
    again = Run.open(finished.folder)
    assert again.evaluate("valid").metrics == finished.record.metrics["valid"]
    assert again.evaluate("test").metrics == finished.record.metrics["test"]


def test_a_mean_over_scenarios_may_be_monitored(small_log: Path, tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 256, "monitor": "auc_macro"}
    run = train(make_recipe(small_log / "log", training=training), out=tmp_path)
    best = read_history(run.folder)["auc_macro"].max()
    assert best == pytest.approx(run.record.metrics["valid"]["auc_macro"], abs=1e-12)


def test_evaluate_takes_other_metrics(finished: Run) -> None:
    found = finished.evaluate("test", metrics=["gauc", "ece"]).metrics
    assert {split_summary(name)[0] for name in found} == {"gauc", "gauc_coverage", "ece"}
    with pytest.raises(ValueError, match="no split 'dev' in .*; known: train, valid, test"):
        finished.evaluate("dev")


@pytest.mark.parametrize("kind", ["polars", "pandas", "pyarrow", "dict"])
def test_predict_keeps_kind_and_order(finished: Run, small_log: Path, kind: str) -> None:
    rows = pl.read_csv(small_log / "log.csv", n_rows=50)
    frame = {
        "polars": rows,
        "pandas": rows.to_arrow().to_pandas(),
        "pyarrow": rows.to_arrow(),
        "dict": rows.to_dict(as_series=False),
    }[kind]
    scores = finished.predict(frame)
    expected = {"polars": pl.DataFrame, "dict": pl.DataFrame, "pandas": pd.DataFrame}
    assert isinstance(scores, expected.get(kind, pa.Table))
    values = np.asarray(scores["click"])
    assert values.shape == (50,)
    assert ((values > 0) & (values < 1)).all()
    backwards = finished.predict(rows.reverse())["click"].to_numpy()
    np.testing.assert_array_equal(backwards[::-1], values)


def test_predict_agrees_with_the_prepared_data_set(finished: Run, small_log: Path) -> None:
    """The raw rows of the test split, encoded again, give the scores of the stored rows."""
    stored = finished.dataset.split("test")
    with torch.inference_mode():
        logits = finished.model(stored.slice(0, stored.rows).without_labels())[:, 0]
    raw = pl.read_csv(small_log / "log.csv")
    scores = finished.predict(raw)["click"].to_numpy()
    expected = torch.sigmoid(logits.double()).numpy()
    # The split is a random one: compare as sets of values.
    position = np.searchsorted(np.sort(scores), expected)
    nearest = np.sort(scores)[np.clip(position, 0, len(scores) - 1)]
    below = np.sort(scores)[np.clip(position - 1, 0, len(scores) - 1)]
    gap = np.minimum(abs(nearest - expected), abs(below - expected))
    assert gap.max() < 1e-6


def test_predict_takes_unseen_values_and_missing_columns_clearly(
    finished: Run, small_log: Path
) -> None:
    rows = pl.read_csv(small_log / "log.csv", n_rows=3)
    unseen = rows.with_columns(user=pl.lit("never seen before"))
    assert finished.predict(unseen).height == 3
    with pytest.raises(ValueError, match="item"):
        finished.predict(rows.drop("item"))
    with pytest.raises(TypeError, match="a frame is a polars, pandas or pyarrow table"):
        finished.predict([1, 2, 3])


def test_predict_table_streams_into_a_file(
    finished: Run, small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankloom.training.run.PREDICTION_ROWS", 1_000)
    rows = finished.predict_table(str(small_log / "log.csv"), tmp_path / "scores.parquet")
    assert rows == 6_000
    whole = finished.predict(pl.read_csv(small_log / "log.csv"))
    written = pl.read_parquet(tmp_path / "scores.parquet")
    np.testing.assert_allclose(written["click"], whole["click"], rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_same_seed_same_numbers_other_seed_other_numbers(
    finished: Run, small_log: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(small_log / "log")
    assert train(recipe, out=tmp_path / "a").record.metrics == finished.record.metrics
    assert train(recipe, out=tmp_path / "b", seed=4).record.metrics != finished.record.metrics


def test_a_finished_run_is_not_trained_again(finished: Run, small_log: Path) -> None:
    out = finished.folder.parents[1]
    again = train(make_recipe(small_log / "log"), out=out)
    assert again.record.finished == finished.record.finished
    assert again.folder == finished.folder


def test_an_interrupted_run_continues_and_ends_equal(
    finished: Run, small_log: Path, tmp_path: Path
) -> None:
    def interrupt(state: Any) -> None:
        if state.step >= 25:
            raise KeyboardInterrupt

    recipe = make_recipe(small_log / "log")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path, progress=interrupt)
    (folder,) = (tmp_path / Dataset.open(small_log / "log").name).iterdir()
    assert not (folder / "record.json").exists()
    run = train(recipe, out=tmp_path)
    assert run.record.training is not None
    assert run.record.training.resumed
    assert run.record.metrics == finished.record.metrics


def test_another_data_set_is_refused(finished: Run, small_log: Path, tmp_path: Path) -> None:
    from rankloom.data.prepare import prepare

    text = (small_log / "schema.toml").read_text(encoding="utf-8")
    shutil.copy(small_log / "log.csv", tmp_path / "log.csv")
    (tmp_path / "schema.toml").write_text(text.replace("min_count = 1", "min_count = 50"))
    prepare(tmp_path / "schema.toml", tmp_path / "other")
    with pytest.raises(ValueError, match="is not the data set of .*: its hash is"):
        _ = Run.open(finished.folder, dataset=tmp_path / "other").dataset


def test_compare_skips_what_is_recorded(small_log: Path, tmp_path: Path) -> None:
    plans: list[PlannedRun] = []
    recipe = make_recipe(small_log / "log", training={"epochs": 1, "batch_size": 512})
    first = compare([recipe], seeds=2, out=tmp_path)
    again = compare([recipe], seeds=3, out=tmp_path, announce=plans.append)
    assert [plan.recorded for plan in plans] == [True, True, False]
    assert [run.record.seed for run in again] == [3, 4, 5]
    assert again[0].record.finished == first[0].record.finished


def test_recipe_errors_name_what_is_known(tmp_path: Path, small_log: Path) -> None:
    good = make_recipe(small_log / "log")
    path = tmp_path / "r.toml"
    path.write_text('dataset = "x"\n[model]\nname = "deepfmm"\n')
    with pytest.raises(ValueError, match="unknown model 'deepfmm'; known models: .*deepfm"):
        load_recipe(path)
    path.write_text('dataset = "x"\n[model]\nname = "deepfm"\nembeding_dim = 8\n')
    with pytest.raises(ValueError, match="unknown key embeding_dim; did you mean embedding_dim"):
        load_recipe(path)
    path.write_text('dataset = "x"\n[model]\nname = "deepfm"\n[training]\nlr = 1\n')
    with pytest.raises(ValueError, match=r"unknown key training.lr.*known keys:.*learning_rate"):
        load_recipe(path)
    path.write_text('dataset = "x"\n[model]\nembedding_dim = 8\n')
    with pytest.raises(ValueError, match="model needs a name"):
        load_recipe(path)
    path.write_text('dataset = "x"\n[model]\nname = "fm"\n')
    assert load_recipe(path, ["seed=7", "model.embedding_dim=3"]).seed == 7
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_recipe(tmp_path / "none.toml")
    huge = good.model_copy(
        update={"training": good.training.model_copy(update={"batch_size": 10**6})}
    )
    with pytest.raises(ValueError, match="batch_size 1000000 is more than the 4800 training rows"):
        train(huge, out=tmp_path)
