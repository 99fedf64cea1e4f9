"""Tables and charts of loops, routers and coefficients of hyper-connections."""

import html
import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from rankloom.evaluation.inspection import Inspection
from rankloom.evaluation.loops import (
    CoefficientCall,
    RouterUse,
    StateSimilarity,
    StreamCoefficients,
)
from rankloom.report.charts import Chart, colour, figure_json, figure_layout
from rankloom.report.inspection_depth import NEGATIVE_COLOUR, POSITIVE_COLOUR, ZERO_COLOUR
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.texts import MISSING, number

STATES = "States of loops and layers"
ROUTING = "Routing of experts"
COEFFICIENTS = "Residual coefficients"

PADDING_NOTE = "*: no mask is known that fits, so padding, where there is any, is counted."


def loop_tables(inspection: Inspection) -> list[tuple[str, InspectionTable]]:
    """Headings and tables of what there is."""
    found = [
        (STATES, _state_table(inspection)),
        (ROUTING, _routing_table(inspection)),
        (COEFFICIENTS, _coefficient_table(inspection)),
    ]
    return [(heading, table) for heading, table in found if table.rows]


def loop_charts(inspection: Inspection) -> dict[str, list[Chart]]:
    """Charts by heading; empty lists where there is nothing."""
    return {
        STATES: [
            chart for states in inspection.states for chart in _state_charts(inspection, states)
        ],
        ROUTING: [_routing_chart(inspection, router) for router in inspection.routers],
        COEFFICIENTS: _coefficient_charts(inspection),
    }


def _state_table(inspection: Inspection) -> InspectionTable:
    rows = [
        (
            _state_name(inspection, one),
            one.run,
            f"{index} to {index + 1}",
            one.calls[index],
            number(one.cosine[index][index + 1], 4),
            number(one.cka[index][index + 1], 4),
        )
        for one in inspection.states
        for index in range(len(one.calls))
    ]
    return InspectionTable(
        title="Similarity of adjacent states",
        columns=("of", "run", "states", "by", "cosine", "CKA"),
        rows=tuple(rows),
        names=4,
        notes=(
            "State 0 is the first input; every call gives one more. All pairs: inspect.json.",
            "Cosine: mean over tokens. CKA: linear, over all tokens, columns centred.",
            PADDING_NOTE,
        ),
    )


def _routing_table(inspection: Inspection) -> InspectionTable:
    rows = [
        (
            _router_name(inspection, router),
            router.run,
            str(call.call),
            str(len(call.share)),
            number(min(call.share, default=math.nan), 3),
            number(max(call.share, default=math.nan), 3),
            number(call.entropy, 3),
            number(call.agreement, 3),
        )
        for router in inspection.routers
        for call in router.calls
    ]
    heads = ("router", "run", "call", "experts", "least", "largest", "entropy")
    return InspectionTable(
        title="Routing by call",
        columns=(*heads, "agreement"),
        rows=tuple(rows),
        names=3,
        notes=(
            "Least, largest: share of the tokens that chose an expert. Entropy: of a token's "
            "scores, at most ln(experts). Mean gates: inspect.json.",
            "Agreement: experts that a token chose in this call and in the one before, over those "
            "that it chose in either.",
            PADDING_NOTE,
        ),
    )


def _coefficient_table(inspection: Inspection) -> InspectionTable:
    rows = [
        (
            _module_name(inspection, one),
            one.run,
            str(len(one.calls)),
            _range(value for call in one.calls for value in call.pre),
            _range(row[stream] for call in one.calls for stream, row in enumerate(call.res)),
            _range(value for call in one.calls for value in _others(call)),
            _range(value for call in one.calls for value in call.post),
        )
        for one in inspection.coefficients
    ]
    return InspectionTable(
        title="Coefficients of hyper-connections, mean over tokens",
        columns=("module", "run", "calls", "H_pre", "H_res own", "H_res other", "H_post"),
        rows=tuple(rows),
        names=2,
        notes=(
            "Least to largest over streams and calls; one by one on the page and in inspect.json. "
            "H_pre: what the sublayer reads of a stream. H_res own: what a stream keeps of itself; "
            "other: what it takes of another. H_post: what of the update goes to a stream.",
            PADDING_NOTE,
        ),
    )


def _state_charts(inspection: Inspection, states: StateSimilarity) -> list[Chart]:
    name = f"{_state_name(inspection, states)}, {states.run}"
    axis = [str(index) for index in range(len(states.calls) + 1)]
    return [
        _heat_map(
            f"{title}, {name}",
            "State 0 is the first input.",
            ("state", "state"),
            (axis, axis),
            values,
            low,
            1.0,
        )
        for title, values, low in (
            ("Cosine similarity", states.cosine, -1.0),
            ("Linear CKA", states.cka, 0.0),
        )
    ]


def _routing_chart(inspection: Inspection, router: RouterUse) -> Chart:
    """Shares of tokens by expert, bars of all calls side by side."""
    figure = go.Figure()
    for call in router.calls:
        figure.add_trace(
            go.Bar(
                x=[str(expert) for expert in range(len(call.share))],
                y=[None if math.isnan(share) else share for share in call.share],
                name=f"call {call.call}",
                marker={"color": colour(call.call)},
                hovertemplate="%{y:.1%} chose expert %{x}",
            )
        )
    figure.update_layout(figure_layout("expert", "share of tokens"), barmode="group")
    figure.update_xaxes(type="category")
    return Chart(
        title=f"Experts of {_router_name(inspection, router)}, {router.run}",
        caption="Share of the tokens that chose an expert, at every call of the router.",
        figure=figure_json(figure),
    )


def _coefficient_charts(inspection: Inspection) -> list[Chart]:
    """A heat map per run and number of streams: calls down, coefficients across."""
    rows: dict[tuple[str, int], dict[str, list[float]]] = {}
    for one in inspection.coefficients:
        name = _module_name(inspection, one)
        for call in one.calls:
            label = name if len(one.calls) == 1 else f"{name}, call {call.call}"
            values = [*call.pre, *(value for row in call.res for value in row), *call.post]
            rows.setdefault((one.run, len(call.pre)), {})[label] = values
    charts = []
    for (run, streams), calls in rows.items():
        numbers = range(1, streams + 1)
        axis = [
            *(f"pre {i}" for i in numbers),
            *(f"res {i} of {j}" for i in numbers for j in numbers),
            *(f"post {i}" for i in numbers),
        ]
        cells = list(calls.values())
        bound = max((abs(v) for row in cells for v in row if not math.isnan(v)), default=0.0) or 1.0
        charts.append(
            _heat_map(
                f"Residual coefficients, {run}",
                "Mean over tokens. pre: read of a stream; res i of j: what stream i takes of "
                "stream j; post: what of the update goes to a stream.",
                ("coefficient", ""),
                (axis, list(calls)),
                cells,
                -bound,
                bound,
            )
        )
    return charts


def _heat_map(
    title: str,
    caption: str,
    titles: tuple[str, str],
    axes: tuple[Sequence[str], Sequence[str]],
    values: Sequence[Sequence[float]],
    low: float,
    high: float,
) -> Chart:
    scale = [[0, NEGATIVE_COLOUR], [0.5, ZERO_COLOUR], [1, POSITIVE_COLOUR]]
    figure = go.Figure(
        go.Heatmap(
            x=list(axes[0]),
            y=[html.escape(name) for name in axes[1]],
            z=[[None if math.isnan(value) else value for value in row] for row in values],
            zmin=low,
            zmax=high,
            colorscale=scale if low < 0 else [[0, ZERO_COLOUR], [1, POSITIVE_COLOUR]],
            texttemplate="%{z:.2f}",
            hoverongaps=False,
            hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
        )
    )
    layout = figure_layout(*titles)
    figure.update_layout(layout | {"height": max(layout["height"], 120 + 22 * len(axes[1]))})
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return Chart(title=title, caption=caption, figure=figure_json(figure))


def _state_name(inspection: Inspection, one: StateSimilarity) -> str:
    known = [other.path for other in inspection.states if other.run == one.run]
    return _name(one.path, one, several=known.count(one.path) > 1)


def _router_name(inspection: Inspection, one: RouterUse) -> str:
    known = [other.router for other in inspection.routers if other.run == one.run]
    return _name(one.router, one, several=known.count(one.router) > 1)


def _module_name(inspection: Inspection, one: StreamCoefficients) -> str:
    known = [other.module for other in inspection.coefficients if other.run == one.run]
    return _name(one.module, one, several=known.count(one.module) > 1)


def _name(
    path: str, one: StateSimilarity | RouterUse | StreamCoefficients, *, several: bool
) -> str:
    """A path without what it always ends with, with tokens where a module has several kinds."""
    short = path.removesuffix(".router").removesuffix(".coefficients")
    tokens = f" ({one.tokens_per_row} tokens)" if several else ""
    return f"{short}{tokens}{'*' if one.padding == 'counted' else ''}"


def _others(call: CoefficientCall) -> list[float]:
    """H_res off its diagonal."""
    return [v for i, row in enumerate(call.res) for j, v in enumerate(row) if i != j]


def _range(values: Iterable[float]) -> str:
    """The least and the largest value."""
    known = [value for value in values if not math.isnan(value)]
    return f"{number(min(known), 2)} to {number(max(known), 2)}" if known else MISSING
