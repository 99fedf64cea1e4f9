"""`rankloom scale RECIPE ... --grid SCALE.toml`: how a metric grows with compute."""

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


def scale(
    recipes: Recipes,
    grid: Annotated[Path, typer.Option(help="Sizes to train, and how many seeds (TOML).")],
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of each size, in place of the grid's.")
    ] = None,
    dataset: OtherDataset = None,
    settings: Settings = None,
    out: RunsFolder = Path("runs"),
    report: Annotated[Path, typer.Option(help="Folder of curves and page.")] = Path(
        "reports/scale"
    ),
    reference: Reference = None,
    published: PublishedFile = None,
    metric: Annotated[str, typer.Option(help="Metric of the curves.")] = "auc",
    split: Annotated[str, typer.Option(help="Split of the metric.")] = "test",
    samples: Annotated[int, typer.Option(help="Bootstrap draws of the intervals.")] = 1000,
    fresh: Fresh = False,
    jobs: Jobs = 1,
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

    overrides = overrides_of(settings, dataset)
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
