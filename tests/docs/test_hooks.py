"""Every mark of every page is filled, from files that are there."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from run_records import build_record

from docs.hooks import (
    CHART_SCRIPTS,
    MARK,
    ROOT,
    gain_charts,
    inspection,
    leaderboard,
    on_page_content,
    on_page_markdown,
    on_post_build,
    zoo_table,
)
from rankloom.ranking.catalog import RANKING_ENTRIES
from rankloom.runs.record import write_record

PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_are_filled(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    filled = on_page_markdown(text)
    assert MARK not in filled
    assert (MARK in text) == (filled.strip() != text.strip())


def test_what_fills_a_mark_stands_as_deep_as_the_mark() -> None:
    text = on_page_markdown('??? note "Models"\n\n    <!-- generate: models ranking -->')
    head, table = text.split("\n\n")
    assert head == '??? note "Models"'
    assert all(line.startswith("    | ") for line in table.splitlines())


def test_zoo_shows_the_best_recipe_of_a_model(tmp_path: Path) -> None:
    for auc, model, recipe in ((0.9, "fm", "a"), (0.8, "fm", "b"), (0.7, "lr", "c")):
        metrics = {"test": {"auc": auc}, "valid": {"auc": 0.95}}
        record = build_record(model=model, name=recipe, recipe_hash=recipe, metrics=metrics)
        write_record(tmp_path / recipe, record)
    lines = zoo_table(str(tmp_path)).splitlines()[2:]
    assert len(lines) == len(RANKING_ENTRIES)
    years = [int(line.split(" | ")[2]) for line in lines]
    assert years == sorted(years)
    shown = {line.split("`")[1]: line.removesuffix(" |").split(" | ")[-1] for line in lines}
    assert shown.pop("fm") == "0.90000"
    assert shown.pop("lr") == "0.70000"
    assert set(shown.values()) == {"-"}


def test_a_leaderboard_shows_its_scenarios(tmp_path: Path) -> None:
    """With a limit, so that a data set of many scenarios stays readable."""
    figures = {f"s{n}": {"rows": n, "auc": 0.5 + n / 100} for n in range(1, 21)}
    record = build_record(scenarios={"test": figures})
    write_record(tmp_path, record)
    text = leaderboard(str(tmp_path))
    assert "auc by scenario:" in text
    assert "s20<br>20 rows | s19<br>19 rows" in text
    assert "s1<br>1 rows" not in text
    assert "The largest 8 of 20 reported scenarios are shown" in text
    assert "##" not in text


def test_what_draws_the_charts_comes_with_the_pages_that_have_some(tmp_path: Path) -> None:
    on_post_build({"site_dir": str(tmp_path)})
    assert on_page_content("<p>text</p>", SimpleNamespace(url="papers/fm/")) == "<p>text</p>"
    page = on_page_content('<div class="chart"></div>', SimpleNamespace(url="papers/fm/"))
    for script in CHART_SCRIPTS:
        assert f'<script src="../../{script}"></script>' in page
        assert (tmp_path / script).stat().st_size > 1000


def test_charts_of_records(tmp_path: Path) -> None:
    """Points of every model but the reference; nothing to draw is an error."""
    figures = {f"s{n}": {"rows": 100 * n, "auc": 0.5 + n / 100} for n in range(1, 4)}
    for model in ("fm", "lr"):
        for seed in (0, 1):
            record = build_record(
                model=model, name=model, recipe_hash=model, seed=seed, scenarios={"test": figures}
            )
            write_record(tmp_path / f"{model}-{seed}", record)
    drawn = gain_charts(f"{tmp_path} --metric auc --reference lr")
    assert drawn.count('<div class="chart"') == 1
    assert '"name":"fm"' in drawn
    assert '"name":"lr"' not in drawn
    with pytest.raises(ValueError, match="nothing to draw"):
        gain_charts(str(tmp_path))


def test_sections_of_an_inspection() -> None:
    """Charts before tables, or tables alone; a heading that is not there is an error."""
    saved = "benchmarks/results/ijcai18-cvr/inspect.json"
    heading = '"Generated weights of scenarios"'
    whole = inspection(f"{saved} {heading}")
    tables = inspection(f"{saved} {heading} --only tables")
    assert '<div class="chart"' not in tables
    assert whole.endswith(tables)
    assert whole.index('<div class="chart"') < whole.index("| ")
    with pytest.raises(KeyError):
        inspection(f"{saved} Elsewhere")
