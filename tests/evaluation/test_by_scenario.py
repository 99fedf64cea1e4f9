import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankloom.config import parse_config
from rankloom.evaluation.by_scenario import (
    POOLED,
    over_scenarios,
    rows_by_scenario,
    split_summary,
    worst_of,
)
from rankloom.evaluation.protocol import Evaluation, EvaluationConfig, Predictions, evaluate
from rankloom.evaluation.significance import auc_interval
from rankloom.schema import Label, Schema

NAMES = ("<unknown>", "home", "search", "cart", "mail")


def schema(*tasks: str, scenarios: tuple[str, ...] = NAMES) -> Schema:
    labels = tuple(Label(name=name) for name in tasks or ("click",))
    return Schema(tables={}, labels=labels, scenarios=scenarios)


def predictions(tasks: int = 1, rows: int = 400) -> Predictions:
    """Scenarios 1 to 4 of falling size."""
    generator = np.random.default_rng(0)
    return Predictions(
        logits=generator.standard_normal((rows, tasks)).astype(np.float32),
        labels=generator.integers(0, 2, (rows, tasks)).astype(np.float32),
        scenario=generator.choice(np.arange(1, 5), rows, p=[0.6, 0.3, 0.06, 0.04]).astype(np.int32),
    )


def rows_of(scenario: list[int], positive: list[int], least: int) -> dict[str, list[int]]:
    found = rows_by_scenario(
        np.array(scenario, np.int32), NAMES, np.array(positive, np.bool_)[:, None], least
    )
    return {part.name: part.rows.tolist() for part in found}


def test_rows_of_each_scenario_in_order() -> None:
    scenario = [3, 1, 1, 3, 2, 1]
    assert rows_of(scenario, [0] * 6, 0) == {"home": [1, 2, 5], "search": [4], "cart": [0, 3]}


def test_scenarios_with_few_positives_are_pooled() -> None:
    scenario = [3, 1, 1, 3, 2, 1]
    positive = [1, 1, 1, 0, 0, 0]
    assert rows_of(scenario, positive, 2) == {"home": [1, 2, 5], POOLED: [0, 3, 4]}
    assert rows_of(scenario, positive, 1) == {"home": [1, 2, 5], "cart": [0, 3], POOLED: [4]}
    assert rows_of(scenario, positive, 3) == {POOLED: [0, 1, 2, 3, 4, 5]}
    last = rows_by_scenario(
        np.array(scenario, np.int32), NAMES, np.array(positive, np.bool_)[:, None], 2
    )[-1]
    assert last.pooled == 2  # mail and the unknown one have no rows


def test_the_rare_task_decides() -> None:
    scenario = np.array([1, 1, 2, 2], np.int32)
    positive = np.array([[1, 1], [1, 1], [1, 0], [1, 1]], np.bool_)
    names = [part.name for part in rows_by_scenario(scenario, NAMES, positive, 2)]
    assert names == ["home", POOLED]


def test_no_rows_are_no_scenarios() -> None:
    assert rows_of([], [], 5) == {}


def test_a_scenario_with_the_name_of_the_tail_is_refused() -> None:
    arguments = (np.zeros(1, np.int32), (POOLED,), np.ones((1, 1), np.bool_))
    assert rows_by_scenario(*arguments)[0].name == POOLED
    with pytest.raises(ValueError, match="a scenario is called <pooled>, which names the tail"):
        rows_by_scenario(*arguments, 1)


def test_means_and_worst_by_hand() -> None:
    figures = {
        "a": {"auc": 0.9, "log_loss": 0.5, "calibration_ratio": 1.8},
        "b": {"auc": 0.6, "log_loss": 0.1, "calibration_ratio": 0.5},
        "c": {"auc": math.nan, "log_loss": 0.6, "calibration_ratio": math.nan},
    }
    labelled = {name: {"click": rows} for name, rows in (("a", 10), ("b", 30), ("c", 60))}
    found, worst = over_scenarios(
        figures, labelled, {"auc": "max", "log_loss": "min", "calibration_ratio": "one"}
    )
    assert found == pytest.approx(
        {
            "auc_macro": 0.75,
            "auc_by_rows": (0.9 * 10 + 0.6 * 30) / 40,
            "auc_worst": 0.6,
            "auc_scenarios": 2,
            "log_loss_macro": 0.4,
            "log_loss_by_rows": (0.5 * 10 + 0.1 * 30 + 0.6 * 60) / 100,
            "log_loss_worst": 0.6,
            "log_loss_scenarios": 3,
            "calibration_ratio_worst": 0.5,
            "calibration_ratio_scenarios": 2,
        }
    )
    assert worst == {"auc": "b", "log_loss": "c", "calibration_ratio": "b"}


def test_several_tasks_have_figures_of_their_own_and_a_mean() -> None:
    figures = {
        "a": {"auc/click": 0.9, "auc/buy": 0.5},
        "b": {"auc/click": 0.7, "auc/buy": math.nan},
    }
    labelled = {"a": {"click": 10, "buy": 1}, "b": {"click": 30, "buy": 3}}
    found, worst = over_scenarios(figures, labelled, {"auc": "max"})
    assert found == pytest.approx(
        {
            "auc_macro/click": 0.8,
            "auc_by_rows/click": 0.75,
            "auc_worst/click": 0.7,
            "auc_scenarios/click": 2,
            "auc_macro/buy": 0.5,
            "auc_by_rows/buy": 0.5,
            "auc_worst/buy": 0.5,
            "auc_scenarios/buy": 1,
            "auc_macro": 0.65,
            "auc_by_rows": 0.625,
            "auc_worst": 0.6,
        }
    )
    assert worst == {"auc/click": "b", "auc/buy": "a"}


def test_where_nothing_is_defined_the_means_are_not() -> None:
    found, worst = over_scenarios({"a": {"auc": math.nan}}, {"a": {"click": 3}}, {"auc": "max"})
    assert found.pop("auc_scenarios") == 0
    assert len(found) == 3
    assert all(math.isnan(value) for value in found.values())
    assert worst == {}
    assert over_scenarios({}, {}, {"auc": "max"}) == ({}, {})


def test_half_is_as_bad_as_double() -> None:
    assert worst_of({"a": 1.9, "b": 0.5}, "one") == "b"
    assert worst_of({"a": 2.1, "b": 0.5}, "one") == "a"
    assert worst_of({"a": 100.0, "b": 0.0}, "one") == "b"
    assert worst_of({"a": 0.5, "b": 0.5}, "max") == "a"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("auc_macro", ("auc", "macro")),
        ("auc_by_rows/click", ("auc/click", "by_rows")),
        ("calibration_ratio_worst", ("calibration_ratio", "worst")),
        ("log_loss", ("log_loss", "")),
        ("gauc_coverage", ("gauc_coverage", "")),
    ],
)
def test_split_summary(name: str, parts: tuple[str, str]) -> None:
    assert split_summary(name) == parts


def test_evaluate_equals_a_loop_over_scenarios() -> None:
    shown = predictions()
    assert shown.labels is not None
    result = evaluate(shown, schema(), EvaluationConfig(least_positives=20))
    assert list(result.scenarios) == ["home", "search", POOLED]
    masks = {
        "home": shown.scenario == 1,
        "search": shown.scenario == 2,
        POOLED: np.isin(shown.scenario, (3, 4)),
    }
    aucs = {
        name: roc_auc_score(shown.labels[mask, 0], shown.logits[mask, 0])
        for name, mask in masks.items()
    }
    for name, auc in aucs.items():
        assert result.scenarios[name]["auc"] == pytest.approx(auc)
        assert result.scenarios[name]["rows"] == masks[name].sum()
    assert result.scenarios[POOLED]["scenarios"] == 2
    assert "scenarios" not in result.scenarios["home"]
    assert result.metrics["auc_macro"] == pytest.approx(np.mean(list(aucs.values())))
    assert result.metrics["auc_by_rows"] == pytest.approx(
        sum(auc * masks[name].sum() for name, auc in aucs.items()) / 400
    )
    assert result.metrics["auc_worst"] == pytest.approx(min(aucs.values()))
    assert result.worst["auc"] == min(aucs, key=lambda name: aucs[name])
    # A mean over rows, weighted by rows, is the mean over all rows.
    assert result.metrics["log_loss_by_rows"] == pytest.approx(result.metrics["log_loss"])


def test_a_scenario_of_one_class_does_not_poison_the_means() -> None:
    shown = predictions()
    assert shown.labels is not None
    shown.labels[shown.scenario == 4] = 0
    result = evaluate(shown, schema(), EvaluationConfig(metrics=("auc",)))
    assert math.isnan(result.scenarios["mail"]["auc"])
    defined = [result.scenarios[name]["auc"] for name in ("home", "search", "cart")]
    assert result.metrics["auc_macro"] == pytest.approx(np.mean(defined))
    assert result.metrics["auc_scenarios"] == 3


def test_missing_labels_weigh_nothing() -> None:
    shown = predictions(tasks=2)
    mask = np.random.default_rng(2).random((400, 2)) < 0.5
    result = evaluate(replace(shown, label_mask=mask), schema("click", "buy"))
    parts = result.scenarios.values()
    expected = sum(own["auc/buy"] * own["labelled/buy"] for own in parts) / mask[:, 1].sum()
    assert result.metrics["auc_by_rows/buy"] == pytest.approx(expected)
    tasks = [result.metrics["auc_macro/click"], result.metrics["auc_macro/buy"]]
    assert result.metrics["auc_macro"] == pytest.approx(np.mean(tasks))


def intervals_of(result: Evaluation, name: str, task: str = "") -> tuple[float, float]:
    own = result.scenarios[name]
    return own[f"auc_low{task}"], own[f"auc_high{task}"]


def test_intervals_in_every_scenario() -> None:
    shown = predictions()
    assert shown.labels is not None
    config = EvaluationConfig(intervals=True, least_positives=20)
    result = evaluate(shown, schema(), config)
    for name, mask in (("home", shown.scenario == 1), (POOLED, np.isin(shown.scenario, (3, 4)))):
        expected = auc_interval(shown.labels[mask, 0], shown.logits[mask, 0])
        assert intervals_of(result, name) == (expected.low, expected.high)
    assert "auc_low" not in evaluate(shown, schema()).scenarios["home"]
    several = evaluate(predictions(tasks=2), schema("click", "buy"), config)
    low, high = intervals_of(several, "home", "/buy")
    assert low < several.scenarios["home"]["auc/buy"] < high


def test_without_scenarios_there_are_no_figures_over_them() -> None:
    plain = evaluate(predictions(), schema(scenarios=()))
    skipped = evaluate(predictions(), schema(), EvaluationConfig(per_scenario=False))
    for result in (plain, skipped):
        assert set(result.metrics) == {"auc", "log_loss"}
        assert result.worst == {}


def test_a_negative_number_of_positives_is_refused() -> None:
    with pytest.raises(ValueError, match="least_positives"):
        parse_config(EvaluationConfig, {"least_positives": -1}, "recipe.toml")
