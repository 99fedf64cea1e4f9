"""The gain over the reference in each scenario against the scenario's size."""

import html
import math

import plotly.graph_objects as go

from rankloom.report.charts import COLOURS, SYMBOLS, Chart, colour, figure_json, figure_layout
from rankloom.report.leaderboard import Table
from rankloom.report.rows import higher_is_better
from rankloom.report.scenario_tables import by_size, table_metrics

SHIFT = 1.025
"""Factor between the horizontal places of neighbouring models, which would hide each other."""


def gain_charts(table: Table) -> list[Chart]:
    """One chart per metric that has a direction: difference to the reference against rows.

    Empty without a reference, and with fewer than two scenarios of their own (the tail is not
    compared): then there is no size to look along.
    """
    if table.reference is None:
        return []
    charts = []
    for metric in table_metrics(table):
        direction = higher_is_better(metric)
        if direction is None:
            continue
        figure = go.Figure()
        drawn: set[str] = set()
        middle = (len(table.rows) - 1) / 2
        for position, row in enumerate(table.rows):
            points = [
                (scenario, difference)
                for scenario in by_size(table)
                if (difference := row.scenario_differences.get(scenario, {}).get(metric))
                and not math.isnan(difference.mean)
                and table.scenario_rows[scenario]
            ]
            if not points:
                continue
            drawn |= {scenario for scenario, _ in points}
            shift = SHIFT ** (position - middle)
            up = [_length(point.high - point.mean) for _, point in points]
            down = [_length(point.mean - point.low) for _, point in points]
            bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
            figure.add_trace(
                go.Scatter(
                    x=[table.scenario_rows[scenario] * shift for scenario, _ in points],
                    y=[point.mean for _, point in points],
                    error_y={**bars, "thickness": 1, "width": 2},
                    customdata=[
                        [html.escape(scenario), table.scenario_rows[scenario], point.seeds]
                        for scenario, point in points
                    ],
                    mode="markers",
                    name=html.escape(row.label),
                    marker={
                        "color": colour(position),
                        "size": 6,
                        "symbol": SYMBOLS[position // len(COLOURS) % len(SYMBOLS)],
                    },
                    hovertemplate="%{y:+.5f} in %{customdata[0]}: %{customdata[1]:,} rows, "
                    "%{customdata[2]} seeds",
                )
            )
        if len(drawn) < 2:
            continue
        layout = figure_layout(f"{table.split} rows of the scenario", f"Δ {metric}")
        figure.update_layout(layout, showlegend=True)
        sizes = [table.scenario_rows[scenario] for scenario in drawn]
        decades = math.log10(max(sizes) / min(sizes))
        figure.update_xaxes(type="log", tickformat="~s", dtick="D2" if decades < 2.5 else 1)
        figure.update_yaxes(tickformat="+.4~f")
        figure.add_hline(y=0, line={"color": "#8a929c", "width": 1})
        charts.append(
            Chart(
                title=f"{metric} against {table.reference}",
                caption=f"{metric} minus that of {table.reference}, paired over seeds, with 95% t "
                f"intervals over the seeds where they are defined (of each point alone: they are "
                f"not adjusted for the number of points, and say nothing of other rows); "
                f"{'above' if direction else 'below'} zero is better. "
                f"The horizontal axis is logarithmic; models stand a little beside each other.",
                figure=figure_json(figure),
            )
        )
    return charts


def _length(value: float) -> float:
    """Length of an error bar; none where the interval is not defined."""
    return 0.0 if math.isnan(value) else value
