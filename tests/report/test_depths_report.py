import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_page import HOSTILE, Page

from rankloom.evaluation.depth_cost import DepthCosts
from rankloom.evaluation.depth_figures import DepthFigures, DepthPoint
from rankloom.evaluation.depth_policy import ChangeExit, Policy
from rankloom.evaluation.oracle_figures import (
    NoiseBand,
    OracleCount,
    ReferenceNoise,
    TaskOracle,
)
from rankloom.report.charts import Chart
from rankloom.report.depths import depth_tables
from rankloom.report.depths_page import (
    compute_chart,
    oracle_chart,
    render_depths,
    write_depths_page,
)
from rankloom.report.inspection import tables_terminal

NAN = math.nan


def point(
    name: str, family: str, flops: float, auc: float, policy: Policy | None = None
) -> DepthPoint:
    same = auc == 0.7
    return DepthPoint(
        name=name,
        family=family,
        flops_per_row=flops,
        mean_depth=1.25,
        metrics={"auc": auc, "gauc": auc - 0.1, "gauc_coverage": 0.5, "log_loss": 0.4},
        gap_captured=(auc - 0.7) / 0.05,
        auc_difference=auc - 0.7,
        auc_low=NAN if same else auc - 0.71,
        auc_high=NAN if same else auc - 0.69,
        p_adjusted=NAN if same else 0.02,
        policy=policy,
    )


def oracles(task: str = "click", first: float = 0.7) -> TaskOracle:
    counts = []
    for count in (1, 2):
        bands = [
            NoiseBand(noise=noise, mean=first + add * count, low=first, high=first + 0.1)
            for noise, add in (("joint", 0.01), ("independent", 0.02), ("anywhere", 0.03))
        ]
        counts.append(
            OracleCount(
                count=count,
                first=first + 0.025 * (count - 1),
                noise=tuple(bands),
                subsets=3 - count,
                mean=first + 0.024,
                least=first,
                largest=first + 0.03,
            )
        )
    band = NoiseBand(noise="joint", mean=first + 0.02, low=first + 0.01, high=first + 0.03)
    around = ReferenceNoise(depth=1, noise=band, headroom=first + 0.025 - band.mean)
    return TaskOracle(
        task=task, rows=1000, positives=300, counts=tuple(counts), around_reference=around
    )


def depth_figures(name: str = "loopctr", **changes: Any) -> DepthFigures:
    values: dict[str, Any] = {
        "run_id": f"{name}-s1",
        "model": name,
        "seed": 1,
        "dataset": "demo",
        "data_hash": "abcd",
        "split": "test",
        "fitted_on": "valid",
        "rows": 1000,
        "reference": "depth 0",
        "costs": DepthCosts(fixed=(1e4, 2e4), adaptive=(1e4, 2.5e4), stepped=True),
        "oracle": {"auc": 0.75, "gauc": 0.65, "gauc_coverage": 0.5, "log_loss": 0.3},
        "tasks": (oracles(),),
        "points": (
            point("depth 0", "fixed depth", 1e4, 0.7),
            point("depth 1", "fixed depth", 2e4, 0.69),
            point("change 60.0%", "change exit", 1.5e4, 0.705, ChangeExit(threshold=0.012)),
            point("change 48.0%", "change exit", 1.2e4, 0.704, ChangeExit(threshold=0.0012)),
        ),
        "draws": 20,
    }
    return DepthFigures.model_validate(values | changes)


def traces(chart: Chart) -> list[dict[str, Any]]:
    return json.loads(chart.figure)["data"]


def test_tables() -> None:
    fixed, oracle, policies = depth_tables(depth_figures())
    assert fixed.rows == (
        ("depth 0", "0.70000", "0.60000", "0.40000", "10k", "+0.00000", "-"),
        ("depth 1", "0.69000", "0.59000", "0.40000", "20k", "-0.01000", "0.020"),
        ("oracle", "0.75000", "0.65000", "0.30000", "-", "-", "-"),
    )
    assert oracle.rows[1] == (
        "2",
        "0.72400",
        "0.72500",
        "+0.00500",
        "0.7000 to 0.8000",
        "0.72000",
        "0.74000",
        "0.76000",
    )
    assert policies.rows[0] == (
        "change 60.0%",
        "0.70500",
        "0.60500",
        "0.40000",
        "15k",
        "1.25",
        "+0.00500",
        "0.020",
        "+10.0%",
    )
    for table in (fixed, oracle, policies):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_headroom_above_the_reference_stands_in_the_notes() -> None:
    expected = (
        "Headroom beyond choice above depth 1, the best on valid: +0.00500. That is all 2 depths, "
        "0.72500, less joint noise around depth 1, 0.72000 (95% 0.7100 to 0.7300)."
    )
    assert depth_tables(depth_figures())[1].notes[-1] == expected
    assert expected in " ".join(Page(render_depths(depth_figures())).text.split())
    older = oracles().model_copy(update={"around_reference": None})
    assert len(depth_tables(depth_figures(tasks=(older,)))[1].notes) == 2


def test_a_single_depth_is_not_beyond_its_copy() -> None:
    one = oracles().counts[0]
    rounded = one.noise[0].model_copy(update={"mean": one.first + 1e-16})
    task = oracles().model_copy(update={"counts": (one.model_copy(update={"noise": (rounded,)}),)})
    assert depth_tables(depth_figures(tasks=(task,)))[1].rows[0][3] == "+0.00000"


def test_tables_say_how_a_fixed_depth_was_counted() -> None:
    costs = DepthCosts(fixed=(1, 2), adaptive=(1, 2), stepped=False)
    for changes, text in (({}, "do not count the logits"), ({"costs": costs}, "cannot be stepped")):
        assert text in depth_tables(depth_figures(**changes))[0].notes[1]


def test_tasks_are_named_where_there_are_several() -> None:
    figures = depth_figures(tasks=(oracles("click"), oracles("buy", first=NAN)))
    titles = [table.title for table in depth_tables(figures)[1:3]]
    assert titles == ["Oracle over depths, click", "Oracle over depths, buy"]
    alone = depth_tables(figures)[2].rows[1]
    assert alone == ("2", "-", "-", "-", "- to -", "-", "-", "-")
    assert traces(oracle_chart(figures, figures.tasks[1])) == []


def test_terminal_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, file=None, color_system=None)
    with console.capture() as captured:
        console.print(tables_terminal(depth_tables(depth_figures("[red]x"))))
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= 80
    for expected in ("change 60.0%", "+0.00500", "0.7000 to 0.8000", "+10.0%", "independent"):
        assert expected in shown


def test_compute_chart_joins_a_family_in_the_order_of_its_cost() -> None:
    fixed, change = traces(compute_chart(depth_figures(), "auc"))
    assert (fixed["x"], fixed["y"]) == ([1e4, 2e4], [0.7, 0.69])
    assert (change["x"], change["y"]) == ([1.2e4, 1.5e4], [0.704, 0.705])
    assert change["text"] == ["change 48.0%", "change 60.0%"]


def test_oracle_chart_has_the_noise_and_its_intervals() -> None:
    figures = depth_figures()
    first, mean, joint, *others = traces(oracle_chart(figures, figures.tasks[0]))
    assert (first["x"], first["y"]) == ([1, 2], pytest.approx([0.7, 0.725]))
    assert mean["y"] == pytest.approx([0.724, 0.724])
    assert joint["y"] == pytest.approx([0.71, 0.72])
    assert joint["error_y"]["array"] == pytest.approx([0.09, 0.08])
    assert joint["error_y"]["arrayminus"] == pytest.approx([0.01, 0.02])
    assert [trace["name"] for trace in others] == ["noise, independent", "noise, anywhere"]
    colours = [trace["line"]["color"] for trace in (first, mean, joint, *others)]
    assert len(set(colours)) == 5


def test_page_loads_nothing_and_shows_everything(tmp_path: Path) -> None:
    file = write_depths_page(tmp_path, depth_figures())
    assert file.name == "depths.html"
    page = Page(file.read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "href", "action"} & attributes.keys()
    ours = [script for attributes, script in page.scripts if attributes.get("id") != "plotly"]
    for script in ours:
        assert not re.search(r"https?:|\bfetch\b|XMLHttpRequest|\bimport\b", script)
    figures = [
        json.loads(script)
        for attributes, script in page.scripts
        if attributes.get("type") == "application/json"
    ]
    assert len(figures) == 4
    assert all(figure["data"] for figure in figures)
    for expected in ("Depths of loopctr", "demo, test split, 1,000 rows", "change 60.0%", "s1"):
        assert expected in page.text
    assert "nan" not in page.text.lower()


def test_names_are_escaped() -> None:
    page = Page(render_depths(depth_figures(HOSTILE)))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) >= 3
