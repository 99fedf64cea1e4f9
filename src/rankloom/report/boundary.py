"""A retrieval run's metric by margin and by training count, as tables and as a page."""

import math
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Group

from rankloom.evaluation.boundary import BoundaryFigures, Sorted
from rankloom.report.charts import COLOURS, Chart, figure_json, figure_layout
from rankloom.report.inspection import signed, tables_terminal
from rankloom.report.inspection_page import INSPECTION_PAGE
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.templates import render
from rankloom.report.texts import number
from rankloom.runs.atomic import write_text


def boundary_table(figures: BoundaryFigures, sorting: Sorted) -> InspectionTable:
    """A line per tenth."""
    gap = "The first tenth has no other beside it."
    if not math.isnan(sorting.difference):
        ends = f"{signed(sorting.difference_low)} to {signed(sorting.difference_high)}"
        gap = f"First tenth less all others: {signed(sorting.difference)} ({ends})."
    return InspectionTable(
        title=_title(figures, sorting),
        columns=("tenth", sorting.figure, "users", figures.metric, "from", "to"),
        rows=tuple(
            (
                str(tenth.number),
                f"{_value(tenth.low)} to {_value(tenth.high)}",
                f"{tenth.users:,}",
                number(tenth.mean),
                number(tenth.mean_low),
                number(tenth.mean_high),
            )
            for tenth in sorting.tenths
        ),
        names=2,
        notes=(
            f"Users by the {sorting.figure} of their target, smallest first; targets of one value "
            "stay together.",
            f"{gap} Intervals: 95% bootstrap over users; they say nothing of other seeds.",
        ),
    )


def boundary_tables(figures: BoundaryFigures) -> list[InspectionTable]:
    """A table for each sorting."""
    return [boundary_table(figures, sorting) for sorting in figures.sortings]


def boundary_terminal(figures: BoundaryFigures) -> Group:
    """Every table as a rich renderable."""
    return tables_terminal(boundary_tables(figures))


def boundary_chart(figures: BoundaryFigures, sorting: Sorted) -> Chart:
    """The metric over the tenths, with intervals."""
    drawn = [tenth for tenth in sorting.tenths if not math.isnan(tenth.mean)]
    figure = go.Figure(
        go.Bar(
            x=[str(tenth.number) for tenth in drawn],
            y=[tenth.mean for tenth in drawn],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_above(tenth.mean_high - tenth.mean) for tenth in drawn],
                "arrayminus": [_above(tenth.mean - tenth.mean_low) for tenth in drawn],
                "thickness": 1.5,
                "width": 4,
            },
            marker={"color": COLOURS[0]},
            hovertemplate="%{y:.5f}",
        )
    )
    figure.update_layout(figure_layout(f"tenth, smallest {sorting.figure} first", figures.metric))
    figure.update_xaxes(type="category")
    return Chart(
        title=_title(figures, sorting),
        caption="Bars: 95% bootstrap interval over users.",
        figure=figure_json(figure),
    )


def write_boundary_page(folder: str | Path, figures: BoundaryFigures) -> Path:
    """Write `inspect.html` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / INSPECTION_PAGE
    write_text(file, render_boundary(figures))
    return file


def render_boundary(figures: BoundaryFigures) -> str:
    """The HTML text; the same input gives the same text."""
    made = f"{figures.model} on ids of {figures.tokenizer}" if figures.tokenizer else figures.model
    return render(
        "inspect.html.j2",
        title=f"Whom {made} serves",
        summary=f"{figures.dataset}, {figures.split} split, {figures.users:,} users, data "
        f"{figures.data_hash}.",
        runs=[
            {
                "label": made,
                "model": figures.model,
                "seed": figures.seed,
                "run_id": figures.run_id,
            }
        ],
        sections=[
            {
                "heading": f"By {sorting.figure}",
                "tables": [boundary_table(figures, sorting)],
                "charts": [boundary_chart(figures, sorting)],
            }
            for sorting in figures.sortings
        ],
    )


def _title(figures: BoundaryFigures, sorting: Sorted) -> str:
    return f"{figures.metric} by {sorting.figure} of the target"


def _value(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4f}"


def _above(length: float) -> float:
    return 0.0 if math.isnan(length) else length
