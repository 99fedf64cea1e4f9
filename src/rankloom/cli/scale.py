"""`rankloom scale RECIPE ... --grid SCALE.toml`: how a metric grows with compute."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def scale(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes (TOML).")],
    grid: Annotated[Path, typer.Option(help="Sizes to train, and how many seeds (TOML).")],
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of each size, in place of the grid's.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder, in place of the recipes' own.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, dotted; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that run folders go into.")] = Path("runs"),
    report: Annotated[Path, typer.Option(help="Folder of curves and page.")] = Path(
        "reports/scale"
    ),
    reference: Annotated[
        str | None, typer.Option(help="Recipe or model that the others are compared with.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="What papers claim, to show beside (TOML).")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the curves.")] = "auc",
    split: Annotated[str, typer.Option(help="Split of the metric.")] = "test",
    samples: Annotated[int, typer.Option(help="Bootstrap draws of the intervals.")] = 1000,
    fresh: Annotated[bool, typer.Option(help="Train again what is recorded.")] = False,
    jobs: Annotated[
        int, typer.Option(help="Runs at once; more than one have one thread each.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print scaling.json.")] = False,
) -> None:
    """Train every recipe at every size, skipping recorded runs, and fit metric against compute."""
    from rankloom.cli.console import STDERR, STDOUT, training_progress
    from rankloom.cli.report import read_published
    from rankloom.report.scaling import SCALING_FILE, build_scaling
    from rankloom.report.scaling_page import write_scaling
    from rankloom.report.scaling_text import terminal
    from rankloom.training.jobs import Outcome
    from rankloom.training.recipe import load_recipe
    from rankloom.training.scale import PlannedSize, size_name
    from rankloom.training.scale import scale as run_scale

    overrides = [*(settings or []), *([f"dataset={dataset}"] if dataset else [])]
    chosen = [load_recipe(path, overrides) for path in recipes]
    beside = None if published is None else read_published(published)

    def name(planned: PlannedSize) -> str:
        return f"{planned.recipe.name} {size_name(planned.settings)} seed {planned.recipe.seed}"

    def say(planned: PlannedSize, text: str) -> None:
        STDERR.print(
            f"[{planned.number}/{planned.total}] {name(planned)}: {text}",
            highlight=False,
            markup=False,
        )

    def finished(planned: PlannedSize, outcome: Outcome) -> None:
        if isinstance(outcome, ValueError):
            say(planned, f"failed: {outcome}")

    with training_progress(bars=jobs) as update:
        sizes = run_scale(
            chosen,
            grid,
            seeds=seeds,
            out=out,
            fresh=fresh,
            jobs=jobs,
            announce=lambda run: say(run, "recorded already" if run.recorded else "training"),
            progress=lambda planned, state: update(name(planned), state),
            finished=finished,
        )
    scaling = build_scaling(
        sizes, metric=metric, split=split, reference=reference, published=beside, samples=samples
    )
    files = write_scaling(report, scaling, command="rankloom " + shlex.join(sys.argv[1:]))
    if as_json:
        typer.echo((report / SCALING_FILE).read_text(encoding="utf-8"))
        return
    STDOUT.print(terminal(scaling))
    for file in files:
        typer.echo(f"written: {file}")
    typer.echo(f"runs:    {out}")
