"""`rankloom compare RECIPE ... --seeds N`: leaderboard and page."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def compare(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes (TOML).")],
    seeds: Annotated[int, typer.Option(help="Seeds of each recipe, from its own on.")] = 3,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder, in place of the recipes' own.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, dotted; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that run folders go into.")] = Path("runs"),
    report: Annotated[Path, typer.Option(help="Folder of leaderboard and page.")] = Path("reports"),
    reference: Annotated[
        str | None,
        typer.Option(help="Recipe or model that the others are compared with, per scenario too."),
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="Published values to show beside (TOML).")
    ] = None,
    split: Annotated[str, typer.Option(help="Split whose metrics are compared.")] = "test",
    fresh: Annotated[bool, typer.Option(help="Train again what is recorded.")] = False,
    jobs: Annotated[
        int, typer.Option(help="Runs at once; more than one have one thread each.")
    ] = 1,
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

    overrides = [*(settings or []), *([f"dataset={dataset}"] if dataset else [])]
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
