"""`rankloom depths RUN`: depths, oracle headroom and depth policies of a run."""

from pathlib import Path
from typing import Annotated

import typer


def depths(
    run: Annotated[Path, typer.Argument(help="Run folder, of a model with depths.")],
    split: Annotated[str, typer.Option(help="Split that is reported.")] = "test",
    fit: Annotated[str, typer.Option(help="Split that policies are fitted on.")] = "valid",
    points: Annotated[int, typer.Option(help="Mean costs of exits, 1 to 100.")] = 7,
    draws: Annotated[int, typer.Option(help="Draws of the noise beside the oracle.")] = 20,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it moved.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of depths.json and its page; default: RUN.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print depths.json.")] = False,
) -> None:
    """Compare a run's depths, the oracle over them, noise in its place, and policies."""
    from rankloom.cli.console import STDOUT
    from rankloom.evaluation.depth_figures import write_depths
    from rankloom.report.depths import depth_tables
    from rankloom.report.depths_page import write_depths_page
    from rankloom.report.inspection import tables_terminal
    from rankloom.training.depths import measure_depths
    from rankloom.training.run import Run

    opened = Run.open(run, dataset=dataset)
    figures = measure_depths(opened, split=split, fitted_on=fit, points=points, draws=draws)
    folder = out or run
    files = [write_depths(folder, figures), write_depths_page(folder, figures)]
    if as_json:
        typer.echo(files[0].read_text(encoding="utf-8"))
        return
    STDOUT.print(tables_terminal(depth_tables(figures)))
    for file in files:
        typer.echo(f"written: {file}")
