from pathlib import Path

import pytest

from rankloom.training.recipe import load_recipe

BASE = """
name = "base"
dataset = "data"
seed = 7

[model]
name = "dcnv2"
num_crosses = 5
hidden = [8, 4]

[model.structure]
kind = "stacked_parallel"
parallel_hidden = [6]

[training]
epochs = 3
batch_size = 32
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def test_a_recipe_states_only_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, base=BASE)
    write(
        tmp_path / "deep",
        other='base = "../base.toml"\n[model]\nhidden = [3]\n[training]\nepochs = 9\n',
        more='base = "other.toml"\nname = "own"\n[model.structure]\nkind = "parallel"\n',
    )
    base = load_recipe(tmp_path / "base.toml").resolved()
    other = load_recipe(tmp_path / "deep" / "other.toml").resolved()
    assert other["name"] == "other"
    assert other["model"] == base["model"] | {"hidden": [3]}
    assert other["training"] == base["training"] | {"epochs": 9}
    assert (other["seed"], other["dataset"]) == (7, "data")
    more = load_recipe(tmp_path / "deep" / "more.toml", ["training.epochs=1"]).resolved()
    assert more["name"] == "own"
    assert more["model"]["structure"] == {"kind": "parallel"}
    assert more["model"]["hidden"] == [3]
    assert more["training"]["epochs"] == 1


def test_another_model_takes_nothing_from_the_bases_model(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, fm='base = "base.toml"\n[model]\nname = "fm"\n')
    recipe = load_recipe(tmp_path / "fm.toml")
    assert recipe.model == {"name": "fm"}
    assert recipe.training.batch_size == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "a.toml"', "leads back to this recipe"),
        ("base = 3", "base must be the path of a recipe; got 3"),
    ],
)
def test_bases_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, a=text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "a.toml")


def test_a_circle_of_bases_and_a_missing_one(tmp_path: Path) -> None:
    write(tmp_path, a='base = "b.toml"', b='base = "a.toml"', c='base = "nowhere.toml"')
    with pytest.raises(ValueError, match="leads back"):
        load_recipe(tmp_path / "a.toml")
    with pytest.raises(FileNotFoundError, match="nowhere.toml"):
        load_recipe(tmp_path / "c.toml")
