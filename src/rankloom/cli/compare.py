"""`rankloom compare RECIPE ... --seeds N`: leaderboard and page."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.options import (
    Fresh,
    Jobs,
    OtherDataset,
    PublishedFile,
    Recipes,
    Reference,
    RunsFolder,
    Settings,
    overrides_of,
)


def compare(
    recipes: Recipes,
    seeds: Annotated[int, typer.Option(help="Seeds of each recipe, from its own on.")] = 3,
    dataset: OtherDataset = None,
    settings: Settings = None,
    out: RunsFolder = Path("runs"),
    report: Annotated[Path, typer.Option(help="Folder of leaderboard and page.")] = Path("reports"),
    reference: Reference = None,
    published: PublishedFile = None,
    split: Annotated[str, typer.Option(help="Split whose metrics are compared.")] = "test",
    fresh: Fresh = False,
    jobs: Jobs = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print leaderboard.json.")] = False,
) -> None:
    """Train every recipe with every seed, skipping recorded runs, and write the leaderboard."""
    from rankloom.cli.console import STDERR, STDOUT, training_progress
    from rankloom.cli.report import read_published
    from rankloom.report.page import write_report
    from rankloom.report.tables import terminal
    from rankloom.training.compare import PlannedRun
    from rankloom.training.compare import compare as run_compare
    from rankloom.training.recipes import load_any_recipe

    overrides = overrides_of(settings, dataset)
    chosen = [load_any_recipe(path, overrides) for path in recipes]
    beside = None if published is None else read_published(published)

    def announce(run: PlannedRun) -> None:
        state = "recorded already" if run.recorded else "training"
        STDERR.print(
            f"[{run.number}/{run.total}] {run.recipe.name} seed {run.recipe.seed}: {state}",
            highlight=False,
            markup=False,
        )

    with training_progress(bars=jobs) as update:
        runs = run_compare(
            chosen,
            seeds=seeds,
            out=out,
            fresh=fresh,
            jobs=jobs,
            announce=announce,
            progress=lambda run, state: update(f"{run.recipe.name} seed {run.recipe.seed}", state),
        )
    board, files = write_report(
        report,
        runs,
        split=split,
        reference=reference,
        published=beside,
        commands=["rankloom " + shlex.join(sys.argv[1:])],
    )
    if as_json:
        typer.echo((report / "leaderboard.json").read_text(encoding="utf-8"))
        return
    STDOUT.print(terminal(board))
    for file in files:
        typer.echo(f"written: {file}")
    typer.echo(f"runs:    {out}")
