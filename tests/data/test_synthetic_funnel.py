"""A log whose test split knows every conversion: what is hidden, what is biased."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from rankloom.batch import Batch
from rankloom.data.store import Dataset
from rankloom.data.synthetic import SyntheticConfig, generate
from rankloom.data.synthetic_funnel import (
    FUNNEL,
    TRUTH,
    best_possible,
    read_truth,
    synthetic_funnel,
)
from rankloom.evaluation.protocol import EvaluationConfig

ROWS = 40_004
SIZES = {"train": 32_004, "valid": 4_000, "test": 4_000}
CLICK_COLUMNS = ["user", "item", "c0", "n0", "history", "scenario", "click", "click_probability"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("funnel")
    synthetic_funnel(folder, FUNNEL, ROWS, seed=3)
    return folder


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return pl.concat(generate(FUNNEL, ROWS, 3, conversion_everywhere=True))


def rows(folder: Path, split: str) -> Batch:
    part = Dataset.open(folder / "dataset").split(split)
    return part.slice(0, part.rows)


def test_conversions_without_a_click_are_kept_in_the_test_split_alone(
    folder: Path, log: pl.DataFrame
) -> None:
    start = 0
    for split, size in SIZES.items():
        batch, raw = rows(folder, split), log.slice(start, size)
        start += size
        assert batch.labels is not None
        assert len(batch.labels) == size
        clicked = raw["click"] == 1
        assert batch.labels[:, 0].tolist() == raw["click"].to_list()
        if split == "test":
            assert batch.label_mask is None or bool(batch.label_mask.all())
            assert batch.labels[:, 1].tolist() == raw["conversion"].to_list()
        else:
            assert batch.label_mask is not None
            assert batch.label_mask[:, 0].all()
            assert batch.label_mask[:, 1].tolist() == clicked.to_list()
            known = batch.labels[:, 1][batch.label_mask[:, 1]]
            assert known.tolist() == raw.filter(clicked)["conversion"].to_list()
            hidden = pl.read_parquet(folder / f"{split}.parquet").filter(click=0)["conversion"]
            assert hidden.null_count() == len(hidden)
    assert start == ROWS


def test_the_truth_stands_row_by_row_beside_the_test_split(folder: Path, log: pl.DataFrame) -> None:
    truth = read_truth(folder)
    assert_frame_equal(truth, log.tail(SIZES["test"]).select(TRUTH))
    batch = rows(folder, "test")
    scenarios = Dataset.open(folder / "dataset").schema.scenarios
    assert batch.scenario is not None
    assert [scenarios[k] for k in batch.scenario.tolist()] == truth["scenario"].to_list()
    fields = {
        *(field.name for field in Dataset.open(folder / "dataset").schema.categorical),
        *(field.name for field in Dataset.open(folder / "dataset").schema.numeric),
    }
    assert not any("probability" in name or name in ("click", "conversion") for name in fields)


def test_clicked_rows_convert_more_often_and_by_scenario(log: pl.DataFrame) -> None:
    clicked = log.filter(click=1)
    gaps = []
    for name in ("s0", "s1", "s2"):
        everywhere, seen = (
            part.filter(scenario=name)["conversion_probability"].to_numpy()
            for part in (log, clicked)
        )
        error = seen.std() / np.sqrt(len(seen))
        gap = seen.mean() - everywhere.mean()
        assert gap > 4 * error
        gaps.append(gap)
    assert gaps == sorted(gaps)
    independent = FUNNEL.model_copy(update={"shared_causes": ()})
    frame = pl.concat(generate(independent, ROWS, 3, conversion_everywhere=True))
    seen = frame.filter(click=1)["conversion_probability"].to_numpy()
    everywhere_mean = frame["conversion_probability"].to_numpy().mean()
    assert abs(seen.mean() - everywhere_mean) < 0.3 * min(gaps)


def test_the_causes_shared_are_those_asked_for() -> None:
    def logits(config: SyntheticConfig) -> tuple[pl.DataFrame, dict[str, float]]:
        frame = pl.concat(generate(config, 20_000, conversion_everywhere=True))
        logit = {
            task: (pl.col(f"{task}_probability") / (1 - pl.col(f"{task}_probability"))).log()
            for task in ("click", "conversion")
        }
        found = frame.group_by("scenario").agg(pl.corr(logit["click"], logit["conversion"]))
        return frame, dict(found.rows())

    plain, _ = logits(SyntheticConfig())
    assert_frame_equal(logits(SyntheticConfig(shared_causes=(0.0,)))[0], plain)
    frame, found = logits(SyntheticConfig(shared_causes=(-0.5, 1.0)))
    assert_frame_equal(frame.select(CLICK_COLUMNS), plain.select(CLICK_COLUMNS))
    assert found["s0"] == pytest.approx(-0.5, abs=0.1)
    assert found["s1"] == pytest.approx(1.0, abs=1e-9)
    assert found["s2"] == pytest.approx(1.0, abs=1e-9)  # the last counts for those after it
    with pytest.raises(ValueError, match=r"between -1 and 1; got \(0\.5, 1\.1\)"):
        SyntheticConfig(shared_causes=(0.5, 1.1))


def test_labels_follow_the_stated_probabilities_everywhere(log: pl.DataFrame) -> None:
    for clicked in (0, 1):
        part = log.filter(click=clicked)
        truth, outcome = (
            part[name].to_numpy() for name in ("conversion_probability", "conversion")
        )
        for low in (0.0, 0.1, 0.2, 0.4):
            inside = (truth >= low) & (truth < max(2 * low, 0.1))
            spread = np.sqrt((truth * (1 - truth))[inside].sum())
            assert spread > 1
            assert abs((outcome - truth)[inside].sum()) < 4 * spread


def test_no_score_ranks_better_than_the_truth(log: pl.DataFrame) -> None:
    truth = log["conversion_probability"].to_numpy()
    best = roc_auc_score(log["conversion"], truth)
    assert best > 0.8
    noise = np.random.default_rng(0).standard_normal(len(truth))
    logit = np.log(truth / (1 - truth))
    worse = [logit + scale * noise for scale in (0.3, 1.0)]
    others = [*worse, log["click_probability"].to_numpy(), log["click"].to_numpy()]
    scores = [roc_auc_score(log["conversion"], other) for other in others]
    assert max(scores) < best - 0.003


def test_a_model_of_clicked_rows_is_wrong_about_the_others(log: pl.DataFrame) -> None:
    """The same regression, on all rows and on clicked ones: only the second is biased."""
    fields = ["user", "item", "c0", "c1", "c2", "c3", "scenario"]
    codes = OneHotEncoder(handle_unknown="ignore").fit_transform(log.select(fields).to_numpy())
    train = np.arange(ROWS) < SIZES["train"]
    clicked = log["click"].to_numpy() == 1
    truth, outcome = (log[name].to_numpy() for name in ("conversion_probability", "conversion"))
    gaps = []
    for used in (train, train & clicked):
        model = LogisticRegression(C=0.3, max_iter=300).fit(codes[used], outcome[used])
        given = model.predict_proba(codes[~train])[:, 1]
        gaps.append((given - truth[~train]).mean() / truth[~train].mean())
    assert abs(gaps[0]) < 0.1
    assert gaps[1] > 0.2


def test_rows_follow_the_seed_and_small_logs_have_three_splits(tmp_path: Path) -> None:
    config = SyntheticConfig(history_length=0)
    first = synthetic_funnel(tmp_path / "a", config, 100, seed=1)
    assert {name: first.split(name).rows for name in first.splits} == {
        "train": 80,
        "valid": 10,
        "test": 10,
    }
    again = synthetic_funnel(tmp_path / "b", config, 100, seed=1)
    other = synthetic_funnel(tmp_path / "c", config, 100, seed=2)
    assert first.data_hash == again.data_hash != other.data_hash
    with pytest.raises(ValueError, match="needs at least 10 rows; got 9"):
        synthetic_funnel(tmp_path / "d", config, 9)


def test_no_scores_are_better_than_the_truth(folder: Path) -> None:
    truth = read_truth(folder)
    config = EvaluationConfig(metrics=("auc", "log_loss", "calibration_ratio"))
    found = best_possible(folder, config)
    assert found.rows == SIZES["test"]
    assert found.scenarios.keys() == {"s0", "s1", "s2"}
    random = np.random.default_rng(0)
    for task in ("click", "conversion"):
        chance = truth[f"{task}_probability"].to_numpy()
        labels = truth[task].to_numpy()
        expected = roc_auc_score(labels, chance)
        assert found.metrics[f"auc/{task}"] == pytest.approx(expected, abs=1e-6)
        assert found.metrics[f"calibration_ratio/{task}"] == pytest.approx(1, abs=0.1)
        noised = chance * random.uniform(0.3, 1.7, len(chance))
        assert found.metrics[f"auc/{task}"] > roc_auc_score(labels, noised)
