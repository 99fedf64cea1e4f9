import math
from typing import Any

from rich.console import Console
from test_page import HOSTILE, Page

from rankloom.evaluation.boundary import BoundaryFigures, Sorted, Tenth
from rankloom.report.boundary import boundary_table, boundary_terminal, render_boundary

MARGINS = Sorted(
    figure="margin of the first code",
    tenths=tuple(
        Tenth(
            number=number,
            low=number / 10,
            high=number / 10 + 0.05,
            users=1200,
            mean=number / 100,
            mean_low=number / 100 - 0.002,
            mean_high=number / 100 + 0.003,
        )
        for number in (1, 2, 4)
    ),
    difference=-0.02,
    difference_low=-0.025,
    difference_high=-0.015,
)
ALONE = Sorted(
    figure="training count",
    tenths=(Tenth(number=5, low=3, high=1234, users=7, mean=0.5, mean_low=0.1, mean_high=0.9),),
    difference=math.nan,
    difference_low=math.nan,
    difference_high=math.nan,
)


def figures(**changes: Any) -> BoundaryFigures:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "model": "decoder",
        "tokenizer": "capsid",
        "seed": 1,
        "dataset": "demo",
        "data_hash": "abcd",
        "split": "test",
        "metric": "recall@10",
        "users": 3600,
        "sortings": (MARGINS, ALONE),
    }
    return BoundaryFigures(**{**values, **changes})


def test_a_line_for_each_tenth() -> None:
    table = boundary_table(figures(), MARGINS)
    assert table.columns == (
        "tenth",
        "margin of the first code",
        "users",
        "recall@10",
        "from",
        "to",
    )
    assert table.rows[2] == ("4", "0.4000 to 0.4500", "1,200", "0.04000", "0.03800", "0.04300")
    assert "First tenth less all others: -0.02000 (-0.02500 to -0.01500)." in table.notes[1]
    alone = boundary_table(figures(), ALONE)
    assert alone.rows[0][1] == "3 to 1,234"
    assert "no other beside it" in alone.notes[1]


def test_the_terminal_shows_every_table() -> None:
    console = Console(width=100, record=True)
    console.print(boundary_terminal(figures()))
    text = console.export_text()
    assert "recall@10 by margin of the first code of the target" in text
    assert "recall@10 by training count of the target" in text


def test_the_page_has_a_chart_and_a_table_for_each_sorting() -> None:
    page = Page(render_boundary(figures()))
    assert "Whom decoder on ids of capsid serves" in page.text
    assert [a.get("type") for a, _ in page.scripts].count("application/json") == 2
    assert "0.04000" in page.text
    alone = Page(render_boundary(figures(tokenizer="", sortings=(ALONE,))))
    assert "Whom decoder serves" in alone.text


def test_names_cannot_become_markup() -> None:
    page = Page(render_boundary(figures(dataset=HOSTILE, run_id=HOSTILE)))
    assert "img" not in {tag for tag, _ in page.tags}
