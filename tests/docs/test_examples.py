"""Every example runs, on less data than it would take by itself."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = runpy.run_path(str(example))["main"](rows=4_000)
    assert metrics["auc/click"] > 0.5
    assert capsys.readouterr().out
