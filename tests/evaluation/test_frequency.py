import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.table_schema import (
    Categorical,
    ColumnSplit,
    Entity,
    LabelSpec,
    Numeric,
    TableInput,
    TableSchema,
)
from rankloom.evaluation.frequency import (
    NUM_GROUPS,
    compare_by_frequency,
    frequency_groups,
    row_frequency,
    training_counts,
)
from rankloom.evaluation.metrics import auc, log_loss
from rankloom.evaluation.significance import delong_test, holm

BRANDS = {"a": "red", "b": "red", "c": "blue"}


def log_frame() -> pl.DataFrame:
    """400 training rows and 100 test rows of all kinds of ids, missing and unseen ones too."""
    generator = np.random.default_rng(0)
    rows = 500
    users = [f"u{n}" for n in (generator.random(rows) ** 3 * 60).astype(int)]
    return pl.DataFrame(
        {
            "user": [None if n % 11 == 0 else name for n, name in enumerate(users)],
            "item": [None if n % 7 == 0 else "abcd"[n % 4] for n in range(rows)],
            "left": [f"w{n}" for n in generator.integers(0, 9, rows)],
            "right": [f"w{n}" for n in generator.integers(3, 12, rows)],
            "bucket": [f"b{n}" for n in generator.integers(0, 40, rows)],
            "age": generator.integers(18, 80, rows),
            "price": generator.random(rows),
            "click": generator.integers(0, 2, rows),
            "fold": ["train"] * 400 + ["test"] * 100,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log")
    log_frame().write_csv(path / "log.csv")
    pl.DataFrame({"id": list(BRANDS), "brand": list(BRANDS.values())}).write_csv(path / "items.csv")
    schema = TableSchema(
        name="log",
        input=TableInput(files="log.csv"),
        features={
            "user": Categorical(min_count=3),
            "item": Categorical(),
            "left": Categorical(vocabulary="word"),
            "right": Categorical(vocabulary="word"),
            "bucket": Categorical(hash_buckets=16),
            "age": Categorical(transform="quantile", bins=4),
            "price": Numeric(),
        },
        labels={"click": LabelSpec()},
        entities={
            "info": Entity(
                input=TableInput(files="items.csv"),
                key="id",
                feature="item",
                features={"brand": Categorical()},
            )
        },
        split=ColumnSplit(column="fold"),
    )
    prepare(schema, path / "prepared", root=path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return Dataset.open(folder / "prepared")


def expected_counts() -> dict[str, list[int | None]]:
    """Count of every row's value by its text; None: missing, or not told by the text (hashed)."""
    frame = log_frame()
    train = frame.head(400)
    users = {k: n for k, n in Counter(train["user"]).items() if n >= 3}
    words = Counter(train["left"]) + Counter(train["right"])
    items = Counter(train["item"])
    brands: Counter[str] = Counter()
    for item in train["item"]:
        if item in BRANDS:
            brands[BRANDS[item]] += 1
    return {
        "user": [None if v is None else users.get(v, 0) for v in frame["user"]],
        "item": [None if v is None else items[v] for v in frame["item"]],
        "left": [words[v] for v in frame["left"]],
        "right": [words[v] for v in frame["right"]],
        "info.brand": [brands[BRANDS[v]] if v in BRANDS else None for v in frame["item"]],
    }


def test_counts_are_those_of_the_training_rows(dataset: Dataset) -> None:
    counts = training_counts(dataset)
    names = [field.name for field in dataset.schema.categorical]
    assert set(counts) == set(names)
    ids = dataset.split("test").slice(0, 100).categorical.numpy()
    expected = expected_counts()
    assert 0 in expected["user"][400:]  # an id that training did not keep
    for name, values in expected.items():
        found = counts[name][ids[:, names.index(name)]]
        assert found.tolist() == [value or 0 for value in values[400:]], name


@pytest.mark.parametrize("name", ["bucket", "age"])
def test_tables_without_a_vocabulary_are_counted(dataset: Dataset, name: str) -> None:
    names = [field.name for field in dataset.schema.categorical]
    ids = dataset.split("train").slice(0, 400).categorical[:, names.index(name)].tolist()
    counts = training_counts(dataset)[name]
    assert len(counts) == dataset.schema.tables[name]
    assert counts.tolist() == [ids.count(n) for n in range(len(counts))]
    assert counts.sum() == 400


def test_a_vocabulary_that_is_there_is_not_counted_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    monkeypatch.setattr(
        "rankloom.evaluation.frequency._counted", lambda data, tables: asked.append(tables) or {}
    )
    with pytest.raises(KeyError):
        training_counts(dataset)
    assert asked == [{"bucket", "age", "info.brand"}]


@pytest.mark.parametrize("statistic", ["min", "mean", "user", "right"])
def test_frequency_of_a_row(dataset: Dataset, statistic: str) -> None:
    split = dataset.split("test")
    counts = training_counts(dataset)
    found = row_frequency(split, counts, statistic)
    names = [field.name for field in dataset.schema.categorical]
    ids = split.slice(0, 100).categorical.tolist()
    for row, frequency in zip(ids, found, strict=True):
        chosen = [
            int(counts[name][one])
            for name, one in zip(names, row, strict=True)
            if one != 0 and statistic in ("min", "mean", name)
        ]
        expected = sum(chosen) / len(chosen) if statistic == "mean" else min(chosen, default=0)
        assert frequency == pytest.approx(expected)


def test_frequency_of_blocks_is_that_of_all_rows(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = training_counts(dataset)
    whole = row_frequency(dataset.split("test"), counts)
    monkeypatch.setattr("rankloom.evaluation.frequency.BLOCK_ROWS", 7)
    assert row_frequency(dataset.split("test"), counts).tolist() == whole.tolist()
    assert training_counts(dataset)["age"].tolist() == counts["age"].tolist()


def test_unknown_statistic(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"min, mean or a categorical field \(user, item.*'price'"):
        row_frequency(dataset.split("test"), training_counts(dataset), "price")


def test_groups_by_hand() -> None:
    assert frequency_groups(range(10)).tolist() == list(range(10))
    assert frequency_groups([*range(19, -1, -1)]).tolist() == [n // 2 for n in range(19, -1, -1)]
    # Eight rows of one value stand at 1 to 9 of 10, their middle at 5.
    assert frequency_groups([0, *[7] * 8, 9]).tolist() == [0, *[5] * 8, 9]
    assert frequency_groups([3, 3]).tolist() == [5, 5]
    assert frequency_groups([]).tolist() == []
    assert frequency_groups([1.0]).tolist() == [5]


def test_ties_stay_together_and_groups_ascend() -> None:
    values = np.random.default_rng(1).integers(0, 40, 1000) ** 2
    groups = frequency_groups(values)
    assert all(len(set(groups[values == value])) == 1 for value in values)
    assert (np.diff(groups[np.argsort(values)]) >= 0).all()
    assert (np.bincount(groups, minlength=NUM_GROUPS) > 70).all()


def scores(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    y = (generator.random(rows) < 0.4).astype(np.float64)
    ours, theirs = (y + generator.standard_normal(rows) for _ in range(2))
    return y, ours, theirs, generator.integers(1, 300, rows)


def test_deciles_equal_one_by_one_comparisons() -> None:
    y, ours, theirs, frequency = scores(600)
    y[::9] = np.nan
    deciles = compare_by_frequency(y, ours, theirs, frequency)
    assert [decile.number for decile in deciles] == list(range(1, 11))
    groups = frequency_groups(frequency)
    tests = []
    for decile in deciles:
        rows = [n for n in range(600) if groups[n] == decile.number - 1 and not np.isnan(y[n])]
        a, b, c = y[rows], ours[rows], theirs[rows]
        tests.append(delong_test(a, b, c))
        assert (decile.rows, decile.positives) == (len(rows), int(a.sum()))
        assert (decile.low, decile.high) == (min(frequency[rows]), max(frequency[rows]))
        assert decile.auc == auc(a, b)
        assert decile.other_auc == auc(a, c)
        assert decile.auc_difference == pytest.approx(auc(a, b) - auc(a, c))
        assert (decile.auc_low, decile.auc_high) == (tests[-1].low, tests[-1].high)
        assert decile.p_value == tests[-1].p_value
        assert decile.log_loss == log_loss(a, b)
        assert decile.log_loss_difference == pytest.approx(log_loss(a, b) - log_loss(a, c))
    adjusted = holm([test.p_value for test in tests])
    assert [decile.p_adjusted for decile in deciles] == adjusted.tolist()
    assert sum(decile.rows for decile in deciles) == int((~np.isnan(y)).sum())
    assert all(low.high < high.low for low, high in itertools.pairwise(deciles))


def test_a_decile_of_one_class_is_undefined_and_does_not_count_in_the_correction() -> None:
    y, ours, theirs, frequency = scores(600)
    y[frequency_groups(frequency) == 0] = 0
    first, *others = compare_by_frequency(y, ours, theirs, frequency)
    assert first.positives == 0
    undefined = (first.auc, first.auc_difference, first.auc_low, first.p_value, first.p_adjusted)
    assert all(math.isnan(value) for value in undefined)
    assert not math.isnan(first.log_loss_difference)
    least = min(others, key=lambda decile: decile.p_value)
    assert least.p_adjusted == pytest.approx(min(1, 9 * least.p_value))


def test_a_decile_without_a_known_label_is_left_out() -> None:
    y, ours, theirs, frequency = scores(600)
    y[frequency_groups(frequency) == 3] = np.nan
    deciles = compare_by_frequency(y, ours, theirs, frequency)
    assert [decile.number for decile in deciles] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_the_same_model_has_no_difference() -> None:
    y, ours, _, frequency = scores(300)
    for decile in compare_by_frequency(y, ours, ours, frequency):
        assert (decile.auc_difference, decile.log_loss_difference) == (0.0, 0.0)
        assert (decile.p_value, decile.p_adjusted) == (1.0, 1.0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must be \[rows\]; got \(3,\), \(3,\), \(2,\), \(3,\)"):
        compare_by_frequency([0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 2, [1] * 3)
