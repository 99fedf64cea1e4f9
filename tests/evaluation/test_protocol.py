from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as reference_log_loss
from sklearn.metrics import roc_auc_score
from torch import nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.evaluation import metrics
from rankloom.evaluation.protocol import (
    BEST,
    EvaluationConfig,
    Predictions,
    evaluate,
    predict,
)
from rankloom.schema import Label, Schema


def schema(*tasks, scenarios=()):
    names = tasks or ("click",)
    return Schema(tables={}, labels=tuple(Label(name=name) for name in names), scenarios=scenarios)


class Scorer(nn.Module):
    """Logits of two tasks from the numeric columns; dropout shows the mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch)
        self.inference = torch.is_inference_mode_enabled()
        return self.dropout(self.linear(batch.numeric))


def batches(sizes, labels=True):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        yield Batch(
            categorical=torch.zeros(size, 0, dtype=torch.int32),
            numeric=torch.randn(size, 3, generator=generator),
            labels=torch.randint(0, 2, (size, 2), generator=generator).float() if labels else None,
            label_mask=torch.rand(size, 2, generator=generator) < 0.8 if labels else None,
            weight=torch.rand(size, generator=generator),
            scenario=torch.randint(0, 3, (size,), generator=generator, dtype=torch.int32),
            group=torch.randint(0, 9, (size,), generator=generator),
            time=torch.arange(size),
        )


def random_predictions(rows=300, tasks=1, seed=0):
    generator = np.random.default_rng(seed)
    return Predictions(
        logits=generator.standard_normal((rows, tasks)).astype(np.float32),
        labels=generator.integers(0, 2, (rows, tasks)).astype(np.float32),
        group=generator.integers(0, 40, rows),
        scenario=generator.integers(0, 3, rows).astype(np.int32),
    )


def test_predict_keeps_rows_in_order_and_everything_beside_them():
    model = Scorer()
    result = predict(model, batches([5, 1, 0, 7]))
    joined = list(batches([5, 1, 0, 7]))
    numeric = torch.cat([batch.numeric for batch in joined])
    torch.testing.assert_close(torch.from_numpy(result.logits), model.linear(numeric).detach())
    for name in ("labels", "label_mask", "weight", "scenario", "group"):
        expected = torch.cat([getattr(batch, name) for batch in joined])
        assert np.array_equal(getattr(result, name), expected.numpy()), name
    assert result.rows == 13
    np.testing.assert_allclose(result.probabilities, 1 / (1 + np.exp(-result.logits)), rtol=1e-6)


def test_predict_hides_labels_from_the_model_and_tracks_no_gradient():
    model = Scorer()
    predict(model, batches([4]))
    (seen,) = model.seen
    assert (seen.labels, seen.label_mask, seen.weight, seen.group) == (None,) * 4
    assert seen.time is not None  # a feature: how long ago an event was
    assert seen.scenario is not None
    assert model.inference
    assert not torch.is_inference_mode_enabled()


def test_predict_restores_the_mode_of_every_module():
    model = Scorer().train()
    model.linear.eval()
    predict(model, batches([4]))
    assert (model.training, model.linear.training, model.dropout.training) == (True, False, True)

    def failing():
        yield from batches([4])
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        predict(model, failing())
    assert (model.training, model.linear.training, model.dropout.training) == (True, False, True)


def test_predict_in_bf16_is_close_and_not_equal_and_float32_outside():
    model = Scorer()
    exact = predict(model, batches([64])).logits
    rounded = predict(model, batches([64]), precision="bf16").logits
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.03)


def test_predict_without_labels_or_without_batches():
    result = predict(Scorer(), batches([3], labels=False))
    assert result.labels is None
    assert result.label_mask is None
    with pytest.raises(ValueError, match="these rows have no labels"):
        evaluate(result, schema("a", "b"))
    with pytest.raises(ValueError, match="the loader gave no batch"):
        predict(Scorer(), [])


def test_predict_refuses_logits_of_another_shape():
    class Flat(nn.Module):
        def forward(self, batch):
            return batch.numeric[:, 0]

    with pytest.raises(ValueError, match=r"logits \[batch, tasks\]; got \(3,\) for 3 rows"):
        predict(Flat(), batches([3]))


def test_every_metric_of_one_task_has_its_own_name():
    predictions = random_predictions()
    y, z = predictions.labels[:, 0], predictions.logits[:, 0]
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    config = EvaluationConfig(metrics=tuple(BEST), calibration_bins=7, base_rate=0.4)
    result = evaluate(predictions, schema(), config)
    assert result.metrics == {
        "auc": pytest.approx(roc_auc_score(y, z)),
        "log_loss": pytest.approx(reference_log_loss(y, p)),
        "gauc": metrics.gauc(y, z, predictions.group),
        "gauc_uniform": metrics.gauc(y, z, predictions.group, "uniform"),
        "gauc_coverage": metrics.grouped_auc(y, z, predictions.group).coverage,
        "normalised_entropy": metrics.normalised_entropy(y, z, base_rate=0.4),
        "calibration_ratio": pytest.approx(p.sum() / y.sum()),
        "ece": pytest.approx(metrics.expected_calibration_error(y, p, bins=7)),
        "brier": pytest.approx(((p - y) ** 2).mean()),
    }
    assert result.rows == 300
    assert result.labelled == {"click": 300}
    assert result.positives == {"click": int(y.sum())}
    assert result.scenarios == {}


def test_several_tasks_are_named_and_averaged_and_missing_labels_masked():
    predictions = random_predictions(tasks=2)
    mask = np.random.default_rng(1).random((300, 2)) < 0.6
    shown = replace(predictions, label_mask=mask)
    result = evaluate(shown, schema("click", "buy"))
    click, buy = (
        roc_auc_score(
            predictions.labels[mask[:, task], task], predictions.logits[mask[:, task], task]
        )
        for task in (0, 1)
    )
    assert result.metrics["auc/click"] == pytest.approx(click)
    assert result.metrics["auc/buy"] == pytest.approx(buy)
    assert result.metrics["auc"] == pytest.approx((click + buy) / 2)
    assert result.labelled == {"click": int(mask[:, 0].sum()), "buy": int(mask[:, 1].sum())}
    # What stands in masked places never counts.
    noise = replace(shown, labels=np.where(mask, predictions.labels, 1 - predictions.labels))
    assert evaluate(noise, schema("click", "buy")) == result


def test_the_mean_leaves_out_a_task_without_both_classes():
    predictions = random_predictions(tasks=2)
    predictions.labels[:, 1] = 0
    result = evaluate(predictions, schema("click", "buy"), EvaluationConfig(metrics=("auc",)))
    assert np.isnan(result.metrics["auc/buy"])
    assert result.metrics["auc"] == result.metrics["auc/click"]
    assert result.positives["buy"] == 0


def test_scenarios_are_named_counted_and_equal_to_their_rows_alone():
    predictions = random_predictions()
    named = schema(scenarios=("unknown", "home", "search", "cart"))
    result = evaluate(predictions, named)
    assert list(result.scenarios) == ["unknown", "home", "search"]  # cart has no rows
    for index, name in enumerate(result.scenarios):
        rows = predictions.scenario == index
        figures = result.scenarios[name]
        assert figures["rows"] == rows.sum()
        assert figures["positives"] == predictions.labels[rows, 0].sum()
        assert figures["auc"] == metrics.auc(
            predictions.labels[rows, 0], predictions.logits[rows, 0]
        )
        assert set(figures) == {"auc", "log_loss", "rows", "positives"}
    assert evaluate(predictions, named, EvaluationConfig(per_scenario=False)).scenarios == {}


def test_scenarios_of_several_tasks_count_each_task():
    predictions = replace(random_predictions(tasks=2), label_mask=np.ones((300, 2), np.bool_))
    predictions.label_mask[:100, 1] = False
    named = schema("click", "buy", scenarios=("unknown", "home", "search"))
    home = evaluate(predictions, named).scenarios["home"]
    rows = predictions.scenario == 1
    assert home["labelled/click"] == home["rows"] == rows.sum()
    assert home["labelled/buy"] == rows[100:].sum()
    assert home["positives/buy"] == predictions.labels[100:][rows[100:], 1].sum()
    assert {"auc", "auc/click", "auc/buy"} <= set(home)


def test_a_one_class_scenario_is_nan_and_still_counted():
    predictions = random_predictions()
    predictions.labels[predictions.scenario == 1] = 1
    named = schema(scenarios=("unknown", "home", "search"))
    home = evaluate(predictions, named).scenarios["home"]
    assert np.isnan(home["auc"])
    assert np.isfinite(home["log_loss"])
    assert home["rows"] == home["positives"] > 0


def test_weights_enter_unless_the_config_says_otherwise():
    weight = np.random.default_rng(3).random(300).astype(np.float32)
    predictions = replace(random_predictions(), weight=weight)
    y, z = predictions.labels[:, 0], predictions.logits[:, 0]
    weighted = evaluate(predictions, schema()).metrics
    assert weighted["auc"] == metrics.auc(y, z, weight)
    assert weighted["log_loss"] == metrics.log_loss(y, z, weight)
    plain = evaluate(predictions, schema(), EvaluationConfig(weighted=False)).metrics
    assert plain["auc"] == metrics.auc(y, z) != weighted["auc"]


def test_intervals_hold_the_auc():
    predictions = random_predictions(tasks=2)
    result = evaluate(predictions, schema("a", "b"), EvaluationConfig(intervals=True))
    assert set(result.intervals) == {"auc/a", "auc/b"}
    low, high = result.intervals["auc/a"]
    assert low < result.metrics["auc/a"] < high
    assert evaluate(predictions, schema("a", "b")).intervals == {}


@pytest.mark.parametrize("name", ["gauc", "gauc_uniform"])
def test_gauc_without_groups_is_one_sentence(name):
    predictions = replace(random_predictions(), group=None)
    with pytest.raises(ValueError, match=f"^{name} needs a group per row and the data set has"):
        evaluate(predictions, schema(), EvaluationConfig(metrics=(name,)))


def test_nan_logits_say_that_training_diverged():
    predictions = random_predictions()
    predictions.logits[3:5] = np.nan
    with pytest.raises(ValueError, match="logits are NaN in 2 of 300 rows; its training has div"):
        evaluate(predictions, schema())


def test_predictions_that_do_not_fit_the_schema_are_refused():
    with pytest.raises(ValueError, match=r"must be \[rows, 2 tasks\]; got \(300, 1\)"):
        evaluate(random_predictions(), schema("a", "b"))
    with pytest.raises(ValueError, match="scenario indices must lie below 2; got 2"):
        evaluate(random_predictions(), schema(scenarios=("unknown", "home")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ["auc", "aoc"]}, "unknown metric aoc; known metrics: auc, log_loss, gauc"),
        ({"metrics": ["auc", "auc"]}, r"name each metric once, at least one; repeated: \['auc'\]"),
        ({"metrics": []}, "name each metric once, at least one"),
        ({"metric": ["auc"]}, "unknown key metric; did you mean metrics?"),
        ({"calibration_bins": 0}, "calibration_bins"),
    ],
)
def test_a_wrong_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        parse_config(EvaluationConfig, values, "recipe.toml")
