"""Every mark of every page is filled, from files that are there."""

from pathlib import Path

import pytest

from docs.hooks import MARK, ROOT, on_page_markdown, zoo_table
from rankloom.ranking.catalog import RANKING_ENTRIES
from rankloom.report.seeds import Summary
from rankloom.report.tables import read_json, write_json

PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_are_filled(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    filled = on_page_markdown(text)
    assert MARK not in filled
    assert (MARK in text) == (filled.strip() != text.strip())


def test_zoo_shows_the_best_recipe_of_a_model(tmp_path: Path) -> None:
    board = read_json(ROOT / "benchmarks/results/frappe/leaderboard.json")
    table = board.tables[0]
    rows = []
    for auc, model in ((0.9, "fm"), (0.8, "fm"), (0.7, "lr")):
        summary = Summary(mean=auc, deviation=0.0, values={1: auc})
        row = table.rows[0].model_copy(update={"model": model, "metrics": {"auc": summary}})
        rows.append(row)
    split = table.model_copy(update={"rows": tuple(rows)})
    other = split.model_copy(update={"split": "valid", "rows": (rows[0], rows[2])})
    write_json(tmp_path / "board.json", board.model_copy(update={"tables": (split, other)}))
    lines = zoo_table(str(tmp_path / "board.json")).splitlines()[2:]
    assert len(lines) == len(RANKING_ENTRIES)
    years = [int(line.split(" | ")[2]) for line in lines]
    assert years == sorted(years)
    shown = {line.split("`")[1]: line.removesuffix(" |").split(" | ")[-1] for line in lines}
    assert shown.pop("fm") == "0.90000"
    assert shown.pop("lr") == "0.70000"
    assert set(shown.values()) == {"-"}
