"""The command line as a person uses it: results on stdout, one sentence on bad input."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from rankloom.cli.main import app

RECIPE = """
name = "tiny"
dataset = "{dataset}"
seed = 1
[model]
name = "lr"
[training]
epochs = 2
batch_size = 512
learning_rate = 0.01
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recipe(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(dataset=small_log / "log"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = invoke("train", recipe, "--out", tmp_path_factory.mktemp("runs"), "--json")
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["folder"])


def test_prepare(small_log: Path, tmp_path: Path) -> None:
    result = invoke("prepare", small_log / "schema.toml", "--out", tmp_path / "made")
    assert result.exit_code == 0, result.output
    assert "train 4,800, valid 600, test 600 rows" in result.stdout
    as_json = invoke("prepare", small_log / "schema.toml", "--out", tmp_path / "again", "--json")
    assert json.loads(as_json.stdout)["rows"] == {"train": 4800, "valid": 600, "test": 600}
    refused = invoke("prepare", small_log / "schema.toml", "--out", tmp_path / "made")
    assert refused.exit_code == 1
    assert "error:" in refused.stderr
    assert "overwrite" in refused.stderr


def test_prepare_tells_sequences_by_their_table(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\na,x\na,y\nb,x\n")
    spec = tmp_path / "sequences.toml"
    for table in (
        '[interactions]\nfiles = "log.csv"\nuser = "user"\nitem = "item"\n',
        '[sequences]\nfiles = "log.csv"\nuser = "item"\nitems = "user"\n',
    ):
        spec.write_text(f'name = "shop"\n{table}')
        result = invoke("prepare", spec, "--out", tmp_path / "made", "--overwrite")
        if "[sequences]" in table:
            assert result.exit_code == 1
            assert "a user must have one row; 1 have several, such as 'x'" in result.stderr
        else:
            assert result.exit_code == 0, result.output
            assert "made: 2 users, 2 items, 3 interactions in " in result.stdout
            again = invoke("prepare", spec, "--out", tmp_path / "made", "--overwrite", "--json")
            summary = json.loads(again.stdout)
            assert summary["folder"] == str(tmp_path / "made")
            counts = [summary[name] for name in ("users", "items", "interactions")]
            assert counts == [2, 2, 3]
            assert len(summary["data_hash"]) == 16


def test_evaluate_and_predict(run: Path, small_log: Path, tmp_path: Path) -> None:
    result = invoke("evaluate", run, "--split", "valid", "--metric", "auc", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["auc"] > 0.5
    shown = invoke("evaluate", run)
    assert shown.exit_code == 0
    assert "log_loss" in shown.stdout
    worst = json.loads(result.stdout)["worst"]["auc"]
    assert worst in json.loads(result.stdout)["scenarios"]
    assert "worst log_loss: " in shown.stdout
    out = tmp_path / "scores.parquet"
    result = invoke("predict", run, small_log / "log.csv", "--out", out)
    assert result.exit_code == 0, result.output
    assert "6,000 rows" in result.stdout
    assert pl.read_parquet(out).columns == ["click"]


def test_compare_writes_everything(recipe: Path, tmp_path: Path) -> None:
    arguments = (recipe, "--seeds", 2, "--out", tmp_path / "runs", "--report", tmp_path / "report")
    result = invoke("compare", *arguments)
    assert result.exit_code == 0, result.output
    assert " lr " in result.stdout
    assert "auc by scenario" in result.stdout
    written = {path.name for path in (tmp_path / "report").iterdir()}
    expected = {"leaderboard.json", "leaderboard.md", "leaderboard.csv", "index.html"}
    assert written == expected
    again = invoke("compare", *arguments)
    assert again.stderr.count("recorded already") == 2


def test_models() -> None:
    listed = json.loads(invoke("models", "--json").stdout)
    assert {"lr", "fm", "dnn", "wide_deep", "deepfm", "dcnv2", "finalmlp"} <= {
        entry["name"] for entry in listed
    }
    assert all({"name", "family", "paper", "year"} <= entry.keys() for entry in listed)
    for entry in listed:
        assert entry["name"] in invoke("models").stdout
        shown = invoke("model", entry["name"])
        assert shown.exit_code == 0, shown.output
    assert "embedding_dim" in invoke("model", "deepfm", "--json").stdout


def test_tokens_of_a_model_on_a_data_set_or_a_table_schema(small_log: Path) -> None:
    split = ("--set", "tokens.kind=auto_split", "--set", "tokens.num_tokens=3")
    for source in (small_log / "log", small_log / "schema.toml"):
        shown = invoke("model", "transformer", "--schema", source, *split)
        assert shown.exit_code == 0, shown.output
        assert "split 1 ... split 3" in shown.stdout
        assert "3 field tokens" in shown.stdout
        found = json.loads(invoke("model", "transformer", "--schema", source, "--json").stdout)
        assert found["num_tokens"] == found["num_events"] + found["num_fields"]
        names = [row["name"] for row in found["rows"]]
        assert {"user", "item"} <= set(names)
    refused = invoke("model", "lr", "--schema", small_log / "log")
    assert refused.exit_code == 1
    assert "lr is not made of tokens" in refused.stderr
    assert "name one with --schema" in invoke("model", "lr", "--set", "a=1").stderr


def test_schema_infer(small_log: Path, tmp_path: Path) -> None:
    out = tmp_path / "proposed.toml"
    result = invoke("schema", "infer", small_log / "log.csv", "--out", out)
    assert result.exit_code == 0, result.output
    from rankloom.data.table_schema import load_table_schema

    assert "user" in load_table_schema(out).features
    assert invoke("schema", "infer", small_log / "log.csv", "--out", out).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "none.toml"), "no such file: none.toml"),
        (("prepare", "none.toml", "--out", "x"), "no such file: none.toml"),
        (("evaluate", "none"), "no record.json in none"),
        (("model", "nothing"), "unknown model 'nothing'; known models:"),
        (("schema", "infer", "none.csv"), "none.csv"),
        (("data", "get", "nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")


def test_overrides(recipe: Path, tmp_path: Path) -> None:
    bad = invoke("train", recipe, "--out", tmp_path, "--set", "training.epoch=1")
    assert bad.exit_code == 1
    assert "did you mean epochs" in bad.stderr
    good = invoke(
        "train", recipe, "--out", tmp_path, "--set", "training.epochs=1", "--set", "seed=9"
    )
    assert good.exit_code == 0, good.output
    assert "-s9" in good.stdout


def test_version() -> None:
    from rankloom import __version__

    assert invoke("--version").stdout.strip() == __version__
