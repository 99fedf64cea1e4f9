"""Figures of the report page: validation curves, and quality against cost."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from rankloom.config import Config
from rankloom.report.leaderboard import Table
from rankloom.report.rows import Row

COLOURS = (
    "#3f7fd6",
    "#dd7a26",
    "#2f9c64",
    "#c8507f",
    "#8767cf",
    "#a5832b",
    "#2b9bac",
    "#b5503f",
)
"""Line colours that stand out on white and on near-black."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles once the colours are used up."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
"""Markers once the colours are used up."""


class Chart(Config):
    """A figure ready for the page."""

    title: str
    """Heading."""
    caption: str
    """What is drawn, in a sentence."""
    figure: str
    """Plotly figure as JSON that may stand in a script element."""


def colour(position: int) -> str:
    """Colour of the row at a position of its table."""
    return COLOURS[position % len(COLOURS)]


def curve_charts(
    table: Table, histories: Mapping[tuple[str, int], pl.DataFrame], metrics: Sequence[str]
) -> list[Chart]:
    """Validation curves, one chart per metric that the histories hold.

    Args:
        table: the rows to draw.
        histories: history by recipe hash and seed.
        metrics: metrics to draw.
    """
    shared = [frame for frame in histories.values() if frame.height]
    # Epochs compare models with different batch sizes; a run without them has steps.
    unit = "epoch" if shared and all("epoch" in frame.columns for frame in shared) else "step"
    charts = []
    for metric in metrics:
        figure = go.Figure()
        for position, row in enumerate(table.rows):
            curves = {
                seed: _curve(histories[row.recipe_hash, seed], unit, metric)
                for seed in row.seeds
                if (row.recipe_hash, seed) in histories
                and metric in histories[row.recipe_hash, seed].columns
            }
            _add_curves(figure, row, position, {s: c for s, c in curves.items() if c})
        if not figure.data:
            continue
        figure.update_layout(figure_layout(unit, f"validation {metric}"))
        charts.append(
            Chart(
                title=f"Validation {metric}",
                caption=f"Mean over seeds, as far as every seed got; thin lines are single seeds. "
                f"A click on a name hides it. Horizontal: {unit}.",
                figure=figure_json(figure),
            )
        )
    return charts


def cost_charts(table: Table) -> list[Chart]:
    """The first metric against FLOPs per row and against parameters."""
    metric = table.metrics[0]
    charts = []
    for title, axis, costs in (
        ("FLOPs", "FLOPs per row", [row.flops_per_row for row in table.rows]),
        ("parameters", "parameters", [row.parameters for row in table.rows]),
    ):
        figure = go.Figure()
        for position, (row, cost) in enumerate(zip(table.rows, costs, strict=True)):
            summary = row.metrics[metric]
            if cost is None or cost <= 0 or math.isnan(summary.mean):
                continue  # a log axis has no zero
            spread = 0.0 if math.isnan(summary.deviation) else summary.deviation
            figure.add_trace(
                go.Scatter(
                    x=[cost],
                    y=[summary.mean],
                    error_y={"type": "data", "array": [spread], "thickness": 1.5, "width": 4},
                    mode="markers",
                    name=html.escape(row.label),
                    marker={
                        "color": colour(position),
                        "size": 11,
                        "symbol": SYMBOLS[position // len(COLOURS) % len(SYMBOLS)],
                    },
                    hovertemplate="%{y:.5f} at %{x:,.4~s}",
                )
            )
        if not figure.data:
            continue
        figure.update_layout(figure_layout(axis, f"{table.split} {metric}"))
        drawn = [float(trace.x[0]) for trace in figure.data]
        decades = math.log10(max(drawn) / min(drawn))
        # Every 1, 2 and 5 over a short range; powers of ten where these would overlap.
        figure.update_xaxes(type="log", tickformat="~s", dtick="D2" if decades < 2.5 else 1)
        charts.append(
            Chart(
                title=f"{metric} against {title}",
                caption="Mean and standard deviation over seeds; the horizontal axis is "
                "logarithmic.",
                figure=figure_json(figure),
            )
        )
    return charts


def _curve(history: pl.DataFrame, unit: str, metric: str) -> dict[float, float]:
    points = history.select(unit, metric).drop_nulls().filter(pl.col(metric).is_finite())
    return dict(points.iter_rows())


def _add_curves(
    figure: go.Figure, row: Row, position: int, curves: Mapping[int, dict[float, float]]
) -> None:
    if not curves:
        return
    line = {
        "color": colour(position),
        "dash": DASHES[position // len(COLOURS) % len(DASHES)],
    }
    if len(curves) > 1:
        for curve in curves.values():
            figure.add_trace(
                go.Scatter(
                    x=list(curve),
                    y=list(curve.values()),
                    mode="lines",
                    line={**line, "width": 1},
                    opacity=0.4,
                    legendgroup=row.recipe_hash,
                    showlegend=False,
                    hoverinfo="skip",
                )
            )
    common = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    mean = [math.fsum(curve[x] for curve in curves.values()) / len(curves) for x in common]
    figure.add_trace(
        go.Scatter(
            x=common,
            y=mean,
            mode="lines+markers",
            line={**line, "width": 2.5},
            marker={"size": 6},
            name=html.escape(row.label),
            legendgroup=row.recipe_hash,
            hovertemplate="%{y:.5f}",
        )
    )


def figure_layout(horizontal: str, vertical: str) -> dict[str, Any]:
    """Layout without colours: the page sets those by the reader's scheme."""
    return {
        "template": "none",
        "height": 400,
        "margin": {"l": 68, "r": 12, "t": 28, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": horizontal}, "zeroline": False, "automargin": True},
        "yaxis": {
            "title": {"text": html.escape(vertical)},
            "zeroline": False,
            "automargin": True,
            "tickformat": ".4~f",
        },
    }


def figure_json(figure: go.Figure) -> str:
    """Figure as JSON in which no `<` can end a script element."""
    values = json.loads(figure.to_json())
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
