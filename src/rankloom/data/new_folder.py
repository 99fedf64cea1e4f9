"""A data set's folder while it is written: complete under its name, or not there at all."""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankloom.data.manifest import MANIFEST_NAME


def check_target(target: Path, overwrite: bool, manifest_name: str = MANIFEST_NAME) -> None:
    """Refuse a place that a data set must not be written to.

    Args:
        target: where the data set is to lie.
        overwrite: whether it may replace another data set.
        manifest_name: file by which a data set of the same kind is known.

    Raises:
        FileExistsError: there is a file, or a folder that may not be replaced.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; give a folder to make")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} exists and is not empty; choose another folder or set overwrite"
        )
    if not (target / manifest_name).is_file():
        raise FileExistsError(
            f"{target} holds something else than a data set of this kind, which is never "
            "overwritten; choose another folder"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its name at the end, or disappears.

    What a killed process left of the same target is removed first. The process that writes a
    folder holds a lock on it, which the system lets go when the process ends, however it ends.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    made = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for abandoned in target.parent.glob(f"{glob.escape(prefix)}*"):
        with _locked(abandoned) as alone:
            if alone:
                shutil.rmtree(abandoned, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with _locked(folder):
            yield folder
        folder.chmod(0o755)  # mkdtemp's folder is for its owner alone
        _put_in_place(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full: data set {target.name} was not written; free space in "
                f"{made[-1].parent if made else target.parent} and run prepare again",
            ) from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for the same target.

    For what is found again when it is there: the process that waited looks once more. The lock is
    an empty hidden file beside the target, which stays; the system lets go of it when its process
    ends, however it ends. Where the file system has no locks nothing is waited for.

    Raises:
        OSError: the lock file cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds the folder's lock inside the block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by another process, or the file system has no locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to one that something else stands in."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _put_in_place(folder: Path, target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        target.rename(old / "data")
        try:
            folder.rename(target)
        except BaseException:
            (old / "data").rename(target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)
    _sync_path(target.parent)


def sync_folder(folder: Path) -> None:
    """Have everything below the folder on the disk, and the folder itself."""
    for path in folder.rglob("*"):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
