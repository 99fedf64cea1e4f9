"""Runs in processes of their own: the numbers of one after another, and no process left behind."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rankloom.runs.record import StoredRun, find_records
from rankloom.training.compare import PlannedRun, compare
from rankloom.training.course import Progress
from rankloom.training.experiment import train
from rankloom.training.recipe import Recipe


def tiny(dataset: Path, name: str = "tiny", **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": name,
        "dataset": str(dataset / "log"),
        "seed": 1,
        "model": {"name": "dnn", "embedding_dim": 4, "hidden": [8], "dropout": 0.2},
        "training": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01},
    }
    return Recipe.model_validate(values | changes)


def endless(dataset: Path) -> Recipe:
    """Far more epochs than a test waits for, with a report from the first ones."""
    training = {"epochs": 100_000, "batch_size": 512, "patience": 100_000}
    return tiny(dataset, "endless", training=training)


def figures(runs: list[StoredRun]) -> list[tuple[str, int, Any]]:
    return [(run.record.name, run.record.seed, run.record.metrics) for run in runs]


def test_parallel_runs_equal_those_one_after_another(small_log: Path, tmp_path: Path) -> None:
    recipes = [
        tiny(small_log),
        tiny(small_log, "fm", model={"name": "fm", "embedding_dim": 4}),
        tiny(small_log, "other-name"),  # the first one again: trained once
    ]
    expected = compare(recipes, seeds=2, out=tmp_path / "one")
    plans: list[PlannedRun] = []
    reported: set[str] = set()

    def progress(run: PlannedRun, state: Progress) -> None:
        if not reported:  # Ctrl-C in a terminal reaches the workers too: it is not theirs to handle
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGINT)
        reported.add(run.recipe.name)

    arguments: dict[str, Any] = {"seeds": 2, "out": tmp_path / "two"}
    torch.set_num_threads(2)
    try:
        runs = compare(recipes, **arguments, jobs=2, announce=plans.append, progress=progress)
        # What one thread computed counts as recorded where two are used.
        again = compare(recipes, **arguments)
    finally:
        torch.set_num_threads(1)
    assert figures(runs) == figures(expected)
    assert [plan.number for plan in plans] == [1, 2, 3, 4, 5, 6]
    assert [plan.recorded for plan in plans] == [False] * 4 + [True] * 2
    assert runs[4:] == runs[:2]
    assert len(find_records(tmp_path / "two")) == 4
    assert reported == {"tiny", "fm"}
    assert {run.record.machine.threads for run in runs} == {1}
    assert multiprocessing.active_children() == []
    assert [run.record.finished for run in again] == [run.record.finished for run in runs]


def test_the_same_run_under_two_names_is_trained_once_even_anew(
    small_log: Path, tmp_path: Path
) -> None:
    plans: list[PlannedRun] = []
    recipes = [tiny(small_log), tiny(small_log, "other-name")]
    runs = compare(recipes, seeds=1, out=tmp_path, fresh=True, announce=plans.append)
    assert [plan.recorded for plan in plans] == [False, True]
    assert runs[0] == runs[1]
    assert len(find_records(tmp_path)) == 1


def test_an_interrupt_ends_the_workers_and_leaves_their_checkpoints(
    small_log: Path, tmp_path: Path
) -> None:
    def interrupt(run: PlannedRun, state: Progress) -> None:
        if state.metric is not None and state.epoch > 1:
            signal.raise_signal(signal.SIGINT)

    # A shell starts what runs in its background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            compare([endless(small_log)], seeds=1, out=tmp_path, jobs=2, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []
    assert find_records(tmp_path) == []
    assert len(list(tmp_path.rglob("checkpoint"))) == 1


def test_a_failed_training_ends_the_workers(small_log: Path, tmp_path: Path) -> None:
    bad = tiny(small_log, training={"batch_size": 10**6})
    with pytest.raises(ValueError, match="batch_size 1000000 is more than the 4800 training rows"):
        compare([bad], seeds=1, out=tmp_path, jobs=2)
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_that_says_so(small_log: Path, tmp_path: Path) -> None:
    def kill(run: PlannedRun, state: Progress) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ChildProcessError, match="trained endless seed 1 ended with status -9"):
        compare([endless(small_log)], seeds=1, out=tmp_path, jobs=2, progress=kill)


def test_jobs_are_counted_from_one(small_log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1; got 0"):
        compare([tiny(small_log)], seeds=1, out=tmp_path, jobs=0)


def test_splits_are_evaluated_as_asked_and_the_rest_when_it_is_wanted(
    small_log: Path, tmp_path: Path
) -> None:
    recipe = tiny(small_log)
    whole = train(recipe, out=tmp_path / "whole")
    first = train(recipe, out=tmp_path / "part", splits=("valid",))
    assert first.record.metrics == {"valid": whole.record.metrics["valid"]}
    assert train(recipe, out=tmp_path / "part", splits=("valid",)).record == first.record
    plans: list[PlannedRun] = []
    (run,) = compare([recipe], seeds=1, out=tmp_path / "part", announce=plans.append)
    assert run.record.metrics == whole.record.metrics
    assert run.record.finished == first.record.finished  # evaluated, not trained again
    assert not plans[0].recorded
    assert compare([recipe], seeds=1, out=tmp_path / "part")[0].record == run.record
