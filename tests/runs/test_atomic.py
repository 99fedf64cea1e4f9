import os
import stat
from pathlib import Path

import pytest

from rankloom.runs.atomic import replacing, write_text


def fail_halfway(file: Path, error: BaseException) -> None:
    with replacing(file) as part:
        part.write_text("half")
        raise error


def test_writes_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_text(file, "one\n")
    write_text(file, "two é\n")
    assert file.read_bytes() == "two é\n".encode()
    assert os.listdir(file.parent) == ["a.txt"]


def test_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="disk full"):
        fail_halfway(file, OSError("disk full"))
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_halfway(tmp_path / "a.txt", KeyboardInterrupt())
    assert os.listdir(tmp_path) == []


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
