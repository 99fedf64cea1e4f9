"""Tables and charts of the loss around the weights of runs."""

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

from rankloom.evaluation.inspection import Inspection
from rankloom.evaluation.landscape import Landscape
from rankloom.report.charts import Chart, colour, figure_json, figure_layout
from rankloom.report.inspection_depth import POSITIVE_COLOUR, ZERO_COLOUR
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.texts import MISSING, count, number

LANDSCAPE = "The loss around the weights"


def landscape_tables(inspection: Inspection) -> list[InspectionTable]:
    """Loss, its rise at every distance, and curvature, a line per run; empty without any."""
    landscapes = inspection.landscapes
    if not landscapes:
        return []
    radii = [rise.radius for rise in landscapes[0].rises]
    curved = any(one.largest_eigenvalue is not None for one in landscapes)
    rows = tuple(
        (
            one.run,
            count(one.rows),
            count(one.parameters),
            str(one.depths),
            number(one.loss),
            *(number(rise.mean, 4) for rise in one.rises),
            number(one.rises[-1].deviation, 4),
            *([_eigenvalue(one.largest_eigenvalue)] if curved else []),
        )
        for one in landscapes
    )
    config = landscapes[0].settings
    moved = "Embedding tables move too." if config.tables else "Embedding tables stay."
    notes = [
        f"Log loss along {config.num_directions} random directions, filter-normalised: at 1 every "
        f"weight vector has moved by its own length. {moved} Seed {config.seed}.",
        "+ r: mean rise at distance r, over directions and both signs. ±: standard deviation of "
        "the directions' rises at the last.",
    ]
    if any(one.depths > 1 for one in landscapes):
        notes.append("Depths: the loss is the mean over these depths.")
    if curved:
        notes.append(
            "Eigenvalue: of the Hessian in the same weights, of largest magnitude, not normalised."
        )
    return [
        InspectionTable(
            title="Loss around the weights",
            columns=(
                "run",
                "rows",
                "weights",
                "depths",
                "loss",
                *(f"+ {radius:.3g}" for radius in radii),
                "±",
                *(["eigenvalue"] if curved else []),
            ),
            rows=rows,
            notes=tuple(notes),
        )
    ]


def landscape_charts(inspection: Inspection) -> list[Chart]:
    """Curves of all runs in one chart, and a contour plot of every run's plane on one scale."""
    landscapes = inspection.landscapes
    if not landscapes:
        return []
    rises = [
        value - one.loss
        for one in landscapes
        for row in one.plane
        for value in row
        if not math.isnan(value - one.loss)
    ]
    bounds = (min(rises, default=0.0), max(rises, default=0.0))
    return [
        _curve_chart(landscapes),
        *(_contour(one, bounds) for one in landscapes if one.plane),
    ]


def _curve_chart(landscapes: Sequence[Landscape]) -> Chart:
    figure = go.Figure()
    for position, one in enumerate(landscapes):
        line = {"color": colour(position)}
        places = list(one.positions)
        rises = [[value - one.loss for value in curve] for curve in one.curves]
        for curve in rises:
            figure.add_trace(
                go.Scatter(
                    x=places,
                    y=_known(curve),
                    mode="lines",
                    line={**line, "width": 1},
                    opacity=0.4,
                    legendgroup=one.run,
                    showlegend=False,
                    hoverinfo="skip",
                )
            )
        mean = [math.fsum(column) / len(column) for column in zip(*rises, strict=True)]
        figure.add_trace(
            go.Scatter(
                x=places,
                y=_known(mean),
                mode="lines+markers",
                line={**line, "width": 2.5},
                name=html.escape(one.run),
                legendgroup=one.run,
                hovertemplate="%{y:+.5f} at %{x:.3g}",
            )
        )
    figure.update_layout(figure_layout("distance", "log loss less that of the weights"))
    return Chart(
        title="Log loss along random directions",
        caption="Mean over directions; thin lines are single ones. At 1 every weight vector has "
        "moved by its own length.",
        figure=figure_json(figure),
    )


def _contour(one: Landscape, bounds: tuple[float, float]) -> Chart:
    figure = go.Figure(
        go.Contour(
            x=list(one.plane_positions),
            y=list(one.plane_positions),
            z=[_known([value - one.loss for value in row]) for row in one.plane],
            zmin=bounds[0],
            zmax=bounds[1],
            ncontours=20,
            colorscale=[[0, ZERO_COLOUR], [1, POSITIVE_COLOUR]],
            hovertemplate="%{z:+.5f} at %{x:.3g}, %{y:.3g}<extra></extra>",
        )
    )
    figure.update_layout(figure_layout("first direction", "second direction"))
    return Chart(
        title=f"Log loss in a plane, {one.run}",
        caption="Less that of the weights, which are in the middle. All runs share the scale.",
        figure=figure_json(figure),
    )


def _eigenvalue(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.3g}"


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
