"""Twelve faults of today's libraries, each as one short end-to-end test of ours.

Every one was found in a library of the field: two models that share weights, dropout that is off
from the second epoch on, ids above 2^24 that merge, "best" weights that are the last ones. The
modules' own tests look closer; these say that the whole path, through the public API, is free of
them. Export and serving are not there yet: of these, what exists is tested (`torch.export` of a
trained model, and raw rows to scores through the data set's encoder and `Run.predict`).
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

import rankloom
from rankloom.batch import Batch
from rankloom.catalog import CATALOG, build_model
from rankloom.config import to_toml
from rankloom.data.encode import Encoder
from rankloom.data.loader import Loader
from rankloom.data.synthetic import SyntheticConfig, synthetic_dataset
from rankloom.data.synthetic_criteo import write_criteo
from rankloom.data.table_schema import TableSchema
from rankloom.evaluation.metrics import auc, gauc, grouped_auc
from rankloom.ranking.dnn import DNN
from rankloom.runs.history import read_history
from rankloom.schema import CategoricalField, Label, Schema
from rankloom.training.config import TrainingConfig
from rankloom.training.loop import train as train_loop
from rankloom.training.run import MODEL_FILE
from rankloom.training.schedule import TorchSchedule

ROOT = Path(__file__).parents[1]
FAST = {"epochs": 3, "batch_size": 512, "learning_rate": 0.02, "device": "cpu"}


def recipe(dataset: Path, model: dict[str, Any] | None = None, **training: Any) -> rankloom.Recipe:
    return rankloom.Recipe.model_validate(
        {
            "name": "small",
            "dataset": str(dataset),
            "model": model or {"name": "fm", "embedding_dim": 4},
            "training": FAST | training,
        }
    )


def declare(features: dict[str, Any], files: str = "log.parquet", **more: Any) -> TableSchema:
    values = {"name": "small", "input": {"files": files}, "features": features, "labels": {"y": {}}}
    return TableSchema.model_validate(values | more)


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> rankloom.Dataset:
    """A data set that every model takes: scenarios, and two labels in funnel order."""
    config = SyntheticConfig(num_users=60, num_items=40, vocabularies=(20, 10), history_length=5)
    return synthetic_dataset(tmp_path_factory.mktemp("funnel"), config, rows=6_000)


@pytest.mark.parametrize(
    "name", [name for name, entry in CATALOG.items() if entry.family != "retrieval"]
)
def test_01_two_models_from_one_schema_share_no_tensors(
    name: str, funnel: rankloom.Dataset
) -> None:
    config_type = CATALOG[name].config
    shallow = {"num_layers": 1} if "num_layers" in config_type.model_fields else {}
    config = config_type.model_validate(shallow)
    first, second = (build_model(name, config, funnel.schema) for _ in range(2))
    assert not storages(first) & storages(second)
    before, before_first = copy_of(second), copy_of(first)
    training = TrainingConfig(epochs=1, batch_size=2400, device="cpu")
    loader = Loader(funnel.split("valid"), 2400, shuffle=True)  # one small step is enough
    train_loop(first, loader, training, evaluate=None)
    assert all(torch.equal(before[key], value) for key, value in second.state_dict().items())
    changed = [
        key
        for key, value in first.state_dict().items()
        if not torch.equal(before_first[key], value)
    ]
    assert changed


def test_02_every_training_step_is_in_training_mode_with_validation_on(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    forward = DNN.forward

    def watched(self: DNN, batch: Batch) -> torch.Tensor:
        modes = {module.training for module in self.modules()}
        assert len(modes) == 1
        seen.append((torch.is_grad_enabled(), modes.pop()))
        return forward(self, batch)

    monkeypatch.setattr(DNN, "forward", watched)
    model = {"name": "dnn", "embedding_dim": 4, "hidden": [8], "dropout": 0.5, "batch_norm": True}
    run = rankloom.train(recipe(small_log / "log", model, evaluations_per_epoch=2), out=tmp_path)
    training = run.record.training
    assert training is not None
    assert training.steps == 30
    # Behind the steps, one batch more is taken with gradients, to count its operations.
    steps = [mode for learns, mode in seen if learns][: training.steps]
    assert len(steps) == training.steps
    assert all(steps)
    assert read_history(run.folder).height == 6
    assert not any(mode for learns, mode in seen if not learns)


LARGE = [2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_03_large_ids_survive_the_whole_path(form: str, tmp_path: Path) -> None:
    rows = 8 * len(LARGE)
    frame = pl.DataFrame(
        {
            "id": LARGE * 8,
            "y": [index % 2 for index in range(len(LARGE))] * 8,
            "fold": ["train"] * (rows - 2 * len(LARGE)) + ["valid", "test"] * len(LARGE),
        }
    )
    getattr(frame, f"write_{form}")(tmp_path / f"log.{form}")
    features = {"id": {"kind": "categorical"}}
    roles = {"group": "id", "time": "id"}
    split = {"kind": "column", "column": "fold"}
    schema = declare(features, f"log.{form}", roles=roles, split=split)
    data = rankloom.prepare(schema, tmp_path / "out", root=tmp_path)
    assert data.schema.tables == {"id": 2 + len(LARGE)}
    batch = data.split("train").slice(0, len(LARGE))
    assert len(set(batch.categorical[:, 0].tolist())) == len(LARGE)
    assert batch.group.tolist() == batch.time.tolist() == LARGE
    chosen = recipe(data.folder, {"name": "lr"}, batch_size=8, learning_rate=0.1, epochs=5)
    scores = rankloom.train(chosen, out=tmp_path / "runs").predict(frame.head(len(LARGE)))
    assert [score > 0.5 for score in scores["y"]] == [index % 2 == 1 for index in range(7)]


def test_03_large_tables_keep_their_last_rows_apart() -> None:
    size = 2**24 + 4
    schema = Schema(
        tables={"id": size},
        categorical=(CategoricalField(name="id", table="id"),),
        labels=(Label(name="y"),),
    )
    model = build_model("lr", CATALOG["lr"].config(), schema).eval()
    ids = torch.tensor([[2**24], [2**24 + 1], [size - 1]], dtype=torch.int32)
    batch = Batch(categorical=ids, numeric=torch.zeros(3, 0))
    (table,) = (weight for weight in model.parameters() if weight.shape[0] == size)
    with torch.no_grad():
        table[ids[:, 0].long(), 0] = torch.tensor([1.0, 2.0, 3.0])
        found = model(batch)[:, 0]
    assert (found - found[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("patience", [1, 50], ids=["stopped early", "all epochs"])
def test_04_what_is_saved_and_returned_are_the_weights_of_the_best_epoch(
    patience: int, small_log: Path, tmp_path: Path
) -> None:
    overfits = {"name": "fm", "embedding_dim": 8}
    chosen = recipe(small_log / "log", overfits, epochs=6, patience=patience, learning_rate=0.05)
    run = rankloom.train(chosen, out=tmp_path)
    history = read_history(run.folder)
    training = run.record.training
    assert training is not None
    assert training.stopped == ("patience" if patience == 1 else "epochs")
    best = history.row(int(history["auc"].arg_max()), named=True)
    assert best["auc"] > history["auc"][-1]  # the last ones are others
    assert training.best_step == best["step"]
    for opened in (run, rankloom.Run.open(run.folder)):
        assert opened.evaluate("valid").metrics["auc"] == pytest.approx(best["auc"], abs=1e-12)


TORCH_SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.5**step),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.5),
    "StepLR": lambda o: schedulers.StepLR(o, 1),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=1),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=4),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, 2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=9),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, "max", patience=0, threshold=1),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.5)], [1]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ExponentialLR(o, 0.9), schedulers.StepLR(o, 1)], o
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-4, anneal_epochs=3),
}


def test_05_no_scheduler_of_torch_is_forgotten() -> None:
    exported = {
        name
        for name in schedulers.__all__
        if issubclass(getattr(schedulers, name), schedulers.LRScheduler)
    }
    assert exported - TORCH_SCHEDULERS.keys() == {"LRScheduler"}


@pytest.mark.parametrize("name", TORCH_SCHEDULERS)
def test_05_every_scheduler_of_torch_works(name: str, small_log: Path) -> None:
    dataset = rankloom.Dataset.open(small_log / "log")
    model = build_model("lr", CATALOG["lr"].config(), dataset.schema)
    values = iter([0.5, 0.6, 0.4, 0.3])
    result = train_loop(
        model,
        Loader(dataset.split("train"), 2400, shuffle=True),
        TrainingConfig(epochs=4, batch_size=2400, patience=9, device="cpu"),
        evaluate=lambda model: {"auc": next(values)},
        schedule=TorchSchedule(TORCH_SCHEDULERS[name]),
    )
    rates = {row["learning_rate"] for row in result.history}
    assert len(rates) > 1
    assert result.steps == 8


def test_06_auc_equals_scikit_learn_at_half_a_percent_of_positives() -> None:
    rng = np.random.default_rng(6)
    labels = (rng.random(200_000) < 0.005).astype(np.float32)
    scores = (rng.normal(size=labels.size) + labels).round(3)  # with ties
    assert 0.003 < labels.mean() < 0.007
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def test_06_gauc_leaves_out_groups_of_one_class() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1, 1])
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.8, 0.7])
    groups = np.array([5, 5, 5, 5, 8, 9, 9])
    # Only group 5 has both classes: pairs (.9, .1), (.9, .3), (.2, .1) are right, (.2, .3) wrong.
    assert gauc(labels, scores, groups) == pytest.approx(3 / 4)
    assert gauc(labels, scores, groups, "uniform") == pytest.approx(3 / 4)
    assert grouped_auc(labels, scores, groups).coverage == pytest.approx(4 / 7)
    assert np.isnan(gauc(labels[4:], scores[4:], groups[4:]))


def test_06_gauc_of_a_million_rows_in_a_hundred_thousand_groups() -> None:
    """Against ranks within groups; how long it takes is in `benchmarks/results/parts.json`."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 10**6)
    scores, groups = rng.integers(0, 1000, 10**6), rng.integers(0, 10**5, 10**6)
    within = (
        pl.DataFrame({"label": labels, "score": scores, "group": groups})
        .with_columns(rank=pl.col("score").rank("average").over("group"))
        .group_by("group")
        .agg(
            rows=pl.len(),
            positives=pl.col("label").sum(),
            ranks=pl.col("rank").filter(pl.col("label") == 1).sum(),
        )
        .filter((pl.col("positives") > 0) & (pl.col("positives") < pl.col("rows")))
        .with_columns(
            auc=(pl.col("ranks") - pl.col("positives") * (pl.col("positives") + 1) / 2)
            / (pl.col("positives") * (pl.col("rows") - pl.col("positives")))
        )
    )
    expected = within.select((pl.col("auc") * pl.col("rows")).sum() / pl.col("rows").sum()).item()
    assert gauc(labels, scores, groups) == pytest.approx(expected, abs=1e-12)


def test_07_every_odd_column_is_fitted_transformed_reloaded_and_served(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 200
    frame = pl.DataFrame(
        {
            "hashed": [f"h{value}" for value in rng.integers(0, 50, rows)],
            "number": [None if value % 9 == 0 else value / 7 for value in range(rows)],
            "rare": [f"r{value}" for value in range(rows)],
            "nothing": pl.Series([None] * rows, dtype=pl.String),
            "tags": [[] if value % 2 else [f"t{value % 5}"] for value in range(rows)],
            "y": rng.integers(0, 2, rows),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    features = {
        "hashed": {"kind": "categorical", "hash_buckets": 8},
        "binned": {
            "kind": "categorical",
            "column": "number",
            "transform": "quantile",
            "bins": 4,
        },
        "rare": {"kind": "categorical", "min_count": 2},
        "nothing": {"kind": "categorical"},
        "tags": {"kind": "sequence"},
    }
    rankloom.prepare(declare(features), tmp_path / "out", root=tmp_path)
    data = rankloom.Dataset.open(tmp_path / "out", verify="hash")
    assert data.schema.tables == {"hashed": 10, "binned": 6, "rare": 2, "nothing": 2, "tags": 5 + 2}
    ids = data.split("train").slice(0, 100).categorical
    assert set(ids[:, 2].tolist()) == {1}
    assert set(ids[:, 3].tolist()) == {0}
    rankloom.train(recipe(data.folder, batch_size=64), out=tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    unseen = pl.DataFrame(
        {
            "hashed": ["h1", "never", None],
            "number": [1.0, 1e9, None],
            "rare": ["r1", "never", None],
            "nothing": ["never", None, None],
            "tags": [["t1", "never"], [], None],
        }
    )
    scores = rankloom.Run.open(folder).predict(unseen)["y"]
    assert scores.is_finite().all()
    assert scores.len() == 3


@pytest.mark.parametrize("kind", ["all rows", "within users", "leave one out"])
def test_08_no_future_row_is_in_training_and_every_user_is_accounted_for(
    kind: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(8)
    users = rng.permutation(np.concatenate([np.full(size, size) for size in range(1, 40)]))
    frame = pl.DataFrame(
        {
            "user": users,
            "item": rng.integers(0, 30, users.size),
            "at": rng.integers(0, 500, users.size),
            "y": rng.integers(0, 2, users.size),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    split = {
        "all rows": {"kind": "time", "column": "at"},
        "within users": {"kind": "time", "column": "at", "within": "user"},
        "leave one out": {"kind": "leave_one_out", "user": "user", "time": "at"},
    }[kind]
    schema = declare(
        {"user": {"kind": "categorical"}, "item": {"kind": "categorical"}},
        roles={"group": "user", "time": "at"},
        split=split,
        history=[
            {
                "name": "past",
                "user": "user",
                "time": "at",
                "members": ["item"],
                "with_time": True,
                "max_length": 99,
            }
        ],
    )
    data = rankloom.prepare(schema, tmp_path / "out", root=tmp_path)
    rows = []
    for name in data.splits:
        stored = data.split(name)
        batch = stored.slice(0, stored.rows)
        past = batch.sequences["past"]
        newest = [
            max(times.tolist(), default=-1) for times in past.time.split(past.lengths().tolist())
        ]
        columns = {"user": batch.group.numpy(), "at": batch.time.numpy(), "newest": newest}
        rows.append(pl.DataFrame(columns).with_columns(split=pl.lit(name)))
    found = pl.concat(rows)
    sort = ["user", "at"]
    assert found.sort(sort).select(sort).equals(frame.sort(sort).select(sort))  # nobody is lost
    assert (found["newest"] < found["at"]).all()
    last = found.group_by("user", "split").agg(pl.col("at").min().alias("first"), pl.max("at"))
    if kind == "all rows":
        by_split = {name: found.filter(split=name)["at"] for name in data.splits}
        assert by_split["train"].max() < by_split["valid"].min()
        assert by_split["valid"].max() < by_split["test"].min()
        return
    wide = last.pivot("split", index="user", values=["first", "at"])
    assert wide.height == 39
    assert wide["at_train"].null_count() == 0
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        pairs = wide.drop_nulls([f"at_{earlier}", f"first_{later}"])
        assert pairs.height > 20
        assert (pairs[f"at_{earlier}"] <= pairs[f"first_{later}"]).all()


@pytest.mark.parametrize("optimizer", ["adam", "row_wise_adagrad", "lazy_adam"])
def test_09_interrupt_and_resume_give_the_weights_of_an_unbroken_run(
    optimizer: str, small_log: Path, tmp_path: Path
) -> None:
    model = {"name": "dnn", "embedding_dim": 4, "hidden": [8], "dropout": 0.3}
    settings = {"table_optimizer": {"kind": optimizer}, "embedding_l2": 1e-4, "checkpoint_steps": 4}
    chosen = recipe(small_log / "log", model, **settings)
    unbroken = rankloom.train(chosen, out=tmp_path / "unbroken")

    def interrupt(state: Any) -> None:
        if state.step >= 17:  # inside of the second of three epochs of ten steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rankloom.train(chosen, out=tmp_path / "broken", progress=interrupt)
    broken = rankloom.train(chosen, out=tmp_path / "broken")
    assert broken.record.training is not None
    assert broken.record.training.resumed
    assert broken.record.metrics == unbroken.record.metrics
    assert (broken.folder / MODEL_FILE).read_bytes() == (unbroken.folder / MODEL_FILE).read_bytes()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_10_rows_come_in_input_order_for_any_number_of_workers(
    world_size: int, small_log: Path
) -> None:
    stored = rankloom.Dataset.open(small_log / "log").split("test")
    expected = stored.slice(0, stored.rows)
    for batch_size in (1, 64, 1000):
        loaders = [
            Loader(stored, batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = [batch for loader in loaders for batch in loader]
        assert torch.equal(torch.cat([batch.time for batch in batches]), expected.time)
        ids = torch.cat([batch.categorical for batch in batches])
        assert torch.equal(ids, expected.categorical)


def test_10_predictions_are_in_input_order_for_any_number_of_threads(
    small_log: Path, tmp_path: Path
) -> None:
    run = rankloom.train(recipe(small_log / "log", epochs=1), out=tmp_path)
    frame = pl.read_csv(small_log / "log.csv", n_rows=500)
    expected = run.predict(frame)["click"].to_numpy()
    assert len(set(expected)) > 400
    order = np.random.default_rng(0).permutation(frame.height)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found = run.predict(frame[order])["click"].to_numpy()
            np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-7)
    finally:
        torch.set_num_threads(threads)


MEASURE = """
import json, sys, threading
from functools import partial
from pathlib import Path
from rankloom.data import prepare as prepare_module
from rankloom.data import text_readers

text_readers.BLOCK_BYTES = int(sys.argv[1])
prepare_module.SplitWriter = partial(prepare_module.SplitWriter, rows_per_shard=int(sys.argv[2]))

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

def peak_of(folder, out):
    peak, done = anonymous(), threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    prepare_module.prepare(Path(folder) / "schema.toml", Path(folder) / out)
    done.set()
    thread.join()
    return peak

print(json.dumps([peak_of(folder, str(n)) for n, folder in enumerate(sys.argv[3:])]))
"""


def write_criteo_log(folder: Path, rows: int) -> int:
    """A log in Criteo's raw format of 5,000 values, with its schema; returns the log's bytes."""
    folder.mkdir()
    write_criteo(folder / "train.txt", rows, num_values=5_000)
    integers = {f"i{n}": {"kind": "categorical", "transform": "criteo_ln2"} for n in range(13)}
    categories = {f"c{n}": {"kind": "categorical"} for n in range(26)}
    schema = TableSchema.model_validate(
        {
            "name": "criteo",
            "input": {
                "files": "train.txt",
                "format": "tsv",
                "header": False,
                "columns": ["label", *integers, *categories],
            },
            "features": integers | categories,
            "labels": {"label": {}},
        }
    )
    (folder / "schema.toml").write_text(to_toml(schema), encoding="utf-8")
    return (folder / "train.txt").stat().st_size


def peaks_of_prepare(block_bytes: int, shard_rows: int, *folders: Path) -> list[int]:
    """Peaks of anonymous memory (mapped files do not count), one folder after another, bytes.

    Blocks of text and shards are made small, so that a small log is many of them.
    """
    environment = os.environ | {"POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *map(str, (block_bytes, shard_rows, *folders))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return list(json.loads(done.stdout))


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
def test_11_memory_of_prepare_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small = write_criteo_log(tmp_path / "small", 5_000)
    # Large enough that what the allocator keeps now and then, some two megabytes, does not decide.
    large = write_criteo_log(tmp_path / "large", 60_000)
    # The first one warms up: threads, allocators and lazily loaded code take their memory once.
    folders = [tmp_path / name for name in ("small", "small", "large")]
    _, first, second = peaks_of_prepare(2**17, 2**10, *folders)
    grown = second - first
    # Holding the ids alone, 156 of 243 bytes of a row, would be a share of 0.64.
    assert grown < 0.4 * (large - small), f"{grown:,} bytes for {large - small:,} bytes of log"


@needs_proc
@pytest.mark.slow
def test_11_a_file_of_twenty_times_the_memory_stays_under_it(tmp_path: Path) -> None:
    cap = 40 * 2**20
    write_criteo_log(tmp_path / "small", 1_000)
    assert write_criteo_log(tmp_path / "large", 3_600_000) >= 20 * cap
    before, peak = peaks_of_prepare(2**20, 2**14, tmp_path / "small", tmp_path / "large")
    assert peak - before < cap


def source_files() -> set[str]:
    files = (ROOT / "src" / "rankloom").rglob("*")
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }


def imported_at_import(path: Path) -> set[str]:
    """Names of the packages that a module imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def imported_anywhere(path: Path) -> set[str]:
    """Names of the packages that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


DISTRIBUTIONS = {"sklearn": "scikit-learn", "tomli_w": "tomli-w", "sentence_transformers": "text"}


def test_12_everything_that_is_imported_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[<>=\[ ]", entry)[0] for entry in declared["dependencies"]}
    optional = {
        re.split(r"[<>=\[ ]", entry)[0]
        for extra in declared["optional-dependencies"].values()
        for entry in extra
    }
    for path in sorted((ROOT / "src" / "rankloom").rglob("*.py")):
        own = sys.stdlib_module_names | {"rankloom"}
        name = path.relative_to(ROOT)
        at_once = {DISTRIBUTIONS.get(module, module) for module in imported_at_import(path) - own}
        assert at_once <= required, f"{name} imports {at_once - required}, which nobody installs"
        later = {DISTRIBUTIONS.get(module, module) for module in imported_anywhere(path) - own}
        assert later <= required | optional, f"{name} imports {later - required - optional}"


def test_12_the_installed_package_is_whole() -> None:
    metadata = distribution("rankloom")
    assert metadata.version == rankloom.__version__
    (command,) = metadata.entry_points.select(group="console_scripts")
    assert command.name == "rankloom"
    assert callable(command.load())
    text = metadata.metadata
    assert text["License-Expression"] == "Apache-2.0"
    assert text["Requires-Python"] == ">=3.11"
    requirements = text.get_all("Requires-Dist")
    assert any(entry.startswith("torch<3,>=2.11") for entry in requirements)
    package = Path(rankloom.__file__).parent
    assert (package / "py.typed").is_file()


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*map(str, command), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_12_the_wheel_holds_every_file(tmp_path: Path) -> None:
    """Builds with hatchling from the package index."""
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        names = set(wheel.namelist())
    assert source_files() == {name for name in names if ".dist-info/" not in name}
    info = {name.partition("/")[2] for name in names if ".dist-info/" in name}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= info


@pytest.mark.slow
def test_12_the_wheel_works_in_a_fresh_environment_with_the_newest_dependencies(
    small_log: Path, tmp_path: Path
) -> None:
    """Prepare, train, evaluate, predict with the command of the installed wheel.

    Needs a package index, and room for torch. Export and serving join when they exist.
    """
    wheel = build_wheel(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([binaries / "pip", "install", "--quiet", str(wheel)], check=True)

    def run(*arguments: object) -> str:
        command = [str(binaries / "rankloom"), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        return done.stdout

    assert run("--version").strip() == rankloom.__version__
    run("prepare", small_log / "schema.toml", "--out", "data")
    (tmp_path / "recipe.toml").write_text(
        'dataset = "data"\n[model]\nname = "deepfm"\n[training]\nepochs = 1\n', encoding="utf-8"
    )
    folder = json.loads(run("train", "recipe.toml", "--json"))["folder"]
    assert json.loads(run("evaluate", folder, "--json"))["metrics"]["auc"] > 0.5
    run("predict", folder, small_log / "log.csv", "--out", "scores.parquet")
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 6000


def test_12_a_trained_model_can_be_exported_and_scores_raw_rows_alike(
    small_log: Path, tmp_path: Path
) -> None:
    """Raw rows, through the encoder that lies in the data set, to the scores of the stored rows."""
    run = rankloom.train(recipe(small_log / "log", {"name": "deepfm"}, epochs=1), out=tmp_path)
    frame = pl.read_csv(small_log / "log.csv").tail(50)
    batch = run.dataset.batch(Encoder.load(run.dataset.folder).encode(frame))
    with torch.no_grad():
        logits = run.model(batch)
        exported = torch.export.export(run.model, (batch,)).module()(batch)
    torch.testing.assert_close(exported, logits)
    stored = run.dataset.split("test")
    with torch.no_grad():
        offline = run.model(stored.slice(stored.rows - 50, stored.rows).without_labels())
    torch.testing.assert_close(logits, offline)
    expected = torch.sigmoid(logits[:, 0].double()).numpy()
    np.testing.assert_allclose(run.predict(frame)["click"].to_numpy(), expected, rtol=1e-9)
