"""Depths of a finished run, measured together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankloom.config import to_toml
from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.synthetic import SyntheticConfig, synthetic_table_schema, write_csv
from rankloom.evaluation.adaptive import predict_adaptively
from rankloom.evaluation.depth_cost import DepthCosts
from rankloom.evaluation.depth_figures import DepthFigures, read_depths, write_depths
from rankloom.evaluation.metrics import auc
from rankloom.evaluation.oracle import oracle_scores
from rankloom.evaluation.protocol import Predictions, evaluate
from rankloom.report.depths import depth_tables
from rankloom.training.depths import measure_depths
from rankloom.training.experiment import train
from rankloom.training.recipe import Recipe
from rankloom.training.run import Run


class LoopedFM(torch.nn.Module):
    """A trained model with noise of its own at every further depth; it cannot be stepped."""

    num_depths = 3

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> torch.Tensor:
        return self.depth_logits(batch)[-1]

    def depth_logits(self, batch: Any, num_depths: int | None = None) -> torch.Tensor:
        first = self.model(batch)
        depths = range(num_depths or self.num_depths)
        return torch.stack([first + 0.3 * torch.sin(40 * depth * first) for depth in depths])


def train_fm(dataset: Path, out: Path) -> Run:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "dataset": str(dataset),
            "seed": 3,
            "model": {"name": "fm", "embedding_dim": 4},
            "training": {"epochs": 1, "batch_size": 512, "learning_rate": 0.01},
        }
    )
    return train(recipe, out=out)


def looped(plain: Run) -> Run:
    run = Run(plain.folder, plain.record, plain.recipe, plain.dataset)
    run.__dict__["model"] = LoopedFM(plain.model).eval()
    return run


@pytest.fixture(scope="module")
def plain(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_fm(small_log / "log", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(plain: Run) -> Run:
    return looped(plain)


@pytest.fixture(scope="module")
def figures(run: Run) -> DepthFigures:
    return measure_depths(run, points=3, draws=4)


def predictions(run: Run, split: str) -> tuple[np.ndarray, Predictions]:
    """[depths, rows, tasks], and what is known of the rows."""
    stored = run.dataset.split(split)
    batch = stored.gather(torch.arange(stored.rows))
    with torch.inference_mode():
        depths = run.model.depth_logits(batch).numpy()
    return depths, Predictions(
        depths[0], batch.labels.numpy(), group=None if batch.group is None else batch.group.numpy()
    )


def test_depths_and_oracle_are_those_of_the_rows(run: Run, figures: DepthFigures) -> None:
    depths, found = predictions(run, "test")
    schema = run.dataset.schema
    for depth, point in enumerate(figures.points[:3]):
        assert point.name == f"depth {depth}"
        expected = evaluate(replace(found, logits=depths[depth]), schema).metrics
        assert point.metrics["auc"] == pytest.approx(expected["auc"])
        assert point.metrics["log_loss"] == pytest.approx(expected["log_loss"])
        assert point.flops_per_row == figures.costs.fixed[depth]
    best = oracle_scores(depths, found.labels).astype(np.float32)
    assert figures.oracle["auc"] == pytest.approx(
        evaluate(replace(found, logits=best), schema).metrics["auc"]
    )
    (task,) = figures.tasks
    assert task.rows == figures.rows == run.dataset.split("test").rows
    assert task.counts[-1].first == pytest.approx(figures.oracle["auc"])
    assert task.counts[0].first == pytest.approx(figures.points[0].metrics["auc"])


def test_the_reference_is_chosen_where_policies_are_fitted(run: Run, figures: DepthFigures) -> None:
    depths, found = predictions(run, "valid")
    schema = run.dataset.schema
    aucs = [evaluate(replace(found, logits=one), schema).metrics["auc"] for one in depths]
    assert figures.reference == f"depth {int(np.argmax(aucs))}"
    reference = next(point for point in figures.points if point.name == figures.reference)
    assert reference.auc_difference == reference.gap_captured == 0
    assert np.isnan(reference.p_adjusted)
    gap = figures.oracle["auc"] - reference.metrics["auc"]
    for point in figures.points:
        difference = point.metrics["auc"] - reference.metrics["auc"]
        assert point.auc_difference == pytest.approx(difference)
        assert point.gap_captured == pytest.approx(difference / gap)
        if point is not reference:
            assert point.auc_low <= point.auc_difference <= point.auc_high


def test_every_policy_predicts_what_its_point_says(run: Run, figures: DepthFigures) -> None:
    stored = run.dataset.split("test")
    batch = stored.gather(torch.arange(stored.rows))
    policies = [point for point in figures.points if point.policy is not None]
    families = {point.family for point in policies}
    assert families == {
        "change exit",
        "entropy exit",
        "halting exit",
        "mean of logits",
        "learned weights",
    }
    for point in policies:
        with torch.inference_mode():
            found = predict_adaptively(run.model, batch, point.policy)
        assert float(found.depth.double().mean()) == pytest.approx(point.mean_depth)
        cost = np.asarray(figures.costs.adaptive)[found.depth.numpy()].mean()
        assert point.flops_per_row == pytest.approx(cost)
        shown = Predictions(found.logits.numpy(), batch.labels.numpy())
        expected = evaluate(shown, run.dataset.schema).metrics["auc"]
        assert point.metrics["auc"] == pytest.approx(expected, abs=1e-6)


def test_exits_keep_to_their_costs_on_the_rows_they_were_fitted_on(
    run: Run, figures: DepthFigures
) -> None:
    stored = run.dataset.split("valid")
    batch = stored.gather(torch.arange(stored.rows))
    costs = figures.costs.adaptive
    targets = np.linspace(costs[0], costs[-1], 5)[1:-1]
    found = [point.policy for point in figures.points if point.family == "entropy exit"]
    assert len(found) == 3
    for policy, target in zip(found, targets, strict=True):
        with torch.inference_mode():
            depth = predict_adaptively(run.model, batch, policy).depth
        cost = np.asarray(costs)[depth.numpy()].mean()
        assert target * 0.98 < cost <= target * (1 + 1e-9)


def test_exits_are_named_by_their_share_of_the_deepest_fixed_depth(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = DepthCosts(fixed=(10, 12, 14), adaptive=(10, 14, 20), stepped=True)
    monkeypatch.setattr("rankloom.training.depths.measure_depth_costs", lambda *_, **__: costs)
    figures = measure_depths(run, points=3, draws=1)  # targets 12.5, 15 and 17.5
    names = [point.name for point in figures.points if "exit" in point.family]
    assert [name for name in names if name.startswith("entropy")] == ["entropy 89.3%"]
    # No change is known at the shallowest depth, so it has dearer targets only.
    assert [name for name in names if name.startswith("change")] == [
        "change 107.1%",
        "change 125.0%",
    ]


def test_names_of_exits_are_unique_however_close_their_costs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = DepthCosts(fixed=(1000, 1001, 1002), adaptive=(1000, 1001, 1002), stepped=True)
    monkeypatch.setattr("rankloom.training.depths.measure_depth_costs", lambda *_, **__: costs)
    figures = measure_depths(run, points=9, draws=1)
    names = [point.name for point in figures.points]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("entropy") for name in names) > 5


def test_headroom_is_measured_above_the_reference(run: Run, figures: DepthFigures) -> None:
    around = figures.tasks[0].around_reference
    assert around is not None
    assert f"depth {around.depth}" == figures.reference
    assert around.headroom == pytest.approx(figures.oracle["auc"] - around.noise.mean)


def test_figures_are_written_read_and_the_same_again(
    run: Run, figures: DepthFigures, tmp_path: Path
) -> None:
    file = write_depths(tmp_path, figures)
    again = read_depths(tmp_path)
    assert again.model_dump_json() == read_depths(file).model_dump_json()
    assert again.points[-1].policy == figures.points[-1].policy
    repeated = measure_depths(run, points=3, draws=4)
    assert repeated.model_dump_json() == figures.model_dump_json()


def test_several_tasks_and_missing_labels(tmp_path: Path) -> None:
    config = SyntheticConfig(num_users=30, num_items=20, vocabularies=(8,), history_length=3)
    write_csv(tmp_path / "log.csv", config, rows=2000)
    schema = synthetic_table_schema(config, "log.csv")
    (tmp_path / "schema.toml").write_text(to_toml(schema), encoding="utf-8")
    prepare(tmp_path / "schema.toml", tmp_path / "log")
    run = looped(train_fm(tmp_path / "log", tmp_path / "runs"))
    figures = measure_depths(run, points=2, draws=2)
    depths, found = predictions(run, "test")
    stored = run.dataset.split("test")
    mask = stored.gather(torch.arange(stored.rows)).label_mask
    assert mask is not None
    assert not mask.all()
    known = mask.numpy()
    assert [task.rows for task in figures.tasks] == known.sum(0).tolist()
    for task, oracle in enumerate(figures.tasks):
        rows = known[:, task]
        best = oracle_scores(depths[:, rows, task], found.labels[rows, task])
        expected = auc(found.labels[rows, task], best)
        assert oracle.counts[-1].first == pytest.approx(expected)
        assert figures.oracle[f"auc/{oracle.task}"] == pytest.approx(expected)
    assert all(np.isnan(point.p_adjusted) for point in figures.points)
    assert {"auc", "auc/click"} <= figures.points[0].metrics.keys()
    assert len(depth_tables(figures)) == 4


def test_tables_have_a_cell_per_column(figures: DepthFigures) -> None:
    tables = depth_tables(figures)
    assert len(tables) == 3
    for table in tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_what_cannot_be_measured(plain: Run, run: Run, small_log: Path) -> None:
    with pytest.raises(ValueError, match="fm has no depths to compare; models that have: "):
        measure_depths(plain)
    single = LoopedFM(plain.model)
    single.num_depths = 1
    alone = Run(plain.folder, plain.record, plain.recipe, Dataset.open(small_log / "log"))
    alone.__dict__["model"] = single
    with pytest.raises(ValueError, match="has one depth only: train with a loop at least"):
        measure_depths(alone)
    for changes, message in (
        ({"split": "valid"}, "policies are fitted on valid: report another split than that"),
        ({"split": "later"}, "no split 'later' in"),
        ({"points": 0}, "points must be 1 to 100; got 0"),
        ({"points": 101}, "points must be 1 to 100; got 101"),
        ({"draws": 0}, "draws must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_depths(run, **changes)
