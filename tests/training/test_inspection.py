"""Finished runs, looked into together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.synthetic import SyntheticConfig, synthetic_table_schema, write_csv
from rankloom.evaluation.inspection import read_inspection, write_inspection
from rankloom.evaluation.landscape import LandscapeConfig
from rankloom.evaluation.spectrum import spectra
from rankloom.runs.record import write_record
from rankloom.training.experiment import train
from rankloom.training.inspection import inspect_runs
from rankloom.training.recipe import Recipe
from rankloom.training.run import Run


def make_recipe(dataset: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "dataset": str(dataset),
        "seed": 3,
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01},
    }
    return Recipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def runs(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A DCN V2 that watched its gradients, and an FM."""
    out = tmp_path_factory.mktemp("runs")
    crossed = make_recipe(
        small_log / "log",
        model={"name": "dcnv2", "embedding_dim": 4, "hidden": [8], "num_crosses": 2},
        training={
            "epochs": 2,
            "batch_size": 512,
            "learning_rate": 0.01,
            "watch_gradients": ["structure.cross", "structure.deep"],
        },
    )
    return train(crossed, out=out), train(make_recipe(small_log / "log"), out=out)


def test_everything_at_once(runs: tuple[Run, Run], tmp_path: Path) -> None:
    ours, other = runs
    found = inspect_runs(ours, [other], layers=["structure.cross.layers.?"], rows=100)
    assert [(run.label, run.model, run.seed) for run in found.runs] == [
        ("dcnv2", "dcnv2", 3),
        ("fm", "fm", 3),
    ]
    assert (found.split, found.frequency) == ("test", "min")
    assert found.data_hash == ours.record.dataset.data_hash
    assert [(c.run, c.pattern, c.epoch) for c in found.gradients] == [
        ("dcnv2", "structure.cross", (1.0, 2.0)),
        ("dcnv2", "structure.deep", (1.0, 2.0)),
    ]
    assert all(norm > 0 for curve in found.gradients for norm in curve.norm)
    assert [(layer.run, layer.module) for layer in found.spectra] == [
        ("dcnv2", "structure.cross.layers.0"),
        ("dcnv2", "structure.cross.layers.1"),
    ]
    (gain,) = found.gains
    assert (gain.other, gain.task) == ("fm", "click")
    assert sum(decile.rows for decile in gain.deciles) == ours.dataset.split("test").rows
    file = write_inspection(tmp_path, found)
    assert read_inspection(file) == read_inspection(tmp_path) == found


def test_spectra_are_of_rows_spread_over_the_split(runs: tuple[Run, Run]) -> None:
    ours, _ = runs
    found = inspect_runs(ours, layers=["structure.deep", "structure"], rows=50, split="valid")
    assert [layer.module for layer in found.spectra] == ["structure", "structure.deep"]
    split = ours.dataset.split("valid")
    batch = split.gather(torch.arange(50) * split.rows // 50)
    with torch.no_grad():
        expected = spectra(ours.model.embedding(batch).flatten(1))
    (layer,) = found.spectra[0].spectra
    assert layer.vectors == 50
    assert layer.singular_values == pytest.approx(expected[0].singular_values, abs=1e-6)
    assert layer.effective_rank == pytest.approx(expected[0].effective_rank, rel=1e-6)
    more = inspect_runs(ours, layers=["structure"], rows=10**6, split="valid")
    assert more.spectra[0].spectra[0].vectors == split.rows
    assert not found.gains


def test_the_gain_is_over_the_other_run(runs: tuple[Run, Run]) -> None:
    ours, other = runs
    there = inspect_runs(ours, [other], frequency="mean").gains[0].deciles
    back = inspect_runs(other, [ours], frequency="mean").gains[0].deciles
    assert any(decile.auc_difference for decile in there)
    for one, reverse in zip(there, back, strict=True):
        assert one.auc == reverse.other_auc
        assert one.auc_difference == pytest.approx(-reverse.auc_difference)
        assert one.p_adjusted == reverse.p_adjusted
    whole = sum(decile.log_loss * decile.rows for decile in there) / sum(d.rows for d in there)
    assert whole == pytest.approx(ours.evaluate("test").metrics["log_loss"])


def test_layers_of_one_run_only(runs: tuple[Run, Run]) -> None:
    ours, other = runs
    found = inspect_runs(other, [ours], layers=["structure.deep"], rows=20)
    assert [layer.run for layer in found.spectra] == ["dcnv2"]


def test_runs_of_one_model_go_by_what_tells_them_apart(
    runs: tuple[Run, Run], small_log: Path, tmp_path: Path
) -> None:
    ours, other = runs
    seeded = train(make_recipe(small_log / "log", seed=4), out=tmp_path)
    named = train(make_recipe(small_log / "log", seed=4, name="named"), out=tmp_path)
    labels = [run.label for run in inspect_runs(named, [other, ours, seeded]).runs]
    assert labels == [run.record.run_id for run in (named, other, ours, seeded)]
    assert [run.label for run in inspect_runs(named, [other]).runs] == ["named", "small"]
    with pytest.raises(ValueError, match="a run cannot be compared with itself"):
        inspect_runs(other, [Run.open(other.folder)])


def test_runs_on_other_data_are_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    ours, other = runs
    facts = other.record.dataset.model_copy(update={"data_hash": "0123"})
    record = other.record.model_copy(update={"dataset": facts})
    write_record(tmp_path, record)
    moved = Run(tmp_path, record, other.recipe, other.dataset)
    with pytest.raises(ValueError, match="was trained on other data than .* 0123"):
        inspect_runs(ours, [moved])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["cross"]}, "no module fits 'cross'; modules are .*structure.cross"),
        ({"layers": ["embedding"]}, "no module that fits 'embedding' receives a float tensor"),
        ({"split": "dev", "layers": ["structure"]}, "no split 'dev' in .*; known: train, valid"),
        ({"rows": 0, "layers": ["structure"]}, "rows must be at least 1; got 0"),
    ],
)
def test_wrong_settings(runs: tuple[Run, Run], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect_runs(runs[0], **settings)


def test_other_wrong_settings(runs: tuple[Run, Run]) -> None:
    ours, other = runs
    with pytest.raises(ValueError, match="nothing to inspect in .*: name layers or a run.* or ask"):
        inspect_runs(other)
    with pytest.raises(ValueError, match="frequency must be min, mean or a categorical field"):
        inspect_runs(ours, [other], frequency="rarest")


def test_stacks_over_depth(small_log: Path, runs: tuple[Run, Run], tmp_path: Path) -> None:
    """DeRes with event tokens beside a plain stack; DCN V2 has none."""
    sizes = {"embedding_dim": 4, "dim": 8, "num_layers": 3, "num_heads": 2}
    training = {"epochs": 1, "batch_size": 512, "learning_rate": 0.01}
    deres, plain = (
        train(
            make_recipe(
                small_log / "log", name=name, model={"name": name, **sizes}, training=training
            ),
            out=tmp_path,
        )
        for name in ("deres", "transformer")
    )
    found = inspect_runs(deres, [plain, runs[0]], rows=64)
    assert [(stack.run, stack.stack) for stack in found.stacks] == [
        ("deres", "stack"),
        ("transformer", "stack"),
    ]
    ours, theirs = found.stacks
    # Blocks of two layers: the input and the running block, then one more.
    assert [len(layer.mean) for layer in ours.weights] == [2, 2, 3]
    assert any(value for layer in ours.weights for value in layer.mean)
    assert [layer.layer for layer in ours.gates] == [0, 1, 2]
    for gates in ours.gates:
        assert 0 < gates.deciles[0] <= gates.deciles[8] < 1
        assert sum(gates.histogram) == pytest.approx(1)
    assert theirs.weights == theirs.gates == ()
    for stack in found.stacks:
        assert [read.layer for read in stack.inputs] == [0, 1, 2]
        assert stack.inputs[0].cosine == pytest.approx(1)
        assert stack.inputs[0].r_squared > 0.99
        assert all(read.r_squared <= 1 for read in stack.inputs)
        assert stack.inputs[2].cosine < 1
    assert inspect_runs(runs[0], layers=["structure.deep"], rows=10).stacks == ()
    alone = inspect_runs(plain, rows=64)  # a stack is enough to inspect
    assert alone.stacks == (theirs,)
    assert read_inspection(write_inspection(tmp_path, found)) == found


def test_loops_and_the_loss_around_them(small_log: Path, tmp_path: Path) -> None:
    """LoopCTR beside the same layers stacked: all depths are seen, served or not."""
    sizes = {"embedding_dim": 4, "dim": 8, "num_heads": 2, "expansion": 1, "num_experts": 2}
    sizes |= {"num_active": 1}
    training = {"epochs": 1, "batch_size": 2048, "learning_rate": 0.01}
    models: dict[str, dict[str, Any]] = {
        "loopctr": {"num_loops": 2, "predict_loops": 0},
        "stackctr": {"num_layers": 1},
    }
    loop, stack = (
        train(
            make_recipe(
                small_log / "log",
                name=name,
                model={"name": name, **sizes, **settings},
                training=training,
            ),
            out=tmp_path,
        )
        for name, settings in models.items()
    )
    config = LandscapeConfig(
        num_directions=2, num_steps=1, num_plane_steps=1, curvature=True, num_iterations=2
    )
    weights = {name: value.clone() for name, value in loop.model.state_dict().items()}
    found = inspect_runs(loop, [stack], rows=60, landscape=config)
    assert all(torch.equal(value, weights[n]) for n, value in loop.model.state_dict().items())
    seen = [(one.run, one.padding, len(one.calls)) for one in found.states]
    # Sequence tokens, then fields, through each; no mask is given for the fields.
    assert seen == [
        ("loopctr", "excluded", 2),
        ("loopctr", "counted", 2),
        ("stackctr", "excluded", 1),
        ("stackctr", "counted", 1),
    ]
    for states in found.states:
        assert all(0 < value <= 1.000001 for row in states.cka for value in row)
    calls = {
        (one.router, one.padding): len(one.calls) for one in found.routers if one.run == "loopctr"
    }
    assert {n for (path, _), n in calls.items() if ".layers.0." in path} == {2}
    assert {n for (path, _), n in calls.items() if ".exit." in path} == {3}
    # The exit reads sequence tokens by a method, which no hook sees being given a mask.
    exits = [path for path, padding in calls if ".exit.attention." in path]
    assert len(exits) == 2
    assert {padding for path, padding in calls if path in exits} == {"excluded", "counted"}
    for router in found.routers:
        assert all(sum(call.share) == pytest.approx(1) for call in router.calls)
    assert {len(one.calls[0].pre) for one in found.coefficients} == {2}
    ours, theirs = found.landscapes
    assert (ours.run, ours.rows, ours.depths, theirs.depths) == ("loopctr", 60, 3, 2)
    assert any(value != ours.loss for value in ours.curves[0])
    assert ours.largest_eigenvalue == ours.largest_eigenvalue  # not NaN, empty histories or not
    # As text, since a first call has no agreement, and NaN is not NaN.
    read = read_inspection(write_inspection(tmp_path, found))
    assert read.model_dump_json() == found.model_dump_json()


def test_a_landscape_alone_is_enough(runs: tuple[Run, Run]) -> None:
    crossed, _ = runs
    config = LandscapeConfig(num_directions=2, num_steps=1, num_plane_steps=0)
    found = inspect_runs(crossed, rows=50, landscape=config)
    assert found.landscapes[0].rows == 50


def test_infinite_inputs_name_their_layer(small_log: Path, runs: tuple[Run, Run]) -> None:
    again = Run.open(runs[0].folder, dataset=Dataset.open(small_log / "log"))
    with torch.no_grad():
        again.model.embedding.table.weight.fill_(np.inf)
    with pytest.raises(ValueError, match="layer structure.deep: a spectrum needs finite values"):
        inspect_runs(again, layers=["structure.deep"], rows=10)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*inspect\.json"):
        read_inspection(tmp_path)
    (tmp_path / "inspect.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_inspection(tmp_path)
    (tmp_path / "inspect.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match="data_hash is missing"):
        read_inspection(tmp_path)


def test_several_tasks_with_missing_labels(tmp_path: Path) -> None:
    config = SyntheticConfig(num_users=30, num_items=20, vocabularies=(5,), history_length=2)
    write_csv(tmp_path / "log.csv", config, rows=3_000)
    prepare(synthetic_table_schema(config, "log.csv"), tmp_path / "log", root=tmp_path)
    runs = [
        train(make_recipe(tmp_path / "log", model={"name": name}), out=tmp_path / "runs")
        for name in ("fm", "lr")
    ]
    split = runs[0].dataset.split("test")
    labels, mask = split.slice(0, split.rows).labels, split.slice(0, split.rows).label_mask
    assert labels is not None
    found = inspect_runs(runs[0], runs[1:]).gains
    tasks = [label.name for label in split.schema.labels]
    assert len(tasks) > 1
    assert [(gain.other, gain.task) for gain in found] == [("lr", task) for task in tasks]
    for task, gain in enumerate(found):
        known = labels[:, task] if mask is None else labels[mask[:, task], task]
        assert sum(decile.rows for decile in gain.deciles) == len(known)
        assert sum(decile.positives for decile in gain.deciles) == known.sum()


def test_rows_are_inspected_as_the_recipe_evaluates_them(small_log: Path, tmp_path: Path) -> None:
    evaluation = {"metrics": ["auc", "log_loss"], "switched_off": ["item", "history"]}
    run = train(make_recipe(small_log / "log", evaluation=evaluation), out=tmp_path)
    config = LandscapeConfig(num_directions=2, num_steps=1, num_plane_steps=0, tables=True)
    (found,) = inspect_runs(run, rows=10**6, landscape=config).landscapes
    assert found.rows == run.dataset.split("test").rows
    assert found.loss == pytest.approx(run.record.metrics["test"]["log_loss"], abs=1e-6)
    given = run.evaluate("test", switched_off=()).metrics["log_loss"]
    assert found.loss != pytest.approx(given, abs=1e-4)
