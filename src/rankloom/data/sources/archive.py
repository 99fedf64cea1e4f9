"""Archives, extracted without leaving their folder.

A member with an absolute path, with `..` in it, or that is a link or a device is refused, and then
nothing of the archive is extracted.
"""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath


def is_archive(path: Path) -> bool:
    """Whether a file is a zip (a wheel is one) or tar archive, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def extract(archive: Path, into: Path, names: Collection[str]) -> None:
    """Extract the members called `names` (any folder) of a zip or tar archive into a folder.

    Args:
        archive: zip file, wheel, or tar file (plain or compressed).
        into: existing folder.
        names: file names wanted, without folders; everything else is left in the archive.

    Raises:
        ValueError: the archive is damaged, or a member would leave the folder or is a link.
    """
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, into, names)
        else:
            _extract_tar(archive, into, names)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{archive}: cannot be read as an archive: {error}") from None


def _extract_zip(archive: Path, into: Path, names: Collection[str]) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            mode = member.external_attr >> 16
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(_refusal(archive, member.filename, "is a link or a device"))
            _check_name(archive, member.filename)
        for member in members:
            path = PurePosixPath(member.filename)
            if not member.is_dir() and path.name in names:
                target = _target(into, path)
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)


def _extract_tar(archive: Path, into: Path, names: Collection[str]) -> None:
    # Two passes: the first checks every member, so that a bad one leaves nothing behind.
    with tarfile.open(archive) as opened:
        for member in opened:
            if not (member.isfile() or member.isdir()):
                raise ValueError(_refusal(archive, member.name, "is a link or a device"))
            _check_name(archive, member.name)
    with tarfile.open(archive) as opened:
        for member in opened:
            path = PurePosixPath(member.name)
            source = opened.extractfile(member) if member.isfile() else None
            if source is not None and path.name in names:
                with source, _target(into, path).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)


def _target(into: Path, path: PurePosixPath) -> Path:
    target = into.joinpath(*path.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _check_name(archive: Path, name: str) -> None:
    # Zip files made on Windows may hold backslashes and drive letters.
    path = PurePosixPath(name.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    if path.is_absolute() or ".." in path.parts or drive:
        raise ValueError(_refusal(archive, name, "would be written outside the folder"))


def _refusal(archive: Path, member: str, why: str) -> str:
    return f"{archive}: member {member!r} {why}; nothing was extracted"
