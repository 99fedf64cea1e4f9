"""`rankloom inspect` as a person uses it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloom.cli.main import app

RECIPE = """
name = "{name}"
dataset = "{dataset}"
seed = 1
[model]
name = "{name}"
embedding_dim = 4
[training]
epochs = 1
batch_size = 1024
learning_rate = 0.01
watch_gradients = {watched}
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inspect")
    found = {}
    for name, watched in (("dnn", '["network"]'), ("fm", "[]")):
        recipe = folder / f"{name}.toml"
        recipe.write_text(RECIPE.format(name=name, dataset=small_log / "log", watched=watched))
        result = invoke("train", recipe, "--out", folder / "runs", "--json")
        assert result.exit_code == 0, result.output
        found[name] = Path(json.loads(result.stdout)["folder"])
    return found


def test_inspect_shows_and_writes_everything(runs: dict[str, Path]) -> None:
    arguments = ("inspect", runs["dnn"], "--against", runs["fm"], "--layers", "network")
    result = invoke(*arguments, "--rows", 64, "--frequency", "mean")
    assert result.exit_code == 0, result.output
    for expected in ("Gradient norms", "Layer inputs", "dnn against fm", "inspect.html"):
        assert expected in result.stdout
    assert {"inspect.json", "inspect.html"} <= {path.name for path in runs["dnn"].iterdir()}
    assert not (runs["fm"] / "inspect.json").exists()


def test_json_into_a_folder_of_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("inspect", runs["dnn"], "--out", tmp_path / "seen", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [curve["pattern"] for curve in values["gradients"]] == ["network"]
    assert values["gains"] == values["spectra"] == []
    written = (tmp_path / "seen" / "inspect.json").read_text(encoding="utf-8")
    assert json.loads(written) == values


def test_a_stack_is_shown_without_being_asked_for(small_log: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "deres.toml"
    text = RECIPE.format(name="deres", dataset=small_log / "log", watched="[]")
    sizes = "dim = 8\nnum_layers = 2\nnum_heads = 2\n"
    recipe.write_text(text.replace("[training]", f"{sizes}[training]"))
    trained = invoke("train", recipe, "--out", tmp_path / "runs", "--json")
    assert trained.exit_code == 0, trained.output
    folder = Path(json.loads(trained.stdout)["folder"])
    result = invoke("inspect", folder, "--rows", 50)
    assert result.exit_code == 0, result.output
    for expected in ("Attention over depth", "Most negative mean", "Gates: mean", "R²"):
        assert expected in result.stdout
    assert '"type":"heatmap"' in (folder / "inspect.html").read_text(encoding="utf-8")


def test_the_loss_around_the_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("inspect", runs["dnn"], "--landscape", "--rows", 40, "--out", tmp_path)
    result = invoke(*arguments, "--radius", 0.5, "--curvature")
    assert result.exit_code == 0, result.output
    assert "Loss around the weights" in result.stdout
    (found,) = json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))["landscapes"]
    assert (found["rows"], found["positions"][-1]) == (40, 0.5)
    assert not found["settings"]["tables"]
    assert found["largest_eigenvalue"] is not None
    moved = json.loads(invoke(*arguments, "--tables", "--json").stdout)["landscapes"][0]
    assert moved["parameters"] > found["parameters"]
    assert '"type":"contour"' in (tmp_path / "inspect.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to inspect in"),
        (("--curvature",), "--curvature is part of the landscape; give --landscape too"),
        (("--radius", "1"), "--radius is part of the landscape; give --landscape too"),
        (("--radius", "1", "--tables"), "--radius and --tables are part of the landscape; give"),
        (("--layers", "cross"), "no module fits 'cross'; modules are"),
        (("--against", "none"), "no record.json in none"),
        (("--landscape", "--radius", "0"), "radius"),
    ],
)
def test_bad_input_is_one_sentence(
    runs: dict[str, Path], arguments: tuple[str, ...], sentence: str
) -> None:
    result = invoke("inspect", runs["fm"], *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.output
