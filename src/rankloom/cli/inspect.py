"""`rankloom inspect RUN`: what happens inside a run, beside others if given."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rankloom.training.retrieval_run import RetrievalRun


def inspect(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder to compare with, on the same data; may be repeated."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Modules whose inputs get spectra, such as 'layers.*'; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Most rows for all but gains.")] = 4096,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    frequency: Annotated[
        str, typer.Option(help="What orders rows by frequency: min, mean or a field.")
    ] = "min",
    landscape: Annotated[
        bool, typer.Option("--landscape", help="Measure the loss around the weights.")
    ] = False,
    radius: Annotated[
        float | None,
        typer.Option(help="How far; at 1, the default, every weight vector moves by its length."),
    ] = None,
    tables: Annotated[
        bool | None, typer.Option("--tables", help="Move embedding tables too in the landscape.")
    ] = None,
    curvature: Annotated[
        bool | None,
        typer.Option("--curvature", help="Largest Hessian eigenvalue in the landscape."),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it moved.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of inspect.json and its page; default: RUN.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print inspect.json.")] = False,
) -> None:
    """Look into a run: gradients, layer inputs, stacks, loops, loss around it, gain over others.

    Of a retrieval model: its recall by the target's margin between two codes, and by its count.
    """
    from rankloom.cli.console import STDOUT
    from rankloom.config import parse_config
    from rankloom.evaluation.inspection import write_inspection
    from rankloom.evaluation.landscape import LandscapeConfig
    from rankloom.report.inspection import inspection_terminal
    from rankloom.report.inspection_page import write_inspection_page
    from rankloom.training.inspection import inspect_runs
    from rankloom.training.recipes import open_run
    from rankloom.training.retrieval_run import RetrievalRun
    from rankloom.training.run import Run

    options = {"radius": radius, "tables": tables, "curvature": curvature}
    settings = {name: value for name, value in options.items() if value is not None}
    if settings and not landscape:
        names = " and ".join(f"--{name}" for name in settings)
        verb = "is" if len(settings) == 1 else "are"
        raise ValueError(f"{names} {verb} part of the landscape; give --landscape too")
    around = parse_config(LandscapeConfig, settings, "landscape") if landscape else None
    opened = open_run(run, dataset=dataset)
    if isinstance(opened, RetrievalRun):
        if against or layers or landscape:
            raise ValueError(
                "--against, --layers and --landscape are for models that score rows; this one "
                "retrieves"
            )
        _inspect_retrieval(opened, split, out or run, as_json)
        return
    others = [Run.open(folder, dataset=opened.dataset) for folder in against or []]
    inspection = inspect_runs(
        opened,
        others,
        layers=layers or (),
        rows=rows,
        split=split,
        frequency=frequency,
        landscape=around,
    )
    folder = out or run
    files = [write_inspection(folder, inspection), write_inspection_page(folder, inspection)]
    if as_json:
        typer.echo(files[0].read_text(encoding="utf-8"))
        return
    STDOUT.print(inspection_terminal(inspection))
    for file in files:
        typer.echo(f"written: {file}")


def _inspect_retrieval(run: "RetrievalRun", split: str, folder: Path, as_json: bool) -> None:
    """Print and write the figures of a retrieval run."""
    from rankloom.cli.console import STDOUT
    from rankloom.evaluation.boundary import write_boundary
    from rankloom.report.boundary import boundary_terminal, write_boundary_page
    from rankloom.training.retrieval_inspection import inspect_retrieval

    figures = inspect_retrieval(run, split=split)
    files = [write_boundary(folder, figures), write_boundary_page(folder, figures)]
    if as_json:
        typer.echo(files[0].read_text(encoding="utf-8"))
        return
    STDOUT.print(boundary_terminal(figures))
    for file in files:
        typer.echo(f"written: {file}")
