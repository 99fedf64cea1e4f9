"""The page of an inspection: one HTML file that opens from disk and loads nothing."""

import html
import math
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from rankloom.evaluation.inspection import FrequencyGain, Inspection
from rankloom.report.charts import COLOURS, DASHES, Chart, colour, figure_json, figure_layout
from rankloom.report.inspection import (
    gain_table,
    gain_title,
    gradient_table,
    spectrum_tables,
)
from rankloom.report.inspection_depth import depth_charts, depth_tables
from rankloom.report.inspection_landscape import LANDSCAPE, landscape_charts, landscape_tables
from rankloom.report.inspection_loops import loop_charts, loop_tables
from rankloom.report.inspection_scenarios import GENERATED, generated_charts, generated_table
from rankloom.report.inspection_table import InspectionTable, without_run
from rankloom.report.templates import render
from rankloom.runs.atomic import write_text

INSPECTION_PAGE = "inspect.html"
"""Name of the page in its folder."""
SMALLEST_VALUE = 1e-8
"""Singular values below it are rounding, and not drawn."""


class Section(NamedTuple):
    """What was found of one kind."""

    heading: str
    """Its heading."""
    tables: list[InspectionTable]
    """Its tables; the first one is there always."""
    charts: list[Chart]
    """Its charts."""


def write_inspection_page(folder: str | Path, inspection: Inspection) -> Path:
    """Write `inspect.html` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / INSPECTION_PAGE
    write_text(file, render_inspection(inspection))
    return file


def render_inspection(inspection: Inspection) -> str:
    """The HTML text of an inspection; the same input gives the same text."""
    first, *others = inspection.runs
    beside = f" beside {', '.join(run.label for run in others)}" if others else ""
    return render(
        "inspect.html.j2",
        title=f"Inside {first.label}{beside}",
        summary=f"{inspection.dataset}, {inspection.split} split, data {inspection.data_hash}.",
        runs=inspection.runs,
        sections=inspection_sections(inspection),
    )


def gradient_charts(inspection: Inspection) -> list[Chart]:
    """Gradient norms over epochs; patterns by colour, runs by dash."""
    figure = go.Figure()
    patterns = list(dict.fromkeys(curve.pattern for curve in inspection.gradients))
    for curve in inspection.gradients:
        drawn = [
            (epoch, norm)
            for epoch, norm in zip(curve.epoch, curve.norm, strict=True)
            if norm > 0  # a log axis has no zero; NaN is not above it either
        ]
        figure.add_trace(
            go.Scatter(
                x=[epoch for epoch, _ in drawn],
                y=[norm for _, norm in drawn],
                mode="lines+markers",
                line=_line(inspection, curve.run, patterns.index(curve.pattern)),
                name=html.escape(f"{curve.pattern}, {curve.run}"),
                hovertemplate="%{y:.4~g}",
            )
        )
    if not figure.data:
        return []
    figure.update_layout(figure_layout("epoch", "gradient norm"))
    figure.update_yaxes(type="log", tickformat="~g")
    caption = "Root mean square per step since the evaluation before, on a log axis."
    return [Chart(title="Gradient norms", caption=caption, figure=figure_json(figure))]


def spectrum_charts(inspection: Inspection) -> list[Chart]:
    """Singular values of every layer's input, and effective ranks layer by layer, for each view."""
    charts = []
    modules = list(dict.fromkeys(layer.module for layer in inspection.spectra))
    for view, unit in (("rows", "row"), ("tokens", "token")):
        values, ranks = go.Figure(), go.Figure()
        by_run: dict[str, dict[str, float]] = {}
        for layer in inspection.spectra:
            for spectrum in layer.spectra:
                if spectrum.view != view:
                    continue
                by_run.setdefault(layer.run, {})[layer.module] = spectrum.effective_rank
                shown = [value for value in spectrum.singular_values if value >= SMALLEST_VALUE]
                values.add_trace(
                    go.Scatter(
                        x=list(range(1, len(shown) + 1)),
                        y=shown,
                        mode="lines",
                        line=_line(inspection, layer.run, modules.index(layer.module)),
                        name=html.escape(f"{layer.module}, {layer.run}"),
                        hovertemplate="%{y:.3~g} at %{x}",
                    )
                )
        if not by_run:
            continue
        for position, (run, found) in enumerate(by_run.items()):
            known = {path: rank for path, rank in found.items() if not math.isnan(rank)}
            ranks.add_trace(
                go.Scatter(
                    x=[html.escape(path) for path in known],
                    y=list(known.values()),
                    mode="lines+markers",
                    line={"color": colour(position), "width": 2},
                    name=html.escape(run),
                    hovertemplate="%{y:.2f}",
                )
            )
        values.update_layout(figure_layout("direction", "singular value over the largest"))
        values.update_yaxes(type="log", tickformat="~g")
        ranks.update_layout(figure_layout("module", "effective rank"))
        charts += [
            Chart(
                title=f"Singular values, a vector per {unit}",
                caption="Largest first, on a log axis; modules by colour, runs by dash.",
                figure=figure_json(values),
            ),
            Chart(
                title=f"Effective rank, a vector per {unit}",
                caption="Module by module, in the order of the model.",
                figure=figure_json(ranks),
            ),
        ]
    return charts


def gain_chart(inspection: Inspection, gain: FrequencyGain) -> Chart:
    """Differences of AUC by decile, with DeLong's 95% intervals."""
    drawn = [decile for decile in gain.deciles if not math.isnan(decile.auc_difference)]
    bounds = [
        (d.auc_high - d.auc_difference, d.auc_difference - d.auc_low) for d in drawn
    ]  # NaN with fewer than two rows of a class
    figure = go.Figure(
        go.Bar(
            x=[f"{decile.number}" for decile in drawn],
            y=[decile.auc_difference for decile in drawn],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [0.0 if math.isnan(up) else up for up, _ in bounds],
                "arrayminus": [0.0 if math.isnan(down) else down for _, down in bounds],
                "thickness": 1.5,
                "width": 4,
            },
            marker={"color": COLOURS[0]},
            hovertemplate="%{y:+.5f}",
        )
    )
    figure.update_layout(figure_layout("decile, rarest first", f"AUC less that of {gain.other}"))
    figure.update_xaxes(type="category")
    return Chart(
        title=gain_title(inspection, gain),
        caption="Above zero the inspected run is better. Bars: DeLong's 95% interval, uncorrected.",
        figure=figure_json(figure),
    )


def inspection_sections(inspection: Inspection) -> list[Section]:
    """What the page shows, in its order; only what was found in the runs."""
    found: list[tuple[str, list[InspectionTable], list[Chart]]] = []
    gradients = gradient_table(inspection)
    if gradients is not None:
        found.append(("Gradients", [gradients], gradient_charts(inspection)))
    spectra = spectrum_tables(inspection)
    if spectra:
        found.append(("Layer inputs", spectra, spectrum_charts(inspection)))
    charts_of = depth_charts(inspection)
    found += [(head, [table], charts_of[head]) for head, table in depth_tables(inspection)]
    charts_of = loop_charts(inspection)
    found += [(head, [table], charts_of[head]) for head, table in loop_tables(inspection)]
    generated = generated_table(inspection)
    if generated is not None:
        found.append((GENERATED, [generated], generated_charts(inspection)))
    if inspection.landscapes:
        found.append((LANDSCAPE, landscape_tables(inspection), landscape_charts(inspection)))
    if inspection.gains:
        tables = [gain_table(inspection, gain) for gain in inspection.gains]
        charts = [gain_chart(inspection, gain) for gain in inspection.gains]
        found.append(("Feature frequency", tables, charts))
    if len(inspection.runs) == 1:
        found = [(h, [*map(without_run, tables)], charts) for h, tables, charts in found]
    return [Section(*parts) for parts in found]


def _line(inspection: Inspection, run: str, position: int) -> dict[str, Any]:
    labels = [one.label for one in inspection.runs]
    dash = DASHES[labels.index(run) % len(DASHES)]
    return {"color": colour(position), "dash": dash, "width": 2}
