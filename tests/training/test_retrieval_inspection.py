"""Runs looked into: the values that the targets are sorted by, and the metric of each user."""

from pathlib import Path

import numpy as np
import pytest
from retrieval_toy import scorer, toy_data, toy_recipe

from rankloom.evaluation.retrieval_metrics import per_user
from rankloom.training.retrieval_evaluation import read_places
from rankloom.training.retrieval_experiment import train_retrieval
from rankloom.training.retrieval_inspection import COUNT, MARGIN, first_margins, inspect_retrieval
from rankloom.training.retrieval_run import RetrievalRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("inspected")
    toy_data(made)
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> RetrievalRun:
    return train_retrieval(toy_recipe(folder / "data"), out=folder / "runs")


def test_margins_are_those_of_the_nearest_centres(run: RetrievalRun) -> None:
    """1 - d1 / d2 of the squared distances to the two nearest centres of level 1."""
    margins = first_margins(run)
    assert margins is not None
    assert run.tokenized is not None
    vectors, codes = run.tokenized.vectors.numpy(), run.tokenized.ids.codes
    code_vectors = run.tokenized.code_vectors
    assert code_vectors is not None
    centres = code_vectors.numpy()[3 : 3 + 6]  # the six codes of level 1
    distances = ((vectors[:, None] - centres) ** 2).sum(2)  # [items, codes]
    assert (distances.argmin(1) == codes[:, 0]).all()
    nearest = np.sort(distances, 1)
    np.testing.assert_allclose(margins, 1 - nearest[:, 0] / nearest[:, 1], atol=1e-4)


def test_users_are_sorted_by_their_own_targets(run: RetrievalRun) -> None:
    figures = inspect_retrieval(run, metric="recall@5", samples=20)
    assert [sorting.figure for sorting in figures.sortings] == [MARGIN, COUNT]
    assert (figures.model, figures.tokenizer, figures.metric) == (
        "decoder",
        "rq_kmeans",
        "recall@5",
    )
    values = per_user(read_places(run.folder, "test"), "recall@5")
    _, targets, _ = run.dataset.histories.held_out("test")
    counts = run.dataset.histories.training().counts()[targets - 1]
    margins = first_margins(run)
    assert margins is not None
    for sorting, of_target in zip(figures.sortings, (margins[targets - 1], counts), strict=True):
        assert sum(tenth.users for tenth in sorting.tenths) == figures.users == len(targets)
        for tenth in sorting.tenths:
            inside = (of_target >= tenth.low) & (of_target <= tenth.high)
            assert inside.sum() == tenth.users
            assert tenth.mean == pytest.approx(values[inside].mean())


def test_places_that_were_not_kept_are_evaluated(run: RetrievalRun) -> None:
    kept = inspect_retrieval(run, split="valid", samples=5)
    file = run.folder / "places-valid.parquet"
    held = file.read_bytes()
    file.unlink()
    try:
        assert inspect_retrieval(run, split="valid", samples=5) == kept
    finally:
        file.write_bytes(held)


def test_models_without_ids_are_sorted_by_count_alone(folder: Path) -> None:
    run = train_retrieval(
        scorer(folder / "data", model={"name": "popularity"}), out=folder / "runs"
    )
    figures = inspect_retrieval(run, samples=5)
    assert [sorting.figure for sorting in figures.sortings] == [COUNT]
    assert figures.tokenizer == ""


def test_tokenizers_that_tell_no_margin_are_sorted_by_count_alone(folder: Path) -> None:
    recipe = toy_recipe(folder / "data", tokenizer={"kind": "gaoq", "branching": [3]})
    run = train_retrieval(recipe, out=folder / "runs")
    assert first_margins(run) is None
    assert [s.figure for s in inspect_retrieval(run, samples=5).sortings] == [COUNT]


def test_other_splits_and_metrics_are_refused(run: RetrievalRun) -> None:
    with pytest.raises(ValueError, match="no split 'train' of held-out items"):
        inspect_retrieval(run, split="train")
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        inspect_retrieval(run, metric="auc")
