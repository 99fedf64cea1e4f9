"""`rankloom train RECIPE.toml`: one run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.options import OtherDataset, RunsFolder, Settings, overrides_of


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML).")],
    dataset: OtherDataset = None,
    out: RunsFolder = Path("runs"),
    settings: Settings = None,
    fresh: Annotated[bool, typer.Option(help="Start anew instead of continuing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record's figures.")] = False,
) -> None:
    """Train one recipe. Interrupted, the same command continues where it stopped."""
    from rankloom.cli.console import figure_lines, training_progress
    from rankloom.evaluation.by_scenario import split_summary
    from rankloom.training.recipes import load_any_recipe, run_recipe

    overrides = overrides_of(settings, dataset)
    chosen = load_any_recipe(recipe, overrides)
    with training_progress() as update:
        run = run_recipe(
            chosen,
            out=out,
            resume=not fresh,
            progress=lambda state: update(chosen.name, state),
        )
    record = run.record
    if as_json:
        typer.echo(json.dumps({"folder": str(run.folder), "metrics": record.metrics}))
        return
    for split, metrics in record.metrics.items():
        # Figures over scenarios stand in the record and in reports: with them it is too much.
        overall = {name: value for name, value in metrics.items() if not split_summary(name)[1]}
        figures = (f"{name} {value:.6f}" for name, value in overall.items())
        typer.echo(figure_lines(f"{split:5}  ", figures))
    typer.echo(f"run folder: {run.folder}")
