import json
import math
from typing import Any

import pytest
from rich.console import Console
from test_page import HOSTILE, Page

from rankloom.evaluation.inspection import InspectedRun, Inspection
from rankloom.evaluation.landscape import Landscape, LandscapeConfig, Rise
from rankloom.evaluation.loops import (
    CoefficientCall,
    RouterCall,
    RouterUse,
    StateSimilarity,
    StreamCoefficients,
)
from rankloom.report.charts import Chart
from rankloom.report.inspection import inspection_tables, inspection_terminal
from rankloom.report.inspection_landscape import LANDSCAPE, landscape_charts, landscape_tables
from rankloom.report.inspection_loops import (
    COEFFICIENTS,
    ROUTING,
    STATES,
    loop_charts,
    loop_tables,
)
from rankloom.report.inspection_page import render_inspection

NAN = math.nan
PART: dict[str, Any] = {"tokens_per_row": 20, "padding": "excluded"}


def states(run: str, **changes: Any) -> StateSimilarity:
    values: dict[str, Any] = {
        "run": run,
        "path": "loop",
        "calls": ("loop", "loop"),
        "tokens": 400,
        "width": 8,
        "cosine": ((1.0, 0.5, 0.25), (0.5, 1.0, 0.75), (0.25, 0.75, 1.0)),
        "cka": ((1.0, 0.9, NAN), (0.9, 1.0, NAN), (NAN, NAN, NAN)),
    }
    return StateSimilarity.model_validate(PART | values | changes)


def router(run: str, **changes: Any) -> RouterUse:
    calls = [
        RouterCall(
            call=call,
            tokens=400,
            share=(0.5, 1.0, 0.5),
            gate=(0.25, 0.5, 0.25),
            entropy=1.0,
            agreement=agreement,
        )
        for call, agreement in enumerate((NAN, 0.625))
    ]
    values = {"run": run, "router": "loop.router", "calls": calls}
    return RouterUse.model_validate(PART | values | changes)


def coefficients(run: str, **changes: Any) -> StreamCoefficients:
    call = CoefficientCall(
        call=0, tokens=400, pre=(0.75, -0.5), res=((1.0, 0.125), (0.375, 0.5)), post=(1.0, 1.25)
    )
    values = {"run": run, "module": "loop.coefficients", "calls": (call,)}
    return StreamCoefficients.model_validate(PART | values | changes)


def landscape(run: str, **changes: Any) -> Landscape:
    values: dict[str, Any] = {
        "run": run,
        "settings": LandscapeConfig(num_directions=2, num_steps=1, num_plane_steps=1),
        "rows": 4096,
        "depths": 1,
        "parameters": 12345,
        "loss": 0.5,
        "positions": (-1.0, 0.0, 1.0),
        "curves": ((0.75, 0.5, NAN), (0.625, 0.5, 1.0)),
        "rises": (Rise(radius=1.0, mean=0.3125, deviation=0.0625),),
        "plane_positions": (-1.0, 0.0, 1.0),
        "plane": ((1.5, 0.625, 1.0), (0.75, 0.5, NAN), (1.0, 1.0, 2.0)),
    }
    return Landscape.model_validate(values | changes)


def inspection(name: str = "loops", **changes: Any) -> Inspection:
    values: dict[str, Any] = {
        "dataset": "demo",
        "data_hash": "abcd",
        "split": "test",
        "frequency": "min",
        "runs": [InspectedRun(label=name, run_id="r", model="m", seed=1)],
        "states": [states(name)],
        "routers": [router(name)],
        "coefficients": [coefficients(name)],
        "landscapes": [landscape(name)],
    }
    return Inspection.model_validate(values | changes)


def traces(chart: Chart) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(chart.figure)["data"]
    return found


def test_tables_of_loops() -> None:
    tables = dict(loop_tables(inspection()))
    assert tables[STATES].rows == (
        ("loop", "loops", "0 to 1", "loop", "0.5000", "0.9000"),
        ("loop", "loops", "1 to 2", "loop", "0.7500", "-"),
    )
    assert tables[ROUTING].rows[1] == (
        *("loop", "loops", "1", "3"),
        *("0.500", "1.000", "1.000", "0.625"),
    )
    assert tables[ROUTING].rows[0][-1] == "-"
    assert tables[COEFFICIENTS].rows == (
        (
            *("loop", "loops", "1"),
            *("-0.50 to 0.75", "0.50 to 1.00", "0.12 to 0.38", "1.00 to 1.25"),
        ),
    )
    nothing = {"states": (), "routers": (), "coefficients": (), "landscapes": ()}
    assert loop_tables(inspection(**nothing)) == []
    assert landscape_tables(inspection(**nothing)) == []
    assert landscape_charts(inspection(**nothing)) == []


def test_runs_are_named_where_there_are_several() -> None:
    one = inspection()
    runs = [*one.runs, InspectedRun(label="other", run_id="o", model="m", seed=1)]
    both = inspection_tables(one.model_copy(update={"runs": tuple(runs)}))
    alone = inspection_tables(one)
    for table, same in zip(alone, both, strict=True):
        # A landscape has no other name.
        assert ("run" in table.columns) == same.title.startswith("Loss around the weights")
        assert "run" in same.columns
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert alone[0].rows[0] == ("loop", "0 to 1", "loop", "0.5000", "0.9000")
    assert alone[0].names == both[0].names - 1


def test_kinds_of_tokens_are_named_where_there_are_several() -> None:
    fields = {"tokens_per_row": 7, "padding": "counted"}
    both = inspection(
        states=[states("loops"), states("loops", **fields)],
        routers=[router("loops"), router("other")],
        coefficients=[coefficients("loops"), coefficients("loops", **fields)],
    )
    tables = dict(loop_tables(both))
    assert [row[0] for row in tables[STATES].rows[::2]] == ["loop (20 tokens)", "loop (7 tokens)*"]
    assert {row[0] for row in tables[ROUTING].rows} == {"loop"}
    (chart,) = loop_charts(both)[COEFFICIENTS]
    assert traces(chart)[0]["y"] == [
        "loop (20 tokens)",
        "loop (7 tokens)*",
    ]


def test_charts_of_loops() -> None:
    charts = loop_charts(inspection())
    cosine, cka = (traces(chart)[0] for chart in charts[STATES])
    assert (cosine["type"], cosine["x"], cosine["y"]) == ("heatmap", ["0", "1", "2"], list("012"))
    assert cosine["z"][0] == [1.0, 0.5, 0.25]
    assert (cosine["zmin"], cka["zmin"], cka["zmax"]) == (-1, 0, 1)
    assert cka["z"][0] == [1.0, 0.9, None]
    (bars,) = charts[ROUTING]
    assert [(bar["type"], bar["name"], bar["y"]) for bar in traces(bars)] == [
        ("bar", "call 0", [0.5, 1.0, 0.5]),
        ("bar", "call 1", [0.5, 1.0, 0.5]),
    ]
    (chart,) = charts[COEFFICIENTS]
    (cells,) = traces(chart)
    assert cells["x"] == [
        *("pre 1", "pre 2", "res 1 of 1", "res 1 of 2", "res 2 of 1", "res 2 of 2"),
        *("post 1", "post 2"),
    ]
    assert cells["z"] == [[0.75, -0.5, 1.0, 0.125, 0.375, 0.5, 1.0, 1.25]]
    assert (cells["zmin"], cells["zmax"]) == (-1.25, 1.25)


def test_a_landscape_as_a_table() -> None:
    (table,) = landscape_tables(inspection())
    assert table.columns == ("run", "rows", "weights", "depths", "loss", "+ 1", "±")
    assert table.rows == (("loops", "4,096", "12.3k", "1", "0.50000", "0.3125", "0.0625"),)
    assert "Embedding tables stay." in table.notes[0]
    found = inspection(
        landscapes=[
            landscape(
                "loops",
                depths=4,
                largest_eigenvalue=-12.5,
                settings=LandscapeConfig(num_directions=2, tables=True),
            )
        ]
    )
    (table,) = landscape_tables(found)
    assert (table.columns[-1], table.rows[0][-1]) == ("eigenvalue", "-12.5")
    assert "Embedding tables move too." in table.notes[0]
    assert any(note.startswith("Depths:") for note in table.notes)


def test_landscapes_share_their_scale() -> None:
    other = landscape("other", loss=0.25, plane=((0.25,) * 3,) * 3)
    found = inspection(landscapes=[landscape("loops"), other])
    curves, *planes = landscape_charts(found)
    lines = traces(curves)
    assert [line.get("name") for line in lines] == [None, None, "loops", None, None, "other"]
    assert lines[0]["y"] == [0.25, 0.0, None]
    assert lines[2]["y"] == pytest.approx([0.1875, 0.0, None])
    first, second = (traces(plane)[0] for plane in planes)
    assert first["type"] == "contour"
    assert first["z"][1] == [0.25, 0.0, None]
    assert (first["zmin"], first["zmax"]) == (second["zmin"], second["zmax"]) == (0, 1.5)


def test_the_page_and_the_terminal() -> None:
    text = render_inspection(inspection(HOSTILE))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    for heading in (STATES, ROUTING, COEFFICIENTS, LANDSCAPE):
        assert heading in page.text
    assert "nan" not in page.text.lower()
    console = Console(width=80, record=True, file=None, color_system=None)
    with console.capture() as captured:
        console.print(inspection_terminal(inspection()))
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= 80
    assert "0.3125 0.0625" in " ".join(shown.split())
    assert "-0.50 to 0.75" in shown
