"""`rankloom depths` as a person uses it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloom.catalog import ENTRIES
from rankloom.cli.main import app

RECIPE = """
name = "{name}"
dataset = "{dataset}"
seed = 1
[model]
name = "{name}"
embedding_dim = 4
{sizes}
[training]
epochs = 1
batch_size = 1024
learning_rate = 0.01
"""
SIZES = """dim = 8
num_heads = 2
num_loops = 2
num_experts = 2
num_active = 1
head = { hidden = [8] }
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained(folder: Path, small_log: Path, name: str, sizes: str) -> Path:
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(name=name, dataset=small_log / "log", sizes=sizes))
    result = invoke("train", recipe, "--out", folder / "runs", "--json")
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["folder"])


@pytest.fixture(scope="module")
def run(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("depths"), small_log, "loopctr", SIZES)


def test_depths_shows_and_writes_everything(run: Path) -> None:
    result = invoke("depths", run, "--points", 2, "--draws", 2)
    assert result.exit_code == 0, result.output
    shown = ("Depths, test split", "Oracle over depths", "Headroom beyond", "Policies")
    for expected in (*shown, "depths.html"):
        assert expected in result.stdout
    assert {"depths.json", "depths.html"} <= {path.name for path in run.iterdir()}


def test_json_into_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    options = ("--split", "valid", "--fit", "train", "--points", 1, "--draws", 1)
    result = invoke("depths", run, *options, "--out", tmp_path / "seen", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["split"], values["fitted_on"]) == ("valid", "train")
    assert len(values["tasks"][0]["counts"]) == 3
    written = (tmp_path / "seen" / "depths.json").read_text(encoding="utf-8")
    assert json.loads(written) == values


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--split", "valid"), "policies are fitted on valid: report another split"),
        (("--fit", "nowhere"), "no split 'nowhere' in"),
        (("--points", "0"), "points must be 1 to 100; got 0"),
    ],
)
def test_bad_input_is_one_sentence(run: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = invoke("depths", run, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_a_model_without_depths_is_told_which_have(small_log: Path, tmp_path: Path) -> None:
    result = invoke("depths", trained(tmp_path, small_log, "fm", ""))
    assert result.exit_code == 1
    assert "fm has no depths to compare; models that have: " in result.stderr
    assert "loopctr" in result.stderr
    assert any(entry.name == "loopctr" for entry in ENTRIES)
