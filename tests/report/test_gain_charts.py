import json
import math
from typing import Any

import pytest
from run_records import build_record
from scenario_records import ROWS, runs_of

from rankloom.report.charts import Chart
from rankloom.report.gain_charts import SHIFT, gain_charts
from rankloom.report.leaderboard import Table, build_leaderboard
from rankloom.runs.record import Record

THREE = [
    *runs_of("fm", 0.8, pooled=7),
    *runs_of("dnn", 0.75, pooled=7),
    *runs_of("lr", 0.7, pooled=7),
]


def table_of(records: list[Record], reference: str | None) -> Table:
    return build_leaderboard(records, reference=reference).tables[0]


def traces(chart: Chart) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in json.loads(chart.figure)["data"]}


def test_one_series_per_model_and_a_point_per_scenario() -> None:
    table = table_of(THREE, "lr")
    (chart,) = gain_charts(table)
    found = traces(chart)
    assert set(found) == {"fm", "dnn"}
    fm = found["fm"]
    assert [name for name, _, _ in fm["customdata"]] == ["search", "home", "cart"]  # no tail
    position = [row.label for row in table.rows].index("fm")
    sizes = [rows * SHIFT ** (position - 1) for rows in (2000, 500, 90)]
    assert fm["x"] == pytest.approx(sizes)
    row = table.rows[position]
    cart = row.scenario_differences["cart"]["auc"]
    assert fm["y"][2] == pytest.approx(cart.mean)
    assert fm["error_y"]["array"][2] == pytest.approx(cart.high - cart.mean)
    assert fm["error_y"]["arrayminus"][2] == pytest.approx(cart.mean - cart.low)
    assert json.loads(chart.figure)["layout"]["xaxis"]["type"] == "log"
    assert "above zero is better" in chart.caption


def test_points_stand_alone_with_one_seed() -> None:
    records = [*runs_of("fm", 0.8, seeds=1), *runs_of("lr", 0.7, seeds=1)]
    (chart,) = gain_charts(table_of(records, "lr"))
    bars = traces(chart)["fm"]["error_y"]
    assert bars["array"] == bars["arrayminus"] == [0, 0, 0]


def test_nothing_to_draw() -> None:
    assert gain_charts(table_of(THREE, None)) == []
    plain = [build_record("fm"), build_record("lr")]
    assert gain_charts(table_of(plain, "lr")) == []
    one = {"test": {"home": {"rows": 9, "auc": 0.6}}}
    single = [build_record(name, scenarios=one) for name in ("fm", "lr")]
    assert gain_charts(table_of(single, "lr")) == []


def test_metrics_without_a_direction_are_left_out() -> None:
    def record(model: str, loss: float) -> Record:
        figures = {
            name: {"rows": rows, "auc": math.nan, "log_loss": loss, "calibration_ratio": 1.1}
            for name, rows in ROWS.items()
        }
        overall = {"auc": 0.7, "log_loss": loss, "calibration_ratio": 1.1}
        return build_record(model, metrics={"test": overall}, scenarios={"test": figures})

    (chart,) = gain_charts(table_of([record("fm", 0.3), record("lr", 0.4)], "lr"))
    assert chart.title == "log_loss against lr"
    assert traces(chart)["fm"]["y"] == pytest.approx([-0.1] * 3)
    assert "below zero is better" in chart.caption
