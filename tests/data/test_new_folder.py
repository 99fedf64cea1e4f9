import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankloom.data.new_folder import new_folder

WRITER = """
import sys, time
from pathlib import Path
from rankloom.data.new_folder import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def partial_folders(parent: Path) -> list[Path]:
    return sorted(parent.glob(".*.partial-*"))


def writing(target: Path) -> subprocess.Popen[str]:
    """A process that is writing the target right now."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data"
    with new_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert partial_folders(target.parent) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "deep" / "data"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with writing(target) as process:
        process.send_signal(signal.SIGKILL)
    assert len(partial_folders(tmp_path)) == 1
    with new_folder(target):
        assert len(partial_folders(tmp_path)) == 1  # its own
    assert partial_folders(tmp_path) == []


def test_a_living_writer_and_other_targets_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".other.partial-x"
    other.mkdir()
    target = tmp_path / "data"
    with writing(target) as process:
        try:
            (theirs,) = [p for p in partial_folders(tmp_path) if p != other]
            with new_folder(target):
                assert (theirs / "half").is_file()
        finally:
            process.kill()
    assert theirs.is_dir()
    assert other.is_dir()
