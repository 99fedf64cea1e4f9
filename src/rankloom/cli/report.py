"""`rankloom report FOLDERS`: pages of recorded runs or of tokenizers, nothing trained."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankloom.cli.options import PublishedFile, Reference

if TYPE_CHECKING:
    from rankloom.report.rows import Published


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, or folders of run folders; with --tokenizers, folders of semantic "
            "ids, or runs that hold them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of leaderboard and page.")] = Path("reports"),
    tokenizers: Annotated[
        bool, typer.Option("--tokenizers", help="Show tokenizers of one catalogue side by side.")
    ] = False,
    reference: Reference = None,
    published: PublishedFile = None,
    split: Annotated[str, typer.Option(help="Split whose metrics are compared.")] = "test",
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Column, the first orders the rows; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print leaderboard.json.")] = False,
) -> None:
    """Make the leaderboard and the page from run records, or the page of some tokenizers."""
    if tokenizers:
        if reference is not None or published is not None or as_json:
            raise ValueError("--reference, --published and --json are for runs, not for tokenizers")
        _report_tokenizers(runs, out)
        return
    from rankloom.cli.console import STDOUT
    from rankloom.report.page import write_report
    from rankloom.report.tables import terminal
    from rankloom.runs.record import find_records

    found = [run for folder in runs for run in find_records(folder)]
    if not found:
        raise ValueError(f"no run records in {', '.join(str(folder) for folder in runs)}")
    board, files = write_report(
        out,
        found,
        split=split,
        metrics=metrics,
        reference=reference,
        published=None if published is None else read_published(published),
        commands=["rankloom " + shlex.join(sys.argv[1:])],
    )
    if as_json:
        typer.echo((out / "leaderboard.json").read_text(encoding="utf-8"))
        return
    STDOUT.print(terminal(board))
    for file in files:
        typer.echo(f"written: {file}")


def _report_tokenizers(folders: list[Path], out: Path) -> None:
    """Print the measures of tokenizers and write their page."""
    from rankloom.cli.console import STDOUT
    from rankloom.report.inspection import tables_terminal
    from rankloom.report.tokenizers import find_tokenized, measure_table, named
    from rankloom.report.tokenizers_page import write_tokenizers_page

    ids = named(find_tokenized(folders))
    STDOUT.print(tables_terminal([measure_table(ids)]))
    typer.echo(f"written: {write_tokenizers_page(out, ids)}")


def read_published(path: Path) -> dict[str, "Published"]:
    """Published results by recipe or model name, from a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of that form.
    """
    from rankloom.config import parse_config, read_toml
    from rankloom.report.rows import Published

    return {
        name: parse_config(Published, values, f"{path}: {name}")
        for name, values in read_toml(path).items()
    }
