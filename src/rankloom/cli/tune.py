"""`rankloom tune RECIPE ... --grid GRID.toml`: the best setting of each recipe on validation."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.options import Jobs, OtherDataset, Recipes, RunsFolder, Settings, overrides_of


def tune(
    recipes: Recipes,
    grid: Annotated[Path, typer.Option(help="Values to try, and how many trials (TOML).")],
    trials: Annotated[
        int | None, typer.Option(help="Trials of each recipe, in place of the grid's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of order and trials, in place of the grid's.")
    ] = None,
    dataset: OtherDataset = None,
    settings: Settings = None,
    out: RunsFolder = Path("runs"),
    report: Annotated[Path, typer.Option(help="Folder of results and best recipes.")] = Path(
        "reports/tune"
    ),
    jobs: Jobs = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print tune.json.")] = False,
) -> None:
    """Try settings on the validation split, as many for every recipe, and write the best ones."""
    from rankloom.cli.console import STDERR, STDOUT, training_progress
    from rankloom.report.texts import number
    from rankloom.report.tuning import terminal, write_json, write_tuning
    from rankloom.training.recipes import load_any_recipe
    from rankloom.training.trials import RESULT_FILE, Trial, TuneResult
    from rankloom.training.tune import PlannedTrial
    from rankloom.training.tune import tune as run_tune

    overrides = overrides_of(settings, dataset)
    chosen = [load_any_recipe(path, overrides) for path in recipes]

    def name(planned: PlannedTrial) -> str:
        return f"{planned.recipe} trial {planned.trial} of {planned.trials}"

    def say(planned: PlannedTrial, text: str) -> None:
        STDERR.print(
            f"[{planned.number}/{planned.total}] {name(planned)}: {text}",
            highlight=False,
            markup=False,
        )

    def announce(planned: PlannedTrial) -> None:
        values = "; ".join(f"{key}={value}" for key, value in planned.settings.items())
        state = "recorded already" if planned.recorded else "training"
        say(planned, f"{state}{' with ' if values else ''}{values}")

    def finished(planned: PlannedTrial, trial: Trial, result: TuneResult) -> None:
        write_json(report, result)  # a long search can be watched, and leaves what it found
        if trial.status == "failed":
            say(planned, f"failed: {trial.error}")
        else:
            say(planned, f"{number(trial.metric, 6)} after {trial.epochs} epochs")

    with training_progress(bars=jobs) as update:
        result = run_tune(
            chosen,
            grid,
            trials=trials,
            seed=seed,
            out=out,
            jobs=jobs,
            announce=announce,
            progress=lambda planned, state: update(name(planned), state),
            finished=finished,
        )
    files = write_tuning(report, result, command="rankloom " + shlex.join(sys.argv[1:]))
    if as_json:
        typer.echo((report / RESULT_FILE).read_text(encoding="utf-8"))
    else:
        STDOUT.print(terminal(result))
        for file in files:
            typer.echo(f"written: {file}")
        typer.echo(f"runs:    {out}")
    without = [search.recipe for search in result.searches if search.best is None]
    if without:
        raise ValueError(f"every trial failed of {', '.join(without)}; tune.md says why")
