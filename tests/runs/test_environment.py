import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import rankloom
from rankloom.runs.environment import current_commit, current_machine, current_versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package folder without a repository."""
    folder = tmp_path / "repo" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("A = 1\n")
    return folder


@pytest.fixture
def checkout(package: Path) -> Path:
    """The same package, committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_no_repository(package: Path) -> None:
    commit = current_commit(package)
    assert commit.id is None
    assert not commit.dirty
    assert len(commit.source_hash) == 16


def test_clean_checkout(checkout: Path) -> None:
    commit = current_commit(checkout)
    assert commit.id == git(checkout, "rev-parse", "HEAD")
    assert not commit.dirty


def test_changed_source_is_dirty_and_hashes_differently(checkout: Path) -> None:
    clean = current_commit(checkout)
    (checkout / "__init__.py").write_text("A = 2\n")
    changed = current_commit(checkout)
    assert changed.dirty
    assert changed.id == clean.id
    assert changed.source_hash != clean.source_hash


def test_new_module_is_dirty(checkout: Path) -> None:
    (checkout / "added.py").write_text("")
    assert current_commit(checkout).dirty


def test_changes_beside_the_package_do_not_count(checkout: Path) -> None:
    clean = current_commit(checkout)
    (checkout.parent / "recipe.toml").write_text("seed = 1\n")
    assert current_commit(checkout) == clean


def test_package_that_the_repository_does_not_track(checkout: Path) -> None:
    """An environment inside somebody's own repository must not report their commit."""
    installed = checkout.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert current_commit(installed).id is None


def test_repository_without_a_commit(package: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    assert current_commit(package).id is None


def test_source_hash_sees_renames(package: Path) -> None:
    (package / "a.py").write_text("x")
    before = current_commit(package).source_hash
    (package / "a.py").rename(package / "b.py")
    assert current_commit(package).source_hash != before


def test_source_hash_ignores_other_files(package: Path) -> None:
    before = current_commit(package).source_hash
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert current_commit(package).source_hash == before


def test_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert current_commit(package).id is None


def test_machine() -> None:
    machine = current_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.threads == torch.get_num_threads()
    assert machine.memory_bytes is not None
    assert machine.memory_bytes > 2**20
    assert (machine.device, machine.gpu) == ("cpu", None)


def test_versions() -> None:
    versions = current_versions()
    assert versions.python == platform.python_version()
    assert versions.torch == torch.__version__
    assert versions.rankloom == rankloom.__version__
