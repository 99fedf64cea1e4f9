"""`rankloom scale` as a person uses it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloom.cli.main import app
from rankloom.report.scaling import read_scaling

RECIPE = """
name = "tiny"
dataset = "somewhere"
[model]
name = "dnn"
embedding_dim = 2
[training]
epochs = 1
batch_size = 1024
learning_rate = 0.01
"""
GRID = """
seeds = 2
[grid]
"model.hidden" = [[2], [4], [8], [16]]
[models.fm.grid]
"model.hidden" = []
"model.embedding_dim" = [2]
"""
PUBLISHED = """
[tiny]
metrics = { gamma = 0.118 }
source = "a paper"
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def here(small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "fm.toml").write_text(
        RECIPE.replace('"tiny"', '"flat"').replace('"dnn"', '"fm"'), encoding="utf-8"
    )
    (tmp_path / "scale.toml").write_text(GRID, encoding="utf-8")
    (tmp_path / "published.toml").write_text(PUBLISHED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_scale_from_recipes_to_the_page(here: Path, small_log: Path) -> None:
    options = ("--grid", "scale.toml", "--dataset", small_log / "log", "--report", "found")
    arguments = ("scale", "tiny.toml", "fm.toml", *options, "--samples", 20)
    result = invoke(*arguments, "--published", "published.toml")
    assert result.exit_code == 0, result.output
    assert "[1/10] tiny hidden=[2] seed 0: training" in result.stderr
    assert "flat: no curve (1 distinct amounts of compute" in result.stdout.replace("\n", " ")
    assert "Published (tiny): gamma 0.118. a paper" in result.stdout
    for name in ("scaling.json", "scaling.md", "scaling.html"):
        assert f"written: found/{name}" in result.stdout
        assert (here / "found" / name).is_file()
    scaling = read_scaling(here / "found")
    tiny, flat = scaling.models
    assert [len(model.sizes) for model in (tiny, flat)] == [4, 1]
    assert [size.size for size in tiny.sizes[:2]] == ["hidden=[2]", "hidden=[4]"]
    computes = [size.flops_per_row for size in tiny.sizes]
    assert None not in computes
    assert computes == sorted(computes)  # type: ignore[type-var]

    again = invoke(*arguments, "--metric", "log_loss", "--split", "valid", "--json")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("recorded already") == 10
    values = json.loads(again.stdout)
    assert (values["metric"], values["split"], values["higher_is_better"]) == (
        "log_loss",
        "valid",
        False,
    )
    assert len(list((here / "runs").rglob("record.json"))) == 10  # nothing is trained again


def test_wrong_input_is_a_sentence(here: Path, small_log: Path) -> None:
    options = ("--grid", "scale.toml", "--dataset", small_log / "log", "--seeds", 1)
    arguments = ("scale", "tiny.toml", *options)
    (here / "scale.toml").write_text('[grid]\n"model.depth" = [1]\n')
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: tiny, model dnn: unknown model.depth; correct the key")
    (here / "scale.toml").write_text('[grid]\n"training.batch_size" = [50000]\n')
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "tiny batch_size=50000 seed 0: failed: batch_size 50000 is more than" in result.stderr
    assert "error: no finished run: batch_size 50000 is more than" in result.stderr
