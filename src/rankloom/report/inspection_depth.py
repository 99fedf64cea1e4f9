"""Tables and charts of what stacks of token layers do over depth."""

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from rankloom.evaluation.depth import NUM_GATE_BINS, LayerWeights, StackDepth
from rankloom.evaluation.inspection import Inspection
from rankloom.report.charts import COLOURS, DASHES, Chart, colour, figure_json, figure_layout
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.texts import MISSING, number

WEIGHTS = "Attention over depth"
GATES = "Gates between paths"
INPUTS = "The stack's input over depth"

NEGATIVE_COLOUR = "#c8507f"
ZERO_COLOUR = "#f4f4f4"
POSITIVE_COLOUR = "#3f7fd6"
"""Ends and middle of the scale of weights."""


def depth_tables(inspection: Inspection) -> list[tuple[str, InspectionTable]]:
    """Headings and tables of what there is, runs side by side under each layer."""
    found = [
        (WEIGHTS, _weight_table(inspection)),
        (GATES, _gate_table(inspection)),
        (INPUTS, _input_table(inspection)),
    ]
    return [(heading, table) for heading, table in found if table is not None]


def depth_charts(inspection: Inspection) -> dict[str, list[Chart]]:
    """Charts by heading; empty lists where there is nothing."""
    stacks = inspection.stacks
    return {
        WEIGHTS: [_heat_map(stacks, stack) for stack in stacks if stack.weights],
        GATES: [_histogram(stacks, stack) for stack in stacks if stack.gates],
        INPUTS: [
            chart
            for key, title, axis in (
                ("cosine", "Similarity to the stack's input", "cosine similarity"),
                ("r_squared", "The stack's input, decoded linearly", "R² on held-out rows"),
            )
            for chart in _input_charts(inspection, key, title, axis)
        ],
    }


def _weight_table(inspection: Inspection) -> InspectionTable | None:
    rows = []
    least: list[tuple[float, str]] = []
    for stack in inspection.stacks:
        for layer in stack.weights:
            name = _layer(inspection.stacks, stack, layer.layer)
            if (low := _extreme(layer, least=True)) is not None:
                where = f"layer {name} at block {low[1]} ({stack.run})"
                least.append((low[0], f"{low[0]:+.4f}, {where}"))
            cells = (str(len(layer.mean)), *_mean_cells(layer), number(layer.negative, 3))
            rows.append((layer.layer, (name, stack.run, *cells)))
    if not rows:
        return None
    smallest = min(least, default=(math.nan, MISSING))
    below = smallest[0] < 0
    return InspectionTable(
        title="Attention over depth: mean weights of blocks",
        columns=("layer", "run", "blocks", "least", "at", "largest", "at", "negative"),
        rows=_ordered(rows),
        names=2,
        notes=(
            "Mean over rows, tokens and depth heads. Block 0 is the stack's input. Negative: share "
            "of the single weights below zero.",
            f"Most negative mean: {smallest[1] if below else 'none is below zero'}.",
        ),
    )


def _gate_table(inspection: Inspection) -> InspectionTable | None:
    rows = [
        (
            gates.layer,
            (
                _layer(inspection.stacks, stack, gates.layer),
                stack.run,
                number(gates.mean, 3),
                *(number(value, 2) for value in gates.deciles),
            ),
        )
        for stack in inspection.stacks
        for gates in stack.gates
    ]
    if not rows:
        return None
    return InspectionTable(
        title="Gates: mean and deciles",
        columns=("layer", "run", "mean", *(f"{tenth}0%" for tenth in range(1, 10))),
        rows=_ordered(rows),
        names=2,
        notes=("Over rows, tokens and dimensions. 1: the identity path alone; 0: the block path.",),
    )


def _input_table(inspection: Inspection) -> InspectionTable | None:
    rows = [
        (
            read.layer,
            (
                _layer(inspection.stacks, stack, read.layer),
                stack.run,
                str(read.tokens),
                number(read.cosine, 3),
                number(read.r_squared, 3),
            ),
        )
        for stack in inspection.stacks
        for read in stack.inputs
    ]
    if not rows:
        return None
    return InspectionTable(
        title="How much of the stack's input is in what a layer reads",
        columns=("layer", "run", "tokens", "cosine", "R²"),
        rows=_ordered(rows),
        names=2,
        notes=(
            "Cosine: mean similarity of a token to the same token of the stack's input.",
            "R²: ridge regression from the token read to that of the input, one matrix for all "
            "tokens, fitted on every other row and scored on the rest.",
        ),
    )


def _heat_map(stacks: Sequence[StackDepth], stack: StackDepth) -> Chart:
    """Mean weights, layers down and blocks across."""
    num_blocks = max(len(layer.mean) for layer in stack.weights)
    cells: list[list[float | None]] = [
        [None if math.isnan(value) else value for value in layer.mean]
        + [None] * (num_blocks - len(layer.mean))
        for layer in stack.weights
    ]
    largest = max((abs(cell) for row in cells for cell in row if cell is not None), default=0.0)
    bound = largest or 1.0
    figure = go.Figure(
        go.Heatmap(
            x=[str(block) for block in range(num_blocks)],
            y=[str(layer.layer) for layer in stack.weights],
            z=cells,
            zmin=-bound,
            zmax=bound,
            colorscale=[[0, NEGATIVE_COLOUR], [0.5, ZERO_COLOUR], [1, POSITIVE_COLOUR]],
            hoverongaps=False,
            hovertemplate="layer %{y}, block %{x}: %{z:+.4f}<extra></extra>",
        )
    )
    figure.update_layout(figure_layout("block", "layer"))
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return Chart(
        title=f"Mean weights of blocks, {_stack(stacks, stack)}",
        caption="Block 0 is the stack's input; the scale is symmetric about zero.",
        figure=figure_json(figure),
    )


def _histogram(stacks: Sequence[StackDepth], stack: StackDepth) -> Chart:
    """Shares of gates by value, a line per layer."""
    figure = go.Figure()
    middles = [(index + 0.5) / NUM_GATE_BINS for index in range(NUM_GATE_BINS)]
    for position, gates in enumerate(stack.gates):
        if any(math.isnan(share) for share in gates.histogram):
            continue
        figure.add_trace(
            go.Scatter(
                x=middles,
                y=list(gates.histogram),
                mode="lines",
                line=_line(position) | {"shape": "hvh"},
                name=f"layer {gates.layer}",
                hovertemplate="%{y:.1%} at %{x:.3f}",
            )
        )
    figure.update_layout(figure_layout("gate", "share"))
    figure.update_xaxes(range=[0, 1])
    return Chart(
        title=f"Gates, {_stack(stacks, stack)}",
        caption="Histogram in twenty bins, a line per layer; 1 is the identity path alone.",
        figure=figure_json(figure),
    )


def _input_charts(inspection: Inspection, key: str, title: str, axis: str) -> list[Chart]:
    """One measure over layers, a line per stack."""
    figure = go.Figure()
    for position, stack in enumerate(inspection.stacks):
        known = [
            (read.layer, value)
            for read in stack.inputs
            if not math.isnan(value := float(getattr(read, key)))
        ]
        if known:
            figure.add_trace(
                go.Scatter(
                    x=[layer for layer, _ in known],
                    y=[value for _, value in known],
                    mode="lines+markers",
                    line=_line(position),
                    name=html.escape(_stack(inspection.stacks, stack)),
                    hovertemplate="%{y:.3f}",
                )
            )
    if not figure.data:
        return []
    figure.update_layout(figure_layout("layer", axis))
    figure.update_xaxes(tickformat="d")
    caption = "Of what every layer reads; layer 0 mostly reads the input as it is."
    return [Chart(title=title, caption=caption, figure=figure_json(figure))]


def _ordered(rows: Sequence[tuple[int, tuple[str, ...]]]) -> tuple[tuple[str, ...], ...]:
    return tuple(cells for _, cells in sorted(rows, key=lambda row: row[0]))


def _line(position: int) -> dict[str, Any]:
    dash = DASHES[position // len(COLOURS) % len(DASHES)]
    return {"color": colour(position), "dash": dash, "width": 2}


def _alone(stacks: Sequence[StackDepth]) -> bool:
    """Whether no run has several stacks, so that nobody need name them."""
    runs = [stack.run for stack in stacks]
    return len(set(runs)) == len(runs)


def _layer(stacks: Sequence[StackDepth], stack: StackDepth, layer: int) -> str:
    return str(layer) if _alone(stacks) else f"{stack.stack} {layer}"


def _stack(stacks: Sequence[StackDepth], stack: StackDepth) -> str:
    return stack.run if _alone(stacks) else f"{stack.stack}, {stack.run}"


def _extreme(layer: LayerWeights, *, least: bool) -> tuple[float, int] | None:
    """The least or the largest mean, and its block."""
    known = [(value, block) for block, value in enumerate(layer.mean) if not math.isnan(value)]
    if not known:
        return None
    return min(known) if least else max(known)


def _mean_cells(layer: LayerWeights) -> list[str]:
    cells = []
    for least in (True, False):
        found = _extreme(layer, least=least)
        cells += [MISSING] * 2 if found is None else [f"{found[0]:+.4f}", str(found[1])]
    return cells
