"""The page of scaling curves: one HTML file that opens from disk and loads nothing."""

import html
import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from rankloom.evaluation.scaling import ScalingCurve
from rankloom.report.charts import SYMBOLS, Chart, colour, figure_json, figure_layout
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.scaling import ModelScaling, Scaling, write_json
from rankloom.report.scaling_text import (
    equal_table,
    headlines,
    law_table,
    size_table,
    to_markdown,
)
from rankloom.report.templates import render
from rankloom.report.texts import number
from rankloom.runs.atomic import write_text

SCALING_PAGE = "scaling.html"
"""Name of the page in a report folder."""
SCALING_TABLES = "scaling.md"
"""Name of the tables in a report folder."""
LINE_POINTS = 100
"""Points that a fitted line is drawn through."""


def write_scaling(folder: str | Path, scaling: Scaling, *, command: str = "") -> list[Path]:
    """Write scaling.json, scaling.md and scaling.html, and return the files.

    Args:
        folder: folder of the report; made when missing.
        scaling: the curves.
        command: what one types to repeat them.

    Raises:
        OSError: the folder cannot be written.
    """
    base = Path(folder)
    files = [write_json(base, scaling), base / SCALING_TABLES, base / SCALING_PAGE]
    write_text(files[1], to_markdown(scaling, command=command))
    write_text(files[2], render_scaling(scaling, command=command))
    return files


def render_scaling(scaling: Scaling, *, command: str = "") -> str:
    """The HTML text of some curves; the same input gives the same text."""
    equal = equal_table(scaling)
    sections: list[tuple[str, list[InspectionTable], list[Chart]]] = [
        ("Curves", [law_table(scaling)], scaling_charts(scaling)),
        ("Equal quality", [] if equal is None else [equal], []),
        ("Points", [size_table(scaling)], []),
    ]
    return render(
        "scaling.html.j2",
        title=f"Scaling of {', '.join(model.name for model in scaling.models)}",
        summary=f"{scaling.dataset.name}, {scaling.split} split, {scaling.metric} against FLOPs "
        f"per row; data {scaling.dataset.data_hash}; source {scaling.commit.source_hash}, "
        f"{scaling.machine.cpu}.",
        statements=headlines(scaling),
        sections=[
            {"heading": heading, "tables": tables, "charts": charts}
            for heading, tables, charts in sections
            if tables
        ],
        command=command,
    )


def scaling_charts(scaling: Scaling) -> list[Chart]:
    """The metric against compute: points, their spread over seeds, and fitted lines."""
    figure = go.Figure()
    for position, model in enumerate(scaling.models):
        _add_points(figure, scaling, model, position)
        _add_line(figure, scaling, model, position)
    if not figure.data:
        return []
    figure.update_layout(figure_layout("FLOPs per row", f"{scaling.split} {scaling.metric}"))
    drawn = [value for trace in figure.data for value in trace.x]
    decades = math.log10(max(drawn) / min(drawn))
    # Every 1, 2 and 5 over a short range; powers of ten where these would overlap.
    figure.update_xaxes(type="log", tickformat="~s", dtick="D2" if decades < 2.5 else 1)
    return [
        Chart(
            title=f"{scaling.metric} against FLOPs per row",
            caption="Points: mean and standard deviation over seeds; the horizontal axis is "
            "logarithmic. Lines: the fitted law between the smallest and the largest size; dotted "
            "where the points do not decide its parameters.",
            figure=figure_json(figure),
        )
    ]


def _add_points(figure: go.Figure, scaling: Scaling, model: ModelScaling, position: int) -> None:
    points = [
        (size.flops_per_row, size)
        for size in model.sizes
        if size.flops_per_row and size.metric.count
    ]
    if not points:
        return
    spreads = [size.metric.deviation for _, size in points]
    figure.add_trace(
        go.Scatter(
            x=[compute for compute, _ in points],
            y=[size.metric.mean for _, size in points],
            error_y={
                "type": "data",
                "array": [0.0 if math.isnan(spread) else spread for spread in spreads],
                "thickness": 1.5,
                "width": 4,
            },
            mode="markers",
            name=html.escape(model.name),
            legendgroup=model.name,
            marker={
                "color": colour(position),
                "size": 9,
                "symbol": SYMBOLS[position % len(SYMBOLS)],
            },
            text=[html.escape(f"{model.name}, {size.size}") for _, size in points],
            hovertemplate="%{text}<br>%{y:.5f} at %{x:,.4~s}<extra></extra>",
        )
    )


def _add_line(figure: go.Figure, scaling: Scaling, model: ModelScaling, position: int) -> None:
    computes = [s.flops_per_row for s in model.sizes if s.flops_per_row and s.metric.count]
    if model.line is None:
        return
    alpha, beta, gamma = model.line
    sign = 1 if scaling.higher_is_better else -1
    x = np.geomspace(min(computes), max(computes), LINE_POINTS)
    decided = isinstance(model.fit, ScalingCurve)
    label = f"gamma {number(gamma, 3)}" if decided else "gamma not decided"
    figure.add_trace(
        go.Scatter(
            x=x.tolist(),
            y=(alpha - sign * beta * x**-gamma).tolist(),
            mode="lines",
            name=html.escape(f"{model.name}: {label}"),
            legendgroup=model.name,
            line={"color": colour(position), "width": 2, "dash": "solid" if decided else "dot"},
            hoverinfo="skip",
        )
    )
