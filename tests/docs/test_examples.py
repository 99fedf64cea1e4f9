"""Every example runs, on less data than it would take by itself."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_stands_here() -> None:
    tested = {
        "quickstart",
        "deres_in_your_stack",
        "loops_and_early_exit",
        "many_scenarios",
        "generative_retrieval",
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run("quickstart")["main"](rows=4_000)
    assert metrics["auc/click"] > 0.5
    assert capsys.readouterr().out


def test_deres_in_your_stack() -> None:
    losses = run("deres_in_your_stack")["main"](steps=30)
    assert losses[-1] < 0.5 * losses[0]


def test_loops_and_early_exit(capsys: pytest.CaptureFixture[str]) -> None:
    depths = run("loops_and_early_exit")["main"](rows=1_500, dim=8)
    assert list(depths) == [f"depth {number}" for number in range(4)]
    assert len(set(depths.values())) == 4
    rows = capsys.readouterr().out.partition("took: ")[2]
    counts = [int(count) for count in rows.strip().strip("[]").split(",")]
    assert counts[0] == 0  # a change needs two depths
    assert sum(counts) > 100


def test_many_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    aucs = run("many_scenarios")["main"](rows=4_000)
    assert set(aucs) == {"dnn", "mi_dpg", "star"}
    assert all(set(table) == {"s0", "s1", "s2", "s3"} for table in aucs.values())
    assert "network.layers.0: similarity between scenarios" in capsys.readouterr().out


def test_generative_retrieval(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run("generative_retrieval")["main"](users=200, epochs=4)
    assert list(metrics) == ["popularity", "sasrec", "capsid"]
    assert metrics["sasrec"]["recall@10"] > metrics["popularity"]["recall@10"]
    assert metrics["capsid"]["invalid_rate"] == 0
    assert metrics["capsid"]["recall_id@10"] >= metrics["capsid"]["recall@10"]
    lines = capsys.readouterr().out.splitlines()
    assert " ids of 120 items: " in lines[4]
    assert len(lines) == 9  # a table, the ids, a history, three items
