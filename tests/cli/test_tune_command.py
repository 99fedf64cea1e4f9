"""`rankloom tune` and `rankloom compare --jobs` as a person uses them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloom.cli.main import app

RECIPE = """
name = "tiny"
dataset = "somewhere"
[model]
name = "lr"
[training]
epochs = 1
batch_size = 512
learning_rate = 0.001
"""
GRID = """
trials = 2
seed = 4
[grid]
"training.learning_rate" = [0.001, 0.01, 0.1]
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def here(small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tune_then_compare(here: Path, small_log: Path) -> None:
    options = ("--grid", "grid.toml", "--report", "found")
    arguments = ("tune", "tiny.toml", *options, "--dataset", small_log / "log")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "[1/2] tiny trial 1 of 2: training with training.learning_rate=0.001" in result.stderr
    assert "learning_rate=" in result.stdout
    assert "written: found/best/tiny.toml" in result.stdout
    again = invoke(*arguments, "--trials", 3, "--json")
    assert again.stderr.count("recorded already") == 2
    (search,) = json.loads(again.stdout)["searches"]
    assert [trial["number"] for trial in search["trials"]] == [1, 2, 3]
    assert search["whole_grid"]
    compared = invoke(
        "compare", "found/best/tiny.toml", "--seeds", 1, "--set", "seed=4", "--report", "page"
    )
    assert compared.exit_code == 0, compared.output
    assert len(list((here / "runs").rglob("record.json"))) == 3  # nothing is trained again


def test_compare_with_jobs(here: Path, small_log: Path) -> None:
    arguments = ("--dataset", small_log / "log", "--seeds", 2, "--jobs", 2, "--report", "page")
    result = invoke("compare", "tiny.toml", *arguments)
    assert result.exit_code == 0, result.output
    assert "[2/2] tiny seed 1: training" in result.stderr
    assert "2 seeds" in result.stdout
    assert (here / "page" / "index.html").is_file()


def test_results_are_written_after_each_trial(
    here: Path, small_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.training import jobs

    train, calls = jobs.run_recipe, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "run_recipe", interrupted)
    options = ("--grid", "grid.toml", "--report", "found", "--dataset", small_log / "log")
    result = invoke("tune", "tiny.toml", *options)
    assert result.exit_code == 130
    (search,) = json.loads((here / "found" / "tune.json").read_text(encoding="utf-8"))["searches"]
    assert (search["planned"], len(search["trials"]), search["best"]) == (2, 1, 1)


def test_wrong_input_is_a_sentence(here: Path, small_log: Path) -> None:
    options = ("--grid", "grid.toml", "--report", "found", "--dataset", small_log / "log")
    (here / "grid.toml").write_text('trials = 2\n[grid]\n"model.depth" = [1]\n')
    result = invoke("tune", "tiny.toml", *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: tiny, model lr: unknown model.depth; correct the key")
    (here / "grid.toml").write_text('trials = 2\n[grid]\n"training.batch_size" = [50000]\n')
    result = invoke("tune", "tiny.toml", *options, "--set", "training.batch_size=60000")
    assert result.exit_code == 1
    assert "trial 2 of 2: failed: batch_size 50000 is more than the 4800 training" in result.stderr
    assert "error: every trial failed of tiny; tune.md says why" in result.stderr
    assert (here / "found" / "tune.md").is_file()
    assert not (here / "found" / "best").exists()
