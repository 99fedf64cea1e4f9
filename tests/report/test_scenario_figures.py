import math
from pathlib import Path

import numpy as np
import pytest
from run_records import build_record
from scenario_records import ROWS, runs_of, scenario_record
from scipy import stats

from rankloom.evaluation.by_scenario import POOLED
from rankloom.report.leaderboard import Leaderboard, Table, build_leaderboard
from rankloom.report.rows import Row, higher_is_better
from rankloom.report.scenario_figures import scenario_metrics, worst_scenarios
from rankloom.report.tables import read_json, write_json
from rankloom.runs.record import DatasetFacts, Record


def table_of(records: list[Record], reference: str | None = None) -> Table:
    (table,) = build_leaderboard(records, reference=reference).tables
    return table


def row_of(table: Table, label: str) -> Row:
    (row,) = (row for row in table.rows if row.label == label)
    return row


def aucs(records: list[Record], scenario: str) -> list[float]:
    return [float(record.scenarios["test"][scenario]["auc"]) for record in records]


def test_counts_stand_beside_the_metrics() -> None:
    table = table_of(runs_of("fm", 0.8, pooled=7))
    assert table.scenario_rows == {**ROWS, POOLED: 40}
    assert table.scenario_counts["search"] == {"positives": 200}
    assert table.scenario_counts[POOLED] == {"positives": 4, "scenarios": 7}
    assert set(table.rows[0].scenarios["home"]) == {"auc"}


def test_figures_over_scenarios_are_no_columns() -> None:
    table = table_of(runs_of("fm", 0.8))
    assert table.metrics == ("auc",)
    over = table.rows[0].over_scenarios
    assert set(over) == {"auc_macro", "auc_by_rows", "auc_worst", "auc_scenarios"}
    expected = np.mean([np.mean(aucs(runs_of("fm", 0.8), name)) for name in ROWS])
    assert over["auc_macro"].mean == pytest.approx(expected)
    chosen = build_leaderboard(runs_of("fm", 0.8), metrics=["auc_macro"]).tables[0]
    assert chosen.metrics == ("auc_macro",)
    assert scenario_metrics(chosen.rows, chosen.metrics, ()) == ("auc",)


def test_direction_of_figures_over_scenarios() -> None:
    assert higher_is_better("auc_worst/click") is True
    assert higher_is_better("log_loss_macro") is False
    assert higher_is_better("ece") is False
    assert higher_is_better("auc_scenarios") is None
    assert higher_is_better("calibration_ratio_worst") is None


def test_differences_are_paired_over_seeds() -> None:
    fm, lr = runs_of("fm", 0.8), runs_of("lr", 0.7)
    table = table_of([*fm, *lr], "lr")
    found = row_of(table, "fm").scenario_differences["cart"]["auc"]
    gaps = np.subtract(aucs(fm, "cart"), aucs(lr, "cart"))
    test = stats.ttest_1samp(gaps, 0)
    low, high = test.confidence_interval(0.95)
    assert (found.mean, found.p_value, found.low, found.high) == pytest.approx(
        (gaps.mean(), test.pvalue, low, high)
    )
    assert found.seeds == 3
    assert row_of(table, "lr").scenario_differences == {}
    assert row_of(table, "lr").over_scenarios_differences == {}


def test_p_values_are_adjusted_over_models_and_scenarios() -> None:
    models = [*runs_of("fm", 0.8), *runs_of("dnn", 0.81), *runs_of("lr", 0.7)]
    # Without variation there is no p-value: another seed of one model moves in home.
    models[4] = scenario_record("dnn", 2, {"home": 0.9, "search": 0.71, "cart": 0.62})
    table = table_of(models, "lr")
    own = [row_of(table, name).scenario_differences for name in ("fm", "dnn")]
    pairs = [figures["auc"] for row in own for figures in row.values()]
    defined = [pair.p_value for pair in pairs if not math.isnan(pair.p_value)]
    smallest = min(pairs, key=lambda pair: (math.isnan(pair.p_value), pair.p_value))
    assert len(defined) > 3
    assert smallest.p_adjusted == pytest.approx(min(1, smallest.p_value * len(defined)))
    over = [row_of(table, name).over_scenarios_differences["auc_macro"] for name in ("fm", "dnn")]
    smallest = min(over, key=lambda pair: pair.p_value)
    assert smallest.p_adjusted == pytest.approx(min(1, 2 * smallest.p_value))
    assert "auc_scenarios" not in row_of(table, "fm").over_scenarios_differences


def test_the_tail_is_shown_and_not_tested() -> None:
    table = table_of([*runs_of("fm", 0.8, pooled=7), *runs_of("lr", 0.7, pooled=7)], "lr")
    fm = row_of(table, "fm")
    assert POOLED in fm.scenarios
    assert set(fm.scenario_differences) == set(ROWS)
    assert any("pools the 7 scenarios" in note for note in table.scenario_notes)


def test_a_reference_without_scenarios_is_refused() -> None:
    facts = runs_of("fm", 0.8)[0].dataset
    plain = build_record("lr", dataset=facts)
    with pytest.raises(ValueError, match="the reference lr has no figures per scenario, and other"):
        build_leaderboard([*runs_of("fm", 0.8), plain], reference="lr")
    table = table_of([*runs_of("fm", 0.8), plain], "fm")
    assert row_of(table, "lr").scenario_differences == {}
    # Where nobody has scenarios there is nothing to miss.
    assert table_of([build_record("fm"), build_record("lr")], "lr").scenario_notes == ()


def test_different_tails_are_left_out() -> None:
    table = table_of([*runs_of("fm", 0.8, pooled=7), *runs_of("lr", 0.7)], "lr")
    assert set(table.scenario_rows) == set(ROWS)
    for row in table.rows:
        assert row.over_scenarios == row.over_scenarios_differences == {}
        assert POOLED not in row.scenarios
    assert set(row_of(table, "fm").scenario_differences) == set(ROWS)
    assert any("pool different scenarios" in note for note in table.scenario_notes)
    same = table_of([*runs_of("fm", 0.8), *runs_of("lr", 0.7)], "lr")
    assert not any("pool different" in note for note in same.scenario_notes)


def test_worst_scenario_by_seed() -> None:
    def record(seed: int, home: float, cart: float) -> Record:
        return scenario_record("fm", seed, {"home": home, "search": 0.9, "cart": cart})

    row = table_of([record(1, 0.6, 0.7), record(2, 0.6, 0.7), record(3, 0.8, 0.7)]).rows[0]
    assert worst_scenarios(row, "auc") == ["home", "cart"]
    undefined = table_of([record(1, math.nan, 0.7)]).rows[0]
    assert worst_scenarios(undefined, "auc") == ["cart"]
    assert worst_scenarios(undefined, "gauc") == []


def test_undefined_scenarios_are_counted_in_a_note() -> None:
    aucs = {"home": math.nan, "search": 0.9, "cart": 0.8}
    table = table_of([scenario_record("fm", 1, aucs)])
    assert any(
        "auc is undefined in 1 of the 3 reported scenarios" in note for note in table.scenario_notes
    )
    assert table.rows[0].over_scenarios["auc_macro"].mean == pytest.approx(0.85)


def test_single_tasks_have_scenario_metrics() -> None:
    figures = {"home": {"rows": 9, "auc": 0.6, "auc/click": 0.7, "auc/buy": 0.5}}
    facts = DatasetFacts(name="demo", data_hash="aaaa", rows={}, labels=("click", "buy"))
    record = build_record(scenarios={"test": figures}, dataset=facts)
    table = table_of([record])
    metrics = scenario_metrics(table.rows, table.metrics, facts.labels)
    assert metrics == ("auc", "auc/click", "auc/buy")


def test_records_without_figures_over_scenarios_still_load() -> None:
    """What was recorded before they were computed."""
    record = build_record(scenarios={"test": {"home": {"rows": 9, "positives": 2, "auc": 0.6}}})
    table = table_of([record])
    assert table.rows[0].over_scenarios == {}
    assert table.scenario_counts == {"home": {"positives": 2}}
    assert table.scenario_notes == ()


def test_leaderboards_come_back(tmp_path: Path) -> None:
    records = [*runs_of("fm", 0.8, pooled=7), *runs_of("lr", 0.7, pooled=7)]
    board = build_leaderboard(records, reference="lr")
    write_json(tmp_path / "board.json", board)
    assert read_json(tmp_path / "board.json").model_dump_json() == board.model_dump_json()
    old = board.model_dump(mode="json")
    for table in old["tables"]:
        del table["scenario_counts"], table["scenario_notes"]
        for row in table["rows"]:
            for name in ("scenario_differences", "over_scenarios", "over_scenarios_differences"):
                del row[name]
            for difference in row["differences"].values():
                del difference["low"], difference["high"]
    assert Leaderboard.model_validate(old).tables[0].rows[0].over_scenarios == {}


def test_a_worst_figure_of_the_tail_is_not_tested() -> None:
    """The tail is worst in every seed of the first, and of the reference alone in the second."""

    def records(model: str, pooled: float) -> list[Record]:
        return [
            scenario_record(
                model,
                seed,
                {"home": 0.6 + 0.01 * seed**2, "search": 0.9, "cart": 0.8, POOLED: pooled},
                pooled=7,
            )
            for seed in (1, 2, 3)
        ]

    def differences(ours: float, theirs: float) -> set[str]:
        table = table_of([*records("fm", ours), *records("lr", theirs)], "lr")
        return set(row_of(table, "fm").over_scenarios_differences)

    means = {"auc_macro", "auc_by_rows"}
    assert differences(0.55, 0.5) == differences(0.95, 0.5) == differences(0.5, 0.95) == means
    assert differences(0.95, 0.96) == {*means, "auc_worst"}


def test_a_worst_figure_of_several_tasks_is_not_tested_when_the_tail_is_worst_in_one() -> None:
    figures = {
        "home": {"rows": 9, "auc": 0.6, "auc/click": 0.7, "auc/buy": 0.5},
        POOLED: {"rows": 9, "auc": 0.7, "auc/click": 0.6, "auc/buy": 0.8, "scenarios": 2},
    }
    over = {"auc": 0.7, "auc_worst": 0.55, "auc_worst/click": 0.6, "auc_worst/buy": 0.5}
    facts = DatasetFacts(name="demo", data_hash="aaaa", rows={}, labels=("click", "buy"))
    records = [
        build_record(name, scenarios={"test": figures}, metrics={"test": over}, dataset=facts)
        for name in ("fm", "lr")
    ]
    found = row_of(table_of(records, "lr"), "fm").over_scenarios_differences
    assert set(found) == {"auc_worst/buy"}
