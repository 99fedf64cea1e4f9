"""Every mark of every page is filled, from files that are there."""

from pathlib import Path

import pytest

from docs.hooks import MARK, on_page_markdown

PAGES = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_are_filled(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    filled = on_page_markdown(text)
    assert MARK not in filled
    assert (MARK in text) == (filled.strip() != text.strip())
