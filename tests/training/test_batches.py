"""Training batches: weights by scenario, fields dropped, and what the loop makes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data import loader as loader_module
from rankloom.data.columns import Columns
from rankloom.data.examples import example_dataset, example_schema, random_batch, random_columns
from rankloom.data.loader import Loader
from rankloom.data.store import StoredSplit
from rankloom.data.switch_off import FieldDropout
from rankloom.layers.losses import ranking_loss
from rankloom.protocols import Loss
from rankloom.ranking.fm import FM, FMConfig
from rankloom.runs.history import read_history
from rankloom.training.batches import ScenarioWeights, TrainingBatches
from rankloom.training.config import TrainingConfig
from rankloom.training.experiment import train
from rankloom.training.loop import train as run_loop
from rankloom.training.recipe import Recipe
from rankloom.training.run import Run, score

SCHEMA = example_schema(num_scenarios=3, num_numeric=1, vectors=False, sequences=False)
WEIGHTS = {"s1": 0.25, "s2": 3.0}


def config(**changes: Any) -> TrainingConfig:
    values = {"epochs": 2, "batch_size": 16, "device": "cpu", "learning_rate": 0.05}
    return parse_config(TrainingConfig, values | changes, "test")


def columns(rows: int = 70) -> Columns:
    return random_columns(SCHEMA, rows, np.random.default_rng(0))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> StoredSplit:
    folder = tmp_path_factory.mktemp("data")
    return example_dataset(folder, SCHEMA, {"train": columns()}).split("train")


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        for ours, theirs in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(ours, theirs)


def fm() -> FM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return FM(FMConfig(embedding_dim=4), SCHEMA)


def test_weights_by_hand() -> None:
    batch = replace(
        random_batch(SCHEMA, rows=4),
        scenario=torch.tensor([1, 2, 0, 1], dtype=torch.int32),
        weight=torch.tensor([2.0, 0.5, 1.0, 1.0]),
    )
    weigh = ScenarioWeights(SCHEMA, {"s1": 0.25, "s2": 3})
    assert weigh(batch).weight is not None
    assert weigh(batch).weight.tolist() == [0.5, 1.5, 1.0, 0.25]  # type: ignore[union-attr]
    assert weigh(replace(batch, weight=None)).weight.tolist() == [0.25, 3, 1, 0.25]  # type: ignore[union-attr]
    assert batch.weight.tolist() == [2.0, 0.5, 1.0, 1.0]  # type: ignore[union-attr]
    assert ScenarioWeights(SCHEMA, {})(batch) is batch


def test_weights_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="no scenario de; the scenarios are s0, s1, s2"):
        ScenarioWeights(SCHEMA, {"s1": 1.0, "de": 2.0})
    with pytest.raises(ValueError, match="one must be above 0; all scenarios have 0"):
        ScenarioWeights(SCHEMA, {"s1": 0.0, "s2": 0.0})
    with pytest.raises(ValueError, match="scenario_weights needs scenarios and the data set has"):
        ScenarioWeights(SCHEMA.model_copy(update={"scenarios": ()}), {"s1": 1.0})
    with pytest.raises(ValueError, match=r"scenario_weights\.s1: .*greater than or equal to 0"):
        config(scenario_weights={"s1": -1})
    with pytest.raises(ValueError, match=r"scenario_weights\.s1: .*finite"):
        config(scenario_weights={"s1": float("inf")})
    with pytest.raises(ValueError, match=r"field_dropout\.c0: .*less than or equal to 1"):
        config(field_dropout={"c0": 1.5})
    with pytest.raises(ValueError, match=r"sampling\.power: .*less than or equal to 1"):
        config(sampling={"kind": "balanced", "power": 2})
    with pytest.raises(ValueError, match="unknown kind 'uniform' of sampling"):
        config(sampling={"kind": "uniform"})


class OwnLoss(nn.Module):
    """A model with an objective of its own, which reads the rows' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = fm()

    def forward(self, batch: Batch) -> Tensor:
        return self.ranker(batch)

    def loss(self, batch: Batch) -> Loss:
        return Loss(2 * ranking_loss(self(batch), batch).total)


@pytest.mark.parametrize("model", [fm, OwnLoss])
def test_training_with_scenario_weights_equals_training_on_weighted_rows(
    split: StoredSplit, tmp_path: Path, model: Any
) -> None:
    rows = columns()
    assert rows.weight is not None
    assert rows.scenario is not None
    by_hand = np.array([1.0, 0.25, 3.0], np.float32)[rows.scenario]
    weighted = replace(rows, weight=rows.weight * by_hand)
    other = example_dataset(tmp_path, SCHEMA, {"train": weighted}).split("train")
    ours, theirs, plain = model(), model(), model()
    for trained, source, weights in (
        (ours, split, WEIGHTS),
        (theirs, other, {}),
        (plain, split, {}),
    ):
        settings = config(scenario_weights=weights)
        run_loop(trained, TrainingBatches(source, settings), settings, evaluate=None)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)
    assert any(
        not torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


def test_without_settings_the_batches_are_the_loaders(split: StoredSplit) -> None:
    ours = TrainingBatches(split, config(), seed=3)
    loader = Loader(split, 16, shuffle=True, seed=3)
    assert (ours.order, ours.batch_size, len(ours)) == ("full", 16, len(loader))
    for epoch in range(2):
        ours.set_epoch(epoch)
        loader.set_epoch(epoch)
        assert_same(list(ours), list(loader))
        assert ours.state() == loader.state()


ALL = {
    "sampling": {"kind": "balanced", "power": 0.5},
    "scenario_weights": WEIGHTS,
    "field_dropout": {"c1": 0.3, "n0": 0.5},
}


def test_batches_are_drawn_weighted_and_dropped(split: StoredSplit) -> None:
    """All of it, put together by hand."""
    ours = TrainingBatches(split, config(**ALL), seed=3)
    loader = Loader(split, 16, shuffle=True, seed=3, scenario_power=0.5)
    drop = FieldDropout(SCHEMA, ALL["field_dropout"], 3)
    weigh = ScenarioWeights(SCHEMA, WEIGHTS)
    ours.set_epoch(1)
    loader.set_epoch(1)
    expected = [drop(weigh(batch), 1, number + 1) for number, batch in enumerate(loader)]
    assert_same(list(ours), expected)


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_an_epoch_taken_up_anywhere_goes_on_exactly(split: StoredSplit, stop: int) -> None:
    unbroken = TrainingBatches(split, config(**ALL), seed=3)
    unbroken.set_epoch(2)
    expected = list(unbroken)
    broken = TrainingBatches(split, config(**ALL), seed=3)
    broken.set_epoch(2)
    batches = iter(broken)
    seen = [next(batches) for _ in range(stop)]
    resumed = TrainingBatches(split, config(**ALL), seed=3)
    resumed.restore(broken.state())
    resumed.set_epoch(2)
    assert_same(seen + list(resumed), expected)


def test_the_loop_refuses_a_loader_that_does_not_follow_the_settings(split: StoredSplit) -> None:
    settings = config(field_dropout={"c0": 0.1})
    others = [Loader(split, 16, shuffle=True), TrainingBatches(split, config())]
    for loader in others:
        with pytest.raises(ValueError, match="give the loop .*TrainingBatches of this config"):
            run_loop(fm(), loader, settings, evaluate=None)
    follows = TrainingBatches(split, settings)
    run_loop(fm(), follows, settings.model_copy(update={"epochs": 1}), evaluate=None)
    run_loop(fm(), others[0], config(), evaluate=None)
    with pytest.raises(ValueError, match="change the batches"):
        run_loop(fm(), follows, config(), evaluate=None)


def make_recipe(dataset: Path, training: dict[str, Any], **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "dataset": str(dataset),
        "seed": 3,
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01, **training},
        "evaluation": {"metrics": ["auc"]},
    }
    return parse_config(Recipe, values | changes, "test")


LOG = {
    "sampling": {"kind": "balanced"},
    "scenario_weights": {"s1": 2.0},
    "field_dropout": {"c1": 0.2, "history": 0.5},
    "checkpoint_steps": 3,
}


def test_a_run_records_the_settings_and_resumes_exactly(small_log: Path, tmp_path: Path) -> None:
    recipe = make_recipe(small_log / "log", LOG)
    whole = train(recipe, out=tmp_path / "whole")
    assert whole.record.training is not None
    assert whole.record.training.shuffle_order == "balanced"
    recorded = whole.record.recipe["training"]
    assert recorded["sampling"] == {"kind": "balanced", "power": 0.0}
    assert recorded["scenario_weights"] == {"s1": 2.0}
    assert recorded["field_dropout"] == {"c1": 0.2, "history": 0.5}
    assert Run.open(whole.folder).recipe == recipe
    predictions = score(whole.model, whole.dataset.split("test"), recipe, whole.device)
    assert predictions.weight is None  # metrics know nothing of the scenarios' weights

    def interrupt(state: Any) -> None:
        if state.step >= 12:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankloom.training.loop.PROGRESS_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=tmp_path / "cut", progress=interrupt)
    resumed = train(recipe, out=tmp_path / "cut")
    assert resumed.record.training is not None
    assert resumed.record.training.resumed
    assert resumed.record.metrics == whole.record.metrics
    plain = train(make_recipe(small_log / "log", {}), out=tmp_path / "plain")
    assert plain.record.metrics != whole.record.metrics


@pytest.mark.parametrize(
    ("training", "evaluation", "message"),
    [
        (
            {"scenario_weights": {"shop": 1.0}},
            {},
            "no scenario shop; the scenarios are <unknown>, s",
        ),
        ({"field_dropout": {"position": 0.1}}, {}, "no field position to switch off; the fields"),
        (
            {},
            {"switched_off": ["position"]},
            "no field position to switch off; the fields are user",
        ),
    ],
)
def test_wrong_names_are_found_before_training(
    small_log: Path,
    tmp_path: Path,
    training: dict[str, Any],
    evaluation: dict[str, Any],
    message: str,
) -> None:
    recipe = make_recipe(small_log / "log", training, evaluation=evaluation)
    with pytest.raises(ValueError, match=message):
        train(recipe, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_balanced_sampling_needs_scenarios(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"scenarios": ()})
    rows = random_columns(schema, 40, np.random.default_rng(0))
    example_dataset(tmp_path / "data", schema, {"train": rows})
    recipe = make_recipe(tmp_path / "data", {"sampling": {"kind": "balanced"}, "batch_size": 8})
    with pytest.raises(ValueError, match=r"training.sampling needs scenarios .* roles\.scenario"):
        train(recipe, out=tmp_path / "runs")


def test_a_field_switched_off_is_scored_as_an_empty_cell(small_log: Path, tmp_path: Path) -> None:
    def run(**evaluation: Any) -> Run:
        recipe = make_recipe(
            small_log / "log",
            {"epochs": 1},
            evaluation={"metrics": ["auc", "log_loss"], **evaluation},
        )
        return train(recipe, out=tmp_path)

    plain, off = run(), run(switched_off=["c0", "history"])
    for one, two in zip(plain.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(one, two)  # one epoch: validation has no say
    # What a run is evaluated with, and what it is evaluated with by choice.
    assert off.record.recipe["evaluation"]["switched_off"] == ["c0", "history"]
    chosen = plain.evaluate("test", switched_off=["c0", "history"]).metrics
    assert off.record.metrics["test"] == chosen == off.evaluate("test").metrics
    assert off.evaluate("test", switched_off=()).metrics == plain.record.metrics["test"]
    assert chosen["log_loss"] != plain.record.metrics["test"]["log_loss"]
    with pytest.raises(ValueError, match="no field position to switch off"):
        plain.evaluate("test", switched_off=["position"])
    # A raw table is scored in the same way: as if these cells were empty.
    table = pl.read_csv(small_log / "log.csv", n_rows=200)
    empty = table.with_columns(c0=pl.lit(None, pl.String), history=pl.lit(None, pl.String))
    expected = plain.predict(empty)["click"].to_numpy()
    np.testing.assert_array_equal(off.predict(table)["click"].to_numpy(), expected)
    assert not np.array_equal(plain.predict(table)["click"].to_numpy(), expected)


def test_validation_while_training_is_scored_without_the_field(
    small_log: Path, tmp_path: Path
) -> None:
    evaluation = {"metrics": ["log_loss"], "switched_off": ["item"]}
    settings = {"monitor": "log_loss", "monitor_mode": "min"}
    run = train(make_recipe(small_log / "log", settings, evaluation=evaluation), out=tmp_path)
    history = read_history(run.folder)
    best = history["log_loss"].min()
    assert best == pytest.approx(run.record.metrics["valid"]["log_loss"], abs=1e-12)
    assert run.evaluate("valid", switched_off=()).metrics["log_loss"] != pytest.approx(best)


def test_dropping_a_field_always_is_training_without_it(split: StoredSplit) -> None:
    """Dropped in every row, a field leaves its vectors as they were drawn."""
    settings = config(field_dropout={"c1": 1.0})
    model, start = fm(), fm()
    run_loop(model, TrainingBatches(split, settings), settings, evaluate=None)
    assert model.embedding.table is not None
    assert start.embedding.table is not None
    after, before = model.embedding.table.weight, start.embedding.table.weight
    base = model.embedding.base["c1"]
    own = slice(base + 1, base + SCHEMA.tables["c1"])
    assert torch.equal(after[own], before[own])
    assert not torch.equal(after, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_compiled_training_with_everything_equals_plain_training(split: StoredSplit) -> None:
    plain, compiled = fm(), fm()
    for model, changes in ((plain, {}), (compiled, {"compile": True})):
        settings = config(**ALL, **changes)
        run_loop(model, TrainingBatches(split, settings), settings, evaluate=None)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_cuda_equal_those_on_cpu(
    tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = example_schema(entity=True, num_scenarios=3)
    rows = random_columns(schema, 200, np.random.default_rng(0))
    data = example_dataset(tmp_path, schema, {"train": rows}, rows_per_shard=64).split("train")
    monkeypatch.setattr(loader_module, "_fits_device", lambda *_: resident)
    dropped = ALL["field_dropout"] | {"history": 0.4, "embedding": 0.4}
    settings = config(**ALL | {"field_dropout": dropped})
    moved = TrainingBatches(data, settings, seed=3, device="cuda")
    assert moved.loader.resident is resident
    found = list(moved)
    assert all(tensor.is_cuda for batch in found for tensor in tensors(batch))
    assert_same([batch.to("cpu") for batch in found], list(TrainingBatches(data, settings, seed=3)))
