"""`rankloom evaluate RUN`: metrics of a trained run."""

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="May be repeated; default: the recipe's.")
    ] = None,
    switched_off: Annotated[
        list[str] | None,
        typer.Option(
            help="Field that the model is not given, or none; may be repeated. "
            "Default: the recipe's."
        ),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Evaluate a run on a split of its data set, over all rows and per scenario."""
    from rankloom.training.run import Run

    fields = () if switched_off == ["none"] else switched_off
    evaluation = Run.open(run, dataset=dataset).evaluate(
        split, metrics=metrics, switched_off=fields
    )
    if as_json:
        result = {
            "metrics": evaluation.metrics,
            "scenarios": evaluation.scenarios,
            "worst": evaluation.worst,
        }
        typer.echo(json.dumps(result))
        return
    for name, value in evaluation.metrics.items():
        typer.echo(f"{name:24} {value:.6f}")
    for scenario, figures in evaluation.scenarios.items():
        text = "  ".join(f"{name} {value:.6g}" for name, value in figures.items())
        typer.echo(f"scenario {scenario}: {text}")
    for name, scenario in evaluation.worst.items():
        typer.echo(f"worst {name}: {scenario}")
