"""Every example runs, on less data than it would take by itself."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_stands_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"quickstart", "deres_in_your_stack"}


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run("quickstart")["main"](rows=4_000)
    assert metrics["auc/click"] > 0.5
    assert capsys.readouterr().out


def test_deres_in_your_stack() -> None:
    losses = run("deres_in_your_stack")["main"](steps=30)
    assert losses[-1] < 0.5 * losses[0]
