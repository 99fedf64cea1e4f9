"""`rankloom evaluate RUN`: metrics of a trained run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rankloom.training.retrieval_run import RetrievalRun


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
    """Evaluate a run on a split of its data set, over all rows and per scenario.

    Of a retrieval model the held-out items are ranked, over all users and per slice of items, with
    bootstrap intervals over users.
    """
    from rankloom.training.recipes import open_run
    from rankloom.training.retrieval_run import RetrievalRun

    opened = open_run(run, dataset=dataset)
    if isinstance(opened, RetrievalRun):
        if switched_off:
            raise ValueError("--switched-off is for models that score rows; this one retrieves")
        _evaluate_retrieval(opened, split, metrics, as_json)
        return
    fields = () if switched_off == ["none"] else switched_off
    evaluation = opened.evaluate(split, metrics=metrics, switched_off=fields)
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


def _evaluate_retrieval(
    run: "RetrievalRun", split: str, metrics: list[str] | None, as_json: bool
) -> None:
    """Print the figures of a retrieval model."""
    from rankloom.cli.console import figure_lines
    from rankloom.evaluation.retrieval_metrics import per_user

    evaluation = run.evaluate(split)
    shown = evaluation.metrics
    if metrics is not None:
        shown = {name: float(per_user(evaluation.places, name).mean()) for name in metrics}
    intervals = {
        name: evaluation.interval(name) for name in shown if "@" in name and evaluation.rows
    }
    if as_json:
        ends = {name: [found.low, found.high] for name, found in intervals.items()}
        result = {"metrics": shown, "intervals": ends, "slices": evaluation.scenarios}
        typer.echo(json.dumps(result))
        return
    if intervals:
        level = next(iter(intervals.values())).level
        typer.echo(f"in brackets: {level:.0%} interval over draws of the {evaluation.rows:,} users")
    for name, value in shown.items():
        found = intervals.get(name)
        ends_text = "" if found is None else f"  [{found.low:.4f}, {found.high:.4f}]"
        typer.echo(f"{name:24} {value:.6f}{ends_text}")
    for slice_name, figures in evaluation.scenarios.items():
        texts = (f"{name} {value:.6g}" for name, value in figures.items())
        typer.echo(figure_lines(f"{slice_name}: ", texts))
