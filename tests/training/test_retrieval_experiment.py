"""From a retrieval recipe to a run folder: complete, found again, resumed, compared, searched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retrieval_toy import DECODER, SMALL, scorer, toy_data, toy_recipe

from rankloom.data.sequence_store import SequenceData
from rankloom.evaluation.retrieval_metrics import summarise_places
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.runs.history import read_history
from rankloom.runs.record import read_record
from rankloom.training.compare import compare
from rankloom.training.course import Progress
from rankloom.training.grid import Grid
from rankloom.training.recipes import load_any_recipe, open_run, run_recipe
from rankloom.training.retrieval_evaluation import read_places
from rankloom.training.retrieval_experiment import train_retrieval
from rankloom.training.retrieval_run import IDS_FOLDER, RetrievalRun
from rankloom.training.tune import tune


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalRun:
    return train_retrieval(toy_recipe(dataset), out=tmp_path_factory.mktemp("runs"))


def test_a_run_folder_is_complete(finished: RetrievalRun, dataset: Path) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "recipe.toml",
        "record.json",
        "metrics.parquet",
        "model.safetensors",
        "semantic_ids",
        "places-valid.parquet",
        "places-test.parquet",
    }
    data = SequenceData.open(dataset)
    record = read_record(finished.folder)
    assert (record.family, record.model, record.seed) == ("retrieval", "decoder", 2)
    assert record.dataset.data_hash == data.data_hash
    assert record.dataset.rows == {"train": 100, "valid": 100, "test": 100}
    assert record.dataset.items == 40
    assert record.dataset.interactions == data.histories.items.size
    assert record.training is not None
    assert record.training.epochs == 2
    assert record.training.shuffle_order == "similar_length"
    assert set(record.metrics) == {"valid", "test"}
    expected = {f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "recall_id") for k in (5, 10)}
    assert set(record.metrics["test"]) == {*expected, "invalid_rate"}
    assert record.metrics["test"]["invalid_rate"] == 0
    slices = record.scenarios["test"]
    assert sum(int(slices[name]["rows"]) for name in ("head", "torso", "tail")) == 100
    assert record.cost["dense_parameters"] > 0
    assert record.cost["inference_rows_per_second"] > 0
    assert SemanticIds.load(finished.folder / IDS_FOLDER).items_hash == data.catalogue.items_hash
    history = read_history(finished.folder)
    assert history["ndcg@10"].max() == pytest.approx(record.metrics["valid"]["ndcg@10"])


def test_the_recorded_figures_are_those_of_the_weights_and_places(finished: RetrievalRun) -> None:
    again = RetrievalRun.open(finished.folder)
    for split in ("valid", "test"):
        assert again.evaluate(split).metrics == finished.record.metrics[split]
        places = read_places(finished.folder, split)
        recorded = finished.record.metrics[split]
        for name, value in summarise_places(places, (5, 10)).items():
            assert recorded[name] == value
    with pytest.raises(ValueError, match="no split 'train' of held-out items; known: valid, test"):
        again.evaluate("train")
    with pytest.raises(FileNotFoundError, match="no places-dev.parquet"):
        read_places(finished.folder, "dev")


def test_a_finished_run_is_found(finished: RetrievalRun, dataset: Path) -> None:
    states: list[Progress] = []
    out = finished.folder.parents[1]
    again = train_retrieval(toy_recipe(dataset), out=out, progress=states.append)
    assert again.folder == finished.folder
    assert states == []
    assert again.record == finished.record


def test_splits_that_a_run_lacks_are_added(dataset: Path, tmp_path: Path) -> None:
    recipe = scorer(dataset, training={"epochs": 1, "batch_size": 32})
    run = train_retrieval(recipe, out=tmp_path, splits=("valid",))
    assert set(run.record.metrics) == {"valid"}
    completed = train_retrieval(recipe, out=tmp_path)
    assert completed.record.started == run.record.started
    assert completed.record.metrics["test"] == completed.evaluate("test").metrics
    assert read_places(completed.folder, "test").num_users == 100


def test_the_same_seed_gives_the_same_run(dataset: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(dataset, model=DECODER | {"dropout": 0.2})
    first = train_retrieval(recipe, out=tmp_path / "a")
    second = train_retrieval(recipe, out=tmp_path / "b")
    other = train_retrieval(recipe, out=tmp_path / "a", seed=5)
    assert first.record.metrics == second.record.metrics
    assert first.record.metrics != other.record.metrics


class InterruptedHereError(Exception):
    """Raised to stop a training."""


def test_an_interrupted_training_goes_on_exactly(dataset: Path, tmp_path: Path) -> None:
    training = {"epochs": 3, "batch_size": 32, "checkpoint_steps": 1}
    recipe = scorer(dataset, training=training)
    whole = train_retrieval(recipe, out=tmp_path / "whole")

    def stop(state: Progress) -> None:
        if state.step >= 6:
            raise InterruptedHereError

    with pytest.raises(InterruptedHereError):
        train_retrieval(recipe, out=tmp_path / "parts", progress=stop)
    run = train_retrieval(recipe, out=tmp_path / "parts")
    assert run.record.training is not None
    assert run.record.training.resumed
    assert run.record.metrics == whole.record.metrics


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_counted_models_skip_the_loop(dataset: Path, tmp_path: Path, name: str) -> None:
    run = train_retrieval(scorer(dataset, model={"name": name}), out=tmp_path)
    assert run.record.training is not None
    assert (run.record.training.steps, run.record.training.stopped) == (0, "counted")
    assert RetrievalRun.open(run.folder).evaluate("test").metrics == run.record.metrics["test"]
    assert run.record.metrics["test"]["recall@10"] > 10 / 40
    # What a search compares.
    assert read_history(run.folder)["ndcg@10"].to_list() == [run.record.metrics["valid"]["ndcg@10"]]


def test_sequence_models_learn_the_planted_chain(dataset: Path, tmp_path: Path) -> None:
    training = {"epochs": 12, "batch_size": 32, "learning_rate": 0.01}
    run = train_retrieval(scorer(dataset, training=training), out=tmp_path)
    popular = train_retrieval(scorer(dataset, model={"name": "popularity"}), out=tmp_path)
    name = "recall@5"
    assert run.record.metrics["test"][name] > 1.5 * popular.record.metrics["test"][name]


def test_validation_may_use_some_users_and_other_cutoffs(dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "training": {"epochs": 1, "batch_size": 32, "monitor": "recall@3"},
        "evaluation": {"cutoffs": [5], "validation_users": 20, "validation_beams": 6},
    }
    run = train_retrieval(toy_recipe(dataset, **changes), out=tmp_path)
    monitored = read_history(run.folder)["recall@3"].to_numpy()
    np.testing.assert_allclose(monitored * 20, np.round(monitored * 20), atol=1e-9)
    assert set(run.record.metrics["valid"]) >= {"recall@5"}
    assert "recall@3" not in run.record.metrics["valid"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "encdec", **SMALL, "head_dim": 8, "hidden_dim": 16}},
        {"model": {"name": "cobra", **SMALL}, "collisions": {"kind": "leave"}},
        {
            "model": {"name": "rpg", **SMALL},
            "tokenizer": {"kind": "opq", "num_digits": 4, "num_codes": 8},
            "collisions": {"kind": "leave"},
        },
        {
            "tokenizer": {"kind": "capsid", "num_codes": 8, "num_levels": 3, "dim": 8},
            "tokenizer_training": {"epochs": 2, "batch_size": 16},
            "collisions": {"kind": "extend"},
            "merges": {"max_merges": 4, "min_count": 2, "meaning": "items"},
        },
    ],
    ids=["encdec", "cobra", "rpg", "capsid"],
)
def test_generators_run_from_end_to_end(
    dataset: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    training = {"epochs": 1, "batch_size": 32}
    run = train_retrieval(toy_recipe(dataset, training=training, **changes), out=tmp_path)
    assert 0 <= run.record.metrics["test"]["recall@10"] <= 1
    again = RetrievalRun.open(run.folder)
    assert again.evaluate("test").metrics == run.record.metrics["test"]
    answers = again.recommend([again.dataset.catalogue.ids[:3], []], count=4)
    assert [len(answer.items) for answer in answers] == [4, 4]


def test_compare_and_tune_take_retrieval_recipes(
    finished: RetrievalRun, dataset: Path, small_log: Path, tmp_path: Path
) -> None:
    out = finished.folder.parents[1]
    lr = tmp_path / "lr.toml"
    lr.write_text(f'dataset = "{small_log / "log"}"\n[model]\nname = "lr"\n', encoding="utf-8")
    quick = load_any_recipe(lr, ["training.epochs=1", "training.batch_size=2048"])
    runs = compare([toy_recipe(dataset), quick], seeds=1, out=out)
    assert runs[0].folder == finished.folder
    assert [run.record.family for run in runs] == ["retrieval", "ranking"]
    grid = Grid.model_validate(
        {"trials": 2, "seed": 2, "grid": {"tokenizer.level_sizes": [[4, 4]], "model.dim": [8]}}
    )
    found = tune([toy_recipe(dataset)], grid, out=out).searches[0]
    assert [trial.status for trial in found.trials] == ["completed", "completed"]
    assert found.trials[1].settings == {"tokenizer.level_sizes": [4, 4], "model.dim": 8}
    assert found.rows == {"train": 100, "valid": 100}
    assert found.best_recipe is not None


def test_one_way_in_for_recipes_and_runs(finished: RetrievalRun, dataset: Path) -> None:
    run = run_recipe(toy_recipe(dataset), out=finished.folder.parents[1])
    assert run.folder == finished.folder
    assert isinstance(open_run(finished.folder), RetrievalRun)
