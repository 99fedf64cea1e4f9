"""Imports go down only, and heavy or optional packages stay out of where they do not belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rankloom

PACKAGE = Path(rankloom.__file__).parent

LEVELS = {
    "allocator": 0,
    "config": 0,
    "schema": 1,
    "batch": 2,
    "entry": 3,
    "protocols": 3,
    "layers": 4,
    "ranking": 5,
    "scenario": 5,
    "retrieval": 5,
    "catalog": 6,
    "data": 7,
    "evaluation": 7,
    "runs": 7,
    "training": 8,
    "serving": 8,
    "report": 8,
    "cli": 9,
    "__main__": 10,
}
"""Part of the package -> level; a part imports its own level or a lower one."""

SIDEWAYS = {("training", "serving"), ("serving", "training"), ("serving", "report")}
"""Pairs on one level that must not know each other."""

OPTIONAL = {
    "fbgemm_gpu",
    "mlflow",
    "onnx",
    "optuna",
    "pandas",
    "ray",
    "sentence_transformers",
    "tensorboard",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    part = part_of(file)
    if part == "__init__":
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for name in imported(tree):
        pieces = name.split(".")
        if pieces[0] != "rankloom" or len(pieces) == 1 or pieces[1] not in LEVELS:
            continue
        target = pieces[1]
        assert LEVELS[target] <= LEVELS[part], f"{file} imports upward: {name}"
        assert (part, target) not in SIDEWAYS, f"{file} imports {name}"


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top_level = ast.Module(
        [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
    )
    roots = {name.split(".")[0] for name in imported(top_level)}
    assert not roots & OPTIONAL


def test_every_part_has_a_level() -> None:
    parts = {part_of(file) for file in modules()} - {"__init__"}
    assert parts <= LEVELS.keys()


@pytest.mark.parametrize("statement", ["import rankloom", "import rankloom.schema"])
def test_light_imports_do_not_load_torch(statement: str) -> None:
    code = f"{statement}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    for name in rankloom.__all__:
        assert getattr(rankloom, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        rankloom.fit  # noqa: B018
