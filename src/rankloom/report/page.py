"""One self-contained HTML page of a comparison: it opens from disk and loads nothing.

The page holds plotly once, its own style and a few lines of script; a content security policy
forbids it to fetch anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankloom.report.leaderboard import Leaderboard, build_leaderboard
from rankloom.report.rows import Published
from rankloom.report.sections import build_section
from rankloom.report.tables import write_tables
from rankloom.report.templates import render
from rankloom.runs.atomic import write_text
from rankloom.runs.record import StoredRun

PAGE_FILE = "index.html"
"""Name of the page in a report folder."""


def write_report(
    folder: str | Path,
    runs: Sequence[StoredRun],
    *,
    title: str = "Comparison",
    split: str = "test",
    metrics: Sequence[str] | None = None,
    reference: str | None = None,
    published: Mapping[str, Published] | None = None,
    commands: Sequence[str] = (),
) -> tuple[Leaderboard, list[Path]]:
    """Write leaderboard.json, .md, .csv and index.html of some runs.

    Args:
        folder: folder of the report; made when missing.
        runs: the runs to compare, failed ones included (they are listed, not compared).
        title: heading of the page.
        split: split whose metrics are compared.
        metrics: metric columns; None: all overall ones.
        reference: label, recipe, model or recipe hash of the row to compare with.
        published: published results by recipe or model name.
        commands: what one types to repeat the comparison.

    Returns:
        The leaderboard and the files written.

    Raises:
        ValueError: as `build_leaderboard`.
        OSError: the folder cannot be written.
    """
    leaderboard = build_leaderboard(
        [run.record for run in runs],
        split=split,
        metrics=metrics,
        reference=reference,
        published=published,
    )
    base = Path(folder)
    files = list(write_tables(base, leaderboard))
    page = base / PAGE_FILE
    write_page(page, leaderboard, runs, title=title, commands=commands)
    return leaderboard, [*files, page]


def write_page(
    path: str | Path,
    leaderboard: Leaderboard,
    runs: Sequence[StoredRun],
    *,
    title: str = "Comparison",
    commands: Sequence[str] = (),
) -> None:
    """Write the page of a leaderboard in one step; arguments as in `render_page`.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(path, render_page(leaderboard, runs, title=title, commands=commands))


def render_page(
    leaderboard: Leaderboard,
    runs: Sequence[StoredRun],
    *,
    title: str = "Comparison",
    commands: Sequence[str] = (),
) -> str:
    """The HTML text of a leaderboard and its runs; the same input gives the same text.

    Args:
        leaderboard: the tables.
        runs: the runs that they were built from, failed ones included; curves come from their
            histories, and a run without one has no curve.
        title: heading of the page.
        commands: what one types to repeat the comparison.
    """
    ordered = sorted(runs, key=lambda run: (run.record.name, run.record.seed, run.record.run_id))
    sections = [build_section(table, ordered) for table in leaderboard.tables]
    has_charts = any(section["charts"] for section in sections)
    return render(
        "page.html.j2",
        charts=has_charts,
        title=title,
        summary=_summary(leaderboard, runs),
        warnings=leaderboard.warnings,
        sections=sections,
        repeat="The same seeds on the same machine with the same number of threads give the same "
        "numbers."
        if commands
        else "Save a recipe from above under its name; the same seed on the same machine with "
        "the same number of threads gives the same numbers.",
        commands=list(commands) or _train_commands(leaderboard),
    )


def _summary(leaderboard: Leaderboard, runs: Sequence[StoredRun]) -> str:
    rows = sum(len(table.rows) for table in leaderboard.tables)
    latest = max(run.record.finished for run in runs)
    return (
        f"{rows} recipes, {len(runs)} runs; the last one finished on "
        f"{latest.strftime('%Y-%m-%d at %H:%M')} UTC."
    )


def _train_commands(leaderboard: Leaderboard) -> list[str]:
    return [
        f"rankloom train {row.name}.toml --set seed={seed}"
        for table in leaderboard.tables
        for row in table.rows
        for seed in row.seeds
    ]
