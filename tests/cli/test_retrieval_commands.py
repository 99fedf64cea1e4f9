"""`rankloom tokenize`, `recommend`, and the commands that take recipes of every kind."""

import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from rankloom.cli import console
from rankloom.cli.console import figure_lines
from rankloom.cli.main import app
from rankloom.cli.recommend import _read_users
from rankloom.data.sequence_store import SequenceData
from rankloom.data.synthetic_items import synthetic_sequences
from rankloom.retrieval.semantic_ids import SemanticIds

RECIPE = """
name = "toy"
dataset = "{folder}/data"

[items]
kind = "given"

[tokenizer]
kind = "rq_kmeans"
level_sizes = [6, 5]

[collisions]
kind = "dedup"
spare_digits = 2

[model]
name = "decoder"
dim = 16
num_layers = 1
num_heads = 2

[training]
epochs = 1
batch_size = 32

[evaluation]
cutoffs = [5, 10]
beams = 12
"""

PAIR = pl.Array(pl.Int64, 2)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, its recipe, and a finished run of it."""
    made = tmp_path_factory.mktemp("cli")
    data = synthetic_sequences(40, 80, branching=(2, 3), mean_length=7, max_length=12, seed=1)
    data.save(made / "data")
    (made / "toy.toml").write_text(RECIPE.format(folder=made), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    result = invoke("train", folder / "toy.toml", "--out", folder / "runs", "--json")
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["folder"])


def test_inspect_shows_the_recall_by_margin_and_count(run: Path, tmp_path: Path) -> None:
    result = invoke("inspect", run, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "recall@10 by margin of the first code of the target" in result.stdout
    assert (tmp_path / "inspect.html").is_file()
    printed = invoke("inspect", run, "--split", "valid", "--out", tmp_path, "--json")
    values = json.loads(printed.stdout)
    assert values["split"] == "valid"
    assert values == json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))
    refused = invoke("inspect", run, "--layers", "layers.*")
    assert refused.exit_code == 1
    assert "--layers and --landscape are for models that score rows" in refused.output


def test_report_shows_tokenizers_side_by_side(folder: Path, run: Path, tmp_path: Path) -> None:
    overrides = ("--set", "tokenizer.level_sizes=[4]", "--out", folder / "runs")
    assert invoke("tokenize", folder / "toy.toml", *overrides).exit_code == 0
    result = invoke("report", folder / "runs", "--tokenizers", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "collisions" in result.stdout
    text = (tmp_path / "tokenizers.html").read_text(encoding="utf-8")
    # The run's copy of its ids is not a third one.
    assert "2 tokenizers of 40 items" in text
    title = SequenceData.open(folder / "data").catalogue.titles[0]
    assert title in text
    refused = invoke("report", folder / "runs", "--tokenizers", "--json")
    assert refused.exit_code == 1
    assert "--json are for runs, not for tokenizers" in refused.output


def ids_of(folder: Path) -> list[str]:
    return SequenceData.open(folder / "data").catalogue.ids


def test_tokenize_prints_what_the_ids_are_like(folder: Path) -> None:
    result = invoke("tokenize", folder / "toy.toml", "--out", folder / "runs")
    assert result.exit_code == 0, result.output
    for text in ("items that share their id", "Gini of code counts", "code 0: ", "semantic ids: "):
        assert text in result.stdout
    printed = invoke("tokenize", folder / "toy.toml", "--out", folder / "runs", "--json")
    values = json.loads(printed.stdout)
    assert values["diagnostics"]["num_items"] == 40
    assert SemanticIds.load(values["folder"]).num_items == 40


def test_train_and_evaluate(folder: Path, run: Path) -> None:
    result = invoke("evaluate", run)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.startswith("recall@10") and "[" in line for line in lines)
    assert any(line.startswith("head: rows ") for line in lines)
    values = json.loads(
        invoke("evaluate", run, "--split", "valid", "--metric", "ndcg@7", "--json").stdout
    )
    assert set(values["metrics"]) == {"ndcg@7"}
    low, high = values["intervals"]["ndcg@7"]
    assert low <= values["metrics"]["ndcg@7"] <= high
    plain = invoke("train", folder / "toy.toml", "--out", folder / "runs")
    assert f"run folder: {run}" in plain.stdout


def test_compare_writes_a_leaderboard_of_retrieval_models(folder: Path, run: Path) -> None:
    popular = folder / "popularity.toml"
    popular.write_text(
        f'dataset = "{folder}/data"\n[model]\nname = "popularity"\n', encoding="utf-8"
    )
    report = folder / "report"
    result = invoke(
        "compare", folder / "toy.toml", popular, "--seeds", 2, "--out", folder / "runs",
        "--report", report,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = (report / "leaderboard.md").read_text(encoding="utf-8")
    assert "recall@10" in text
    assert text.index("recall@5") < text.index("recall@10") < text.index("ndcg@5")
    assert "popularity" in text
    assert "by slice:" in text
    assert "cold targets occur less than" in text
    result = invoke(
        "report", folder / "runs", "--metric", "ndcg@10", "--metric", "recall@5", "--out", report
    )
    assert result.exit_code == 0, result.output
    text = (report / "leaderboard.md").read_text(encoding="utf-8")
    assert text.index("ndcg@10") < text.index("recall@5")
    assert "mrr@10" not in text


def test_recommend_after_one_history(folder: Path, run: Path) -> None:
    ids = ids_of(folder)
    history = f"{ids[0]}, {ids[1]},nothing"
    result = invoke("recommend", run, "--history", history, "--k", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "unknown items of the history, left out: 1"
    assert len(lines) == 4
    values = json.loads(invoke("recommend", run, "--history", history, "--k", 3, "--json").stdout)
    assert [line.split()[1] for line in lines[1:]] == values["items"]
    assert set(values) == {"items", "titles", "scores", "unknown"}
    blocked = invoke(
        "recommend", run, "--history", history, "--block", values["items"][0], "--json"
    )
    assert values["items"][0] not in json.loads(blocked.stdout)["items"]
    empty = invoke("recommend", run, "--history", "", "--k", 2, "--json")
    assert len(json.loads(empty.stdout)["items"]) == 2


def test_recommend_for_tables_of_users(folder: Path, run: Path, tmp_path: Path) -> None:
    ids = ids_of(folder)
    lists = pl.DataFrame({"user": ["a", "b", "c"], "items": [ids[:3], [], ids[4:6]]})
    lists.write_parquet(tmp_path / "users.parquet")
    lists.write_ndjson(tmp_path / "users.jsonl")
    text = lists.with_columns(items=pl.col("items").list.join(" "))
    text.write_csv(tmp_path / "users.csv")
    answers = [
        [
            json.loads(line)
            for line in invoke(
                "recommend", run, "--users", tmp_path / name, "--k", 4, "--json"
            ).stdout.splitlines()
        ]
        for name in ("users.parquet", "users.jsonl", "users.csv")
    ]
    assert [answer["user"] for answer in answers[0]] == ["a", "b", "c"]
    assert answers[0] == answers[1] == answers[2]
    shown = invoke("recommend", run, "--users", tmp_path / "users.csv").stdout
    assert shown.startswith("user a\n")


def test_users_lists_of_numbers_are_item_ids(tmp_path: Path) -> None:
    floats = pl.DataFrame({"user": [1, 2], "items": [[3.0, None], [12.0]]})
    fixed = pl.DataFrame({"user": [1], "items": [[3, 12]]}, schema_overrides={"items": PAIR})
    floats.write_parquet(tmp_path / "floats.parquet")
    fixed.write_parquet(tmp_path / "fixed.parquet")
    assert _read_users(tmp_path / "floats.parquet") == (["1", "2"], [["3"], ["12"]])
    assert _read_users(tmp_path / "fixed.parquet") == (["1"], [["3", "12"]])


@pytest.mark.parametrize("width", [40, 10_000])
def test_figures_break_where_a_terminal_is_narrow(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [f"recall@{cutoff} 0.123456" for cutoff in (5, 10, 20, 50)]
    whole = "test   " + "  ".join(figures)
    assert figure_lines("test   ", figures) == whole
    monkeypatch.setattr(console, "STDOUT", Console(force_terminal=True, width=width))
    lines = figure_lines("test   ", figures).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "  ".join(line.strip() for line in lines) == whole
    assert len(lines) == (1 if width > 40 else 4)


def test_new_items_get_ids_and_are_recommended(folder: Path, run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    from rankloom.retrieval.histories import Histories

    data = SequenceData.open(folder / "data")
    old = data.catalogue
    assert old.vectors is not None
    catalogue = replace(
        old,
        ids=[*old.ids, "new"],
        titles=[*old.titles, "New item"],
        texts=[*old.texts, old.texts[0]],
        attributes=torch.cat([old.attributes, old.attributes[:1]]),
        vectors=torch.cat([old.vectors, old.vectors[:1]]),
    )
    histories = Histories(data.histories.items, data.histories.offsets, 41)
    SequenceData(data.name, catalogue, histories, data.users).save(tmp_path / "more")
    made = invoke(
        "tokenize", folder / "toy.toml", "--append", tmp_path / "more", "--out", folder / "runs",
        "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    appended = json.loads(made.stdout)["folder"]
    found = invoke(
        "recommend", run, "--history", "new", "--k", 41, "--appended", appended,
        "--dataset", tmp_path / "more", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert values["unknown"] == 0
    assert "new" in values["items"]
    assert values["titles"][values["items"].index("new")] == "New item"


def test_bad_input_is_one_sentence(folder: Path, run: Path, tmp_path: Path) -> None:
    scorer = tmp_path / "sasrec.toml"
    scorer.write_text('dataset = "d"\n[model]\nname = "sasrec"\n', encoding="utf-8")
    (tmp_path / "users.csv").write_text("name,items\na,b\n", encoding="utf-8")
    (tmp_path / "users.txt").write_text("a b\n", encoding="utf-8")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("recommend", run), "error: give either --history or --users"),
        (
            ("recommend", run, "--users", tmp_path / "users.csv"),
            "has no column user; it has name, items",
        ),
        (("recommend", run, "--users", tmp_path / "users.txt"), "ends in .csv, .parquet or .jsonl"),
        (("recommend", run, "--users", tmp_path / "none.csv"), "no such file"),
        (("recommend", run, "--history", "a", "--k", 0), "count must be at least 1; got 0"),
        (("recommend", tmp_path, "--history", "a"), "no record.json"),
        (("tokenize", scorer), "error: "),
        (("tokenize", folder / "toy.toml", "--append", folder / "data"), "holds no item that"),
        (("evaluate", run, "--split", "train"), "no split 'train' of held-out items"),
        (("evaluate", run, "--metric", "auc"), "unknown metric 'auc'; known: recall, ndcg"),
        (("evaluate", run, "--switched-off", "item"), "--switched-off is for models that score"),
        (("scale", folder / "toy.toml", "--grid", scorer), "error: "),
        (("predict", run, "table.csv", "--out", "x"), "error: "),
    ]
    for arguments, message in cases:
        result = invoke(*arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.strip().splitlines()) == 1


def test_retrieval_models_are_listed_and_shown() -> None:
    listed = json.loads(invoke("models", "--json").stdout)
    names = {entry["name"] for entry in listed if entry["family"] == "retrieval"}
    assert {"decoder", "encdec", "cobra", "rpg", "sasrec", "popularity"} <= names
    shown = invoke("model", "decoder")
    assert shown.exit_code == 0
    assert "num_user_tokens" in shown.stdout
