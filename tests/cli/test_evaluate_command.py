"""`rankloom evaluate --switched-off`: fields that the model is not given."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloom.cli.main import app
from rankloom.config import parse_config
from rankloom.training.experiment import train
from rankloom.training.recipe import Recipe
from rankloom.training.run import Run


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    values = {
        "name": "tiny",
        "dataset": str(small_log / "log"),
        "model": {"name": "lr"},
        "training": {"epochs": 1, "batch_size": 512, "learning_rate": 0.01},
        "evaluation": {"switched_off": ["item"]},
    }
    return train(parse_config(Recipe, values, "test"), out=tmp_path_factory.mktemp("runs"))


def metrics(run: Run, *options: str) -> dict[str, float]:
    result = invoke("evaluate", run.folder, "--json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, float] = json.loads(result.stdout)["metrics"]
    return found


def test_switched_off(run: Run) -> None:
    recorded = run.record.metrics["test"]["log_loss"]
    assert metrics(run)["log_loss"] == recorded  # the recipe's
    assert metrics(run, "--switched-off", "item")["log_loss"] == recorded
    every = metrics(run, "--switched-off", "none")["log_loss"]
    assert every == run.evaluate(switched_off=()).metrics["log_loss"] != recorded
    two = metrics(run, "--switched-off", "item", "--switched-off", "user")["log_loss"]
    assert two == run.evaluate(switched_off=["item", "user"]).metrics["log_loss"]
    assert two not in (recorded, every)


def test_an_unknown_field(run: Run) -> None:
    result = invoke("evaluate", run.folder, "--switched-off", "position")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no field position to switch off; the fields are user")
