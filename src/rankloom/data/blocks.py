"""Compressed or plain text files as blocks of whole lines, so that no file is ever held whole."""

import gzip
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

BLOCK_BYTES = 2**25
"""Decompressed bytes of one block: large enough for the parser's threads, small beside a model."""
MAX_BLOCKS_PER_CELL = 8
"""A quoted cell that has no end after this many blocks is taken for an unbalanced quote."""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, looking through `.gz` and `.zst`.

    Raises:
        ValueError: the compressed data is damaged or cut short.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield cast(BinaryIO, stream)
        elif suffix == ".zst":
            with pa.input_stream(str(path), compression="zstd") as stream:
                yield cast(BinaryIO, stream)
        else:
            with path.open("rb", buffering=0) as stream:
                yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise ValueError(f"{path.name}: the compressed data is damaged: {error}") from None
    except OSError as error:
        # Arrow reports damaged zstd data as a plain OSError without an error number.
        if suffix == ".zst" and error.errno is None:
            raise ValueError(f"{path.name}: the compressed data is damaged: {error}") from None
        raise


def line_blocks(path: Path, *, quoted: bool, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    r"""Yield the file in blocks that end at the end of a line.

    A byte order mark is dropped and the last line gets its newline. With `quoted` a newline between
    double quotes does not end a line.

    Raises:
        ValueError: the file is empty, its compression is damaged, or a quote is never closed.
    """
    carry = b""
    seen = False
    with open_bytes(path) as stream:
        while True:
            read = stream.read(block_bytes)
            if not seen:
                read = read.removeprefix(b"\xef\xbb\xbf")
            if not read:
                break
            seen = True
            block = carry + read
            end = _end_of_lines(block, quoted=quoted)
            carry = block[end:]
            if len(carry) > MAX_BLOCKS_PER_CELL * block_bytes:
                raise ValueError(f"{path.name}: a line or quoted cell has no end; check its quotes")
            if end:
                yield block[:end]
    if not seen:
        raise ValueError(f"{path.name} is empty")
    if carry:
        yield carry if carry.endswith(b"\n") else carry + b"\n"


def read_ahead(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, each made in a second thread while the one before is worked on."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rankloom-read")
    try:
        upcoming = pool.submit(next, blocks, None)
        while (block := upcoming.result()) is not None:
            upcoming = pool.submit(next, blocks, None)
            yield block
    finally:
        # Not joined: after an error it is the garbage collector that closes this generator, maybe
        # in a thread that is just starting and holds the lock that joining another one takes.
        pool.shutdown(wait=False)


def drop_blank_lines(block: bytes) -> bytes:
    r"""Remove blank lines, which the parser would read as rows of missing values.

    Inside a block that holds quotes only those at the ends go, as a quoted cell may hold some.
    """
    if b'"' not in block and (b"\n\n" in block or b"\n\r\n" in block):
        block = re.sub(rb"\n(?:\r?\n)+", b"\n", block)
    block = block.lstrip(b"\r\n")
    if block.endswith((b"\n\n", b"\n\r\n")):
        block = block.rstrip(b"\r\n") + b"\n"
    return block


def _end_of_lines(block: bytes, *, quoted: bool) -> int:
    """Length of the longest start of `block` that ends with a complete line."""
    end = block.rfind(b"\n") + 1
    # Looking for one quote is far cheaper than counting none.
    if not quoted or block.find(b'"', 0, end) < 0:
        return end
    odd = block.count(b'"', 0, end) % 2 == 1
    while odd and end:
        # Step back before the last quote: the newlines after it lie inside the open cell.
        before = block.rfind(b"\n", 0, block.rfind(b'"', 0, end)) + 1
        odd = (block.count(b'"', before, end) % 2 == 1) != odd
        end = before
    return end
