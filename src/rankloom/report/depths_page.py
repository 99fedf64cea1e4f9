"""The page of a run's depths: one HTML file that opens from disk and loads nothing."""

import html
import math
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rankloom.evaluation.depth_figures import DepthFigures
from rankloom.evaluation.oracle_figures import TaskOracle
from rankloom.report.charts import DASHES, Chart, colour, figure_json, figure_layout
from rankloom.report.depths import depth_tables, noise_mean, oracle_title, shown_metrics
from rankloom.report.templates import render
from rankloom.runs.atomic import write_text

DEPTHS_PAGE = "depths.html"
"""Name of the page in its folder."""


def write_depths_page(folder: str | Path, figures: DepthFigures) -> Path:
    """Write `depths.html` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / DEPTHS_PAGE
    write_text(file, render_depths(figures))
    return file


def render_depths(figures: DepthFigures) -> str:
    """The HTML text; the same input gives the same text."""
    return render(
        "inspect.html.j2",
        title=f"Depths of {figures.model}",
        summary=f"{figures.dataset}, {figures.split} split, {figures.rows:,} rows, data "
        f"{figures.data_hash}. Policies are fitted on {figures.fitted_on}.",
        runs=[
            {
                "label": figures.model,
                "model": figures.model,
                "seed": figures.seed,
                "run_id": figures.run_id,
            }
        ],
        sections=_sections(figures),
    )


def compute_chart(figures: DepthFigures, metric: str) -> Chart:
    """A metric against mean operations, a line per family of points."""
    figure = go.Figure()
    families = list(dict.fromkeys(point.family for point in figures.points))
    for position, family in enumerate(families):
        drawn = sorted(
            (point.flops_per_row, point.metrics[metric], point.name)
            for point in figures.points
            if point.family == family and not math.isnan(point.metrics[metric])
        )
        if drawn:
            figure.add_trace(
                go.Scatter(
                    x=[flops for flops, _, _ in drawn],
                    y=[value for _, value, _ in drawn],
                    text=[html.escape(name) for _, _, name in drawn],
                    mode="lines+markers",
                    line={"color": colour(position), "width": 2},
                    name=html.escape(family),
                    hovertemplate="%{text}: %{y:.5f} at %{x:,.4~s}",
                )
            )
    figure.update_layout(figure_layout("mean FLOPs per row", f"{figures.split} {metric}"))
    figure.update_xaxes(tickformat="~s")
    return Chart(
        title=f"{metric} against mean compute",
        caption="Operations of every row's own depth, averaged over the split.",
        figure=figure_json(figure),
    )


def oracle_chart(figures: DepthFigures, task: TaskOracle) -> Chart:
    """Oracle AUC over the number of depths, with noise in their place and its intervals."""
    figure = go.Figure()
    counts = [one.count for one in task.counts if not math.isnan(one.first)]
    shown = [one for one in task.counts if one.count in counts]
    if shown:
        figure.add_trace(_line("first k depths", counts, [one.first for one in shown], 0))
        others = len(shown[0].noise) + 1
        means = [one.mean for one in shown]
        figure.add_trace(_line("any k depths, mean", counts, means, others, dash=1))
        for position, band in enumerate(shown[0].noise, 1):
            means = [noise_mean(one, band.noise) for one in shown]
            trace = _line(f"noise, {band.noise}", counts, means, position, dash=2)
            bands = [one.noise[position - 1] for one in shown]
            trace.error_y = {
                "type": "data",
                "symmetric": False,
                "array": [one.high - one.mean for one in bands],
                "arrayminus": [one.mean - one.low for one in bands],
                "thickness": 1.5,
                "width": 4,
            }
            figure.add_trace(trace)
    figure.update_layout(figure_layout("depths to choose from", f"{figures.split} oracle AUC"))
    figure.update_xaxes(tickformat="d", dtick=1)
    return Chart(
        title=oracle_title(figures, task),
        caption="The first k depths above the noise: deeper depths know more than the shallowest, "
        "which the noise stands around and which choice alone does not give. Headroom above the "
        "best depth is another figure, in the notes of the table. Bars: 95% of the draws. Any k "
        "depths: for comparing models with other numbers of depths at equal k; the noise is not "
        "theirs.",
        figure=figure_json(figure),
    )


def _line(name: str, x: list[int], y: list[float], position: int, dash: int = 0) -> go.Scatter:
    style: dict[str, Any] = {"color": colour(position), "dash": DASHES[dash], "width": 2}
    return go.Scatter(
        x=x, y=y, mode="lines+markers", line=style, name=name, hovertemplate="%{y:.5f}"
    )


def _sections(figures: DepthFigures) -> list[dict[str, Any]]:
    fixed, *oracles, policies = depth_tables(figures)
    return [
        {"heading": "Depths", "tables": [fixed], "charts": []},
        {
            "heading": "Oracle",
            "tables": oracles,
            "charts": [oracle_chart(figures, task) for task in figures.tasks],
        },
        {
            "heading": "Policies",
            "tables": [policies],
            "charts": [compute_chart(figures, metric) for metric in shown_metrics(figures)],
        },
    ]
