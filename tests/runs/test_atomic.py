import errno
import os
import stat
from pathlib import Path

import polars as pl
import pytest
from safetensors import SafetensorError

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


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pl.exceptions.ComputeError("parquet: IO error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: No space left on device (os error 28)"),
    ],
    ids=["python", "polars", "safetensors"],
)
def test_a_full_disk_is_one_sentence_whatever_writes(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"the disk is full: .*a\.txt was not written; free"
    ) as caught:
        fail_halfway(tmp_path / "a.txt", error)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(pl.exceptions.ComputeError, match="nonsense"):
        fail_halfway(tmp_path / "a.txt", pl.exceptions.ComputeError("nonsense"))
