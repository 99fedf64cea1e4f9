import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
from run_records import START, build_record

from rankloom.runs.environment import Commit
from rankloom.runs.record import (
    describe_dataset,
    find_completed,
    find_records,
    read_record,
    recipe_hash,
    write_record,
)
from rankloom.schema import CategoricalField, Label, NumericField, Schema

SOURCE = Commit(id="c0ffee", source_hash="5050")


def test_round_trip(tmp_path: Path) -> None:
    record = build_record(
        scenarios={"test": {"feed": {"rows": 7, "auc": 0.5}}},
        cost={"dense_parameters": 3, "flops_per_row": 1.5},
    )
    file = write_record(tmp_path / "run", record)
    assert file == tmp_path / "run" / "record.json"
    again = read_record(tmp_path / "run")
    assert again == record
    assert isinstance(again.scenarios["test"]["feed"]["rows"], int)
    assert isinstance(again.cost["dense_parameters"], int)


def test_record_file_itself_can_be_named(tmp_path: Path) -> None:
    file = write_record(tmp_path, build_record())
    assert read_record(file) == build_record()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_undefined_numbers_are_null(tmp_path: Path, value: float) -> None:
    record = build_record(
        metrics={"test": {"auc": value, "log_loss": 0.5}},
        scenarios={"test": {"feed": {"rows": 0, "auc": value}}},
        cost={"inference_rows_per_second": value},
    )
    text = write_record(tmp_path, record).read_text()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert values["metrics"]["test"] == {"auc": None, "log_loss": 0.5}
    assert values["scenarios"]["test"]["feed"] == {"rows": 0, "auc": None}
    again = read_record(tmp_path)
    assert math.isnan(again.metrics["test"]["auc"])
    assert math.isnan(again.scenarios["test"]["feed"]["auc"])
    assert math.isnan(again.cost["inference_rows_per_second"])


def test_times_are_utc_iso(tmp_path: Path) -> None:
    values = json.loads(write_record(tmp_path, build_record()).read_text())
    assert values["started"] == "2026-03-01T12:00:00Z"


def test_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        build_record(started=START.replace(tzinfo=None))


def test_failed_run(tmp_path: Path) -> None:
    record = build_record(status="failed", error="loss is NaN", training=None, metrics={})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_recipe_with_tuple_and_infinity() -> None:
    record = build_record(recipe={"name": "n", "hidden": (64, 32), "clip_norm": math.inf})
    assert record.recipe == {"name": "n", "hidden": [64, 32], "clip_norm": "inf"}


def test_recipe_with_an_object_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a recipe holds tables, lists, text.*got PosixPath"):
        recipe_hash({"folder": Path("x")})


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record\.json in .*; it is written when"):
        read_record(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no record\.json in"):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1,', "not valid JSON"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"), "not valid JSON"),
        ("[]", "a record is a JSON object; got list"),
        (
            '{"format_version": 99}',
            "record format 99 is not readable; this rankloom reads format 1",
        ),
        ("{}", "record format None is not readable"),
        ('{"format_version": 1}', "run_id is missing"),
    ],
)
def test_broken_records(tmp_path: Path, text: str | bytes, message: str) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "record.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path)


def test_unknown_key(tmp_path: Path) -> None:
    file = write_record(tmp_path, build_record())
    values = {**json.loads(file.read_text()), "sede": 1}
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="unknown key sede; did you mean seed"):
        read_record(tmp_path)


def test_recipe_hash_leaves_out_what_a_record_states_itself() -> None:
    base = {"name": "a", "seed": 1, "dataset": "x", "model": {"name": "fm", "embedding_dim": 4}}
    same = {"model": {"embedding_dim": 4, "name": "fm"}, "name": "b", "seed": 2, "dataset": "y"}
    assert recipe_hash(base) == recipe_hash(same)
    assert len(recipe_hash(base)) == 16


@pytest.mark.parametrize(
    "model", [{"name": "fm", "embedding_dim": 5}, {"name": "lr", "embedding_dim": 4}, {}]
)
def test_recipe_hash_sees_the_model(model: dict[str, object]) -> None:
    base = {"model": {"name": "fm", "embedding_dim": 4}}
    assert recipe_hash(base) != recipe_hash({"model": model})


def test_find_records_is_recursive_and_ordered(tmp_path: Path) -> None:
    for folder, seed in (("b", 2), ("a/deep", 1), ("c", 3)):
        write_record(tmp_path / folder, build_record(seed=seed))
    (tmp_path / "unfinished").mkdir()
    found = find_records(tmp_path)
    assert [run.record.seed for run in found] == [1, 2, 3]
    assert found[0].folder == tmp_path / "a" / "deep"
    assert find_records(tmp_path / "nowhere") == []


def test_find_records_and_a_broken_one(tmp_path: Path) -> None:
    write_record(tmp_path / "good", build_record())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.*not valid JSON"):
        find_records(tmp_path)
    assert len(find_records(tmp_path, unreadable="skip")) == 1


def test_find_completed(tmp_path: Path) -> None:
    record = build_record(seed=3)
    write_record(tmp_path / "run", record)
    found = find_completed(tmp_path, record.recipe_hash, "aaaa", 3, SOURCE)
    assert found is not None
    assert found.record == record
    assert found.folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("data_hash", "seed", "commit"),
    [
        ("bbbb", 3, SOURCE),
        ("aaaa", 4, SOURCE),
        ("aaaa", 3, Commit(id="c0ffee", dirty=True, source_hash="6060")),
    ],
)
def test_find_completed_wants_everything_equal(
    tmp_path: Path, data_hash: str, seed: int, commit: Commit
) -> None:
    record = build_record(seed=3)
    write_record(tmp_path / "run", record)
    assert find_completed(tmp_path, record.recipe_hash, data_hash, seed, commit) is None


def test_find_completed_asks_for_the_source_not_for_the_commit(tmp_path: Path) -> None:
    """A commit that touches only docs, or a copy without git, runs the same source."""
    record = build_record(seed=3)
    write_record(tmp_path / "run", record)
    for commit in (Commit(id="other", source_hash="5050"), Commit(source_hash="5050")):
        found = find_completed(tmp_path, record.recipe_hash, "aaaa", 3, commit)
        assert found is not None
        assert found.folder == tmp_path / "run"


def test_find_completed_wants_the_recipe_and_a_completed_run(tmp_path: Path) -> None:
    failed = build_record(status="failed", error="stopped")
    write_record(tmp_path / "failed", failed)
    assert find_completed(tmp_path, failed.recipe_hash, "aaaa", 1, SOURCE) is None
    assert find_completed(tmp_path, "0" * 16, "aaaa", 1, SOURCE) is None


def test_find_completed_takes_the_latest(tmp_path: Path) -> None:
    record = build_record()
    late = record.model_copy(update={"run_id": "late", "finished": START + timedelta(days=1)})
    write_record(tmp_path / "a", late)
    write_record(tmp_path / "b", record)
    found = find_completed(tmp_path, record.recipe_hash, "aaaa", 1, SOURCE)
    assert found is not None
    assert found.record.run_id == "late"


def test_describe_dataset() -> None:
    schema = Schema(
        tables={"user": 10, "item": 20},
        categorical=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="item", table="item"),
        ),
        numeric=(NumericField(name="price"),),
        labels=(Label(name="click"), Label(name="buy")),
        scenarios=("unknown", "feed", "search"),
    )
    facts = describe_dataset("shop", "abcd", {"train": 5}, schema)
    assert (facts.categorical, facts.numeric, facts.table_rows) == (2, 1, 30)
    assert facts.labels == ("click", "buy")
    assert facts.scenarios == 2
    assert facts.rows == {"train": 5}
