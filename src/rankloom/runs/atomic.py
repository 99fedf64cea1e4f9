"""Files that are either the old one or the complete new one, never half of it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a new file beside `path` that takes its place when the block ends without an error.

    The folder is made when it is missing. After an error the new file is removed and `path` is as
    it was.

    Args:
        path: the file to write.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if _is_full(error):
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: {target} was not written; free space there and run again",
            ) from None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, replacing the file in one step; errors as in `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Writers made with Rust (polars, safetensors) raise errors of their own.
    return f"(os error {errno.ENOSPC})" in str(error)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
