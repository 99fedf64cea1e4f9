import json
import math
from typing import Any

import polars as pl
import pytest
from run_records import build_record

from rankloom.report.charts import Chart, cost_charts, curve_charts
from rankloom.report.leaderboard import Table, build_leaderboard
from rankloom.runs.history import history_frame
from rankloom.runs.record import Record


def table_of(*records: Record) -> Table:
    return build_leaderboard(records).tables[0]


def traces(chart: Chart) -> list[dict[str, Any]]:
    return json.loads(chart.figure)["data"]


def history(*values: float | None, epochs: bool = True) -> pl.DataFrame:
    rows = [
        {"step": 10 * n, **({"epoch": n} if epochs else {}), "auc": value}
        for n, value in enumerate(values, start=1)
    ]
    return history_frame(rows)


def test_curve_is_the_mean_as_far_as_every_seed_got() -> None:
    records = [build_record(seed=seed) for seed in (1, 2)]
    key = records[0].recipe_hash
    histories = {(key, 1): history(0.6, 0.7), (key, 2): history(0.8, 0.9, 0.95)}
    (chart,) = curve_charts(table_of(*records), histories, ["auc"])
    first, second, mean = traces(chart)
    assert (first["x"], first["y"]) == ([1, 2], [0.6, 0.7])
    assert (second["x"], second["y"]) == ([1, 2, 3], [0.8, 0.9, 0.95])
    assert mean["x"] == [1, 2]
    assert mean["y"] == pytest.approx([0.7, 0.8])
    assert mean["name"] == "dcnv2"


def test_one_seed_is_one_line() -> None:
    record = build_record()
    histories = {(record.recipe_hash, 1): history(0.6, 0.7)}
    (chart,) = curve_charts(table_of(record), histories, ["auc"])
    assert len(traces(chart)) == 1


def test_undefined_evaluations_are_left_out() -> None:
    record = build_record()
    histories = {(record.recipe_hash, 1): history(0.6, math.nan, None, 0.7)}
    (chart,) = curve_charts(table_of(record), histories, ["auc"])
    assert traces(chart)[0]["x"] == [1, 4]


def test_steps_where_a_history_has_no_epochs() -> None:
    record = build_record()
    histories = {(record.recipe_hash, 1): history(0.6, epochs=False)}
    (chart,) = curve_charts(table_of(record), histories, ["auc"])
    assert traces(chart)[0]["x"] == [10]


def test_no_curves_no_chart() -> None:
    record = build_record()
    assert curve_charts(table_of(record), {}, ["auc"]) == []
    histories = {(record.recipe_hash, 1): history_frame([])}
    assert curve_charts(table_of(record), histories, ["auc"]) == []
    assert curve_charts(table_of(record), {(record.recipe_hash, 1): history(0.6)}, ["x"]) == []


def test_cost_charts() -> None:
    records = [build_record(seed=seed, auc=auc) for seed, auc in ((1, 0.7), (2, 0.8))]
    flops, parameters = cost_charts(table_of(*records))
    (point,) = traces(flops)
    assert point["x"] == [1234]
    assert point["y"] == pytest.approx([0.75])
    assert point["error_y"]["array"] == pytest.approx([math.sqrt(0.005)])
    assert traces(parameters)[0]["x"] == [120]
    assert json.loads(flops.figure)["layout"]["xaxis"]["type"] == "log"


def test_models_without_a_cost_are_left_out() -> None:
    free = build_record("fm", cost={"dense_parameters": 0, "embedding_parameters": 0})
    assert cost_charts(table_of(free)) == []
    flops, parameters = cost_charts(table_of(free, build_record()))
    assert [trace["name"] for trace in traces(flops) + traces(parameters)] == ["dcnv2", "dcnv2"]


def test_names_are_text_and_cannot_end_the_script() -> None:
    record = build_record("</script><a href='http://x'>")
    flops, _ = cost_charts(table_of(record))
    assert "<" not in flops.figure
    assert traces(flops)[0]["name"] == "&lt;/script&gt;&lt;a href=&#x27;http://x&#x27;&gt;"


def test_more_rows_than_colours_still_differ() -> None:
    records = [build_record(f"m{n}", auc=0.9 - n / 100) for n in range(20)]
    flops, _ = cost_charts(table_of(*records))
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces(flops)}
    assert len(looks) == 20
