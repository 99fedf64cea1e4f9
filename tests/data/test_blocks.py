from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.blocks import drop_blank_lines, line_blocks, read_ahead


@settings(deadline=None)
@given(st.text(alphabet='ab,"\n\r', min_size=1, max_size=60), st.integers(1, 9), st.booleans())
def test_blocks_join_to_the_file_and_end_outside_quotes(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int, quoted: bool
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "log.csv"
    data = text.encode()
    path.write_bytes(data)
    try:
        blocks = list(line_blocks(path, quoted=quoted, block_bytes=size))
    except ValueError as error:
        # Only a cell or line longer than eight blocks may be refused.
        longest = len(data) if quoted else max(len(line) for line in data.split(b"\n"))
        if "has no end" not in str(error) or longest <= 8 * size:
            raise
        return
    assert b"".join(blocks) == (data if data.endswith(b"\n") else data + b"\n")
    assert all(block.endswith(b"\n") for block in blocks)
    if quoted:
        assert all(block.count(b'"') % 2 == 0 for block in blocks[:-1])


def test_byte_order_mark_goes_and_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa\nb")
    assert list(line_blocks(tmp_path / "a.csv", quoted=False)) == [b"a\n", b"b\n"]
    (tmp_path / "b.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.csv is empty"):
        list(line_blocks(tmp_path / "b.csv", quoted=False))


def test_an_open_quote_does_not_read_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'1,"x\n' + b"2,y\n" * 1000)
    with pytest.raises(ValueError, match="a line or quoted cell has no end; check its quotes"):
        list(line_blocks(tmp_path / "a.csv", quoted=True, block_bytes=64))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"a\n\n\nb\n", b"a\nb\n"),
        (b"\n\na\r\n\r\nb\r\n\r\n", b"a\r\nb\r\n"),
        (b'"a\n\nb"\n\n', b'"a\n\nb"\n'),
        (b"a\nb\n", b"a\nb\n"),
    ],
)
def test_blank_lines_go_outside_quotes(block: bytes, expected: bytes) -> None:
    assert drop_blank_lines(block).replace(b"\r", b"") == expected.replace(b"\r", b"")


def test_read_ahead_gives_the_same_blocks_and_the_error() -> None:
    def failing():  # type: ignore[no-untyped-def]
        yield b"a"
        yield b"b"
        raise ValueError("damaged")

    blocks = read_ahead(failing())
    assert next(blocks) == b"a"
    assert next(blocks) == b"b"
    with pytest.raises(ValueError, match="damaged"):
        next(blocks)
    assert list(read_ahead(iter([b"a", b"b"]))) == [b"a", b"b"]
    # A reader that stops early leaves nothing behind.
    early = read_ahead(iter([b"a", b"b", b"c"]))
    assert next(early) == b"a"
    early.close()
