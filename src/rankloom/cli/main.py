"""The `rankloom` command. Heavy imports happen inside the commands, so that `--help` is instant."""

import typer

from rankloom.cli import (
    compare,
    data,
    depths,
    evaluate,
    inspect,
    models,
    predict,
    prepare,
    recommend,
    report,
    scale,
    schema,
    tokenize,
    train,
    tune,
)
from rankloom.cli.errors import show_errors

app = typer.Typer(
    help="From raw interaction logs to served recommendations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(schema.app, name="schema")
app.command("prepare")(show_errors(prepare.prepare))
app.command("tokenize")(show_errors(tokenize.tokenize))
app.command("train")(show_errors(train.train))
app.command("evaluate")(show_errors(evaluate.evaluate))
app.command("depths")(show_errors(depths.depths))
app.command("inspect")(show_errors(inspect.inspect))
app.command("predict")(show_errors(predict.predict))
app.command("recommend")(show_errors(recommend.recommend))
app.command("compare")(show_errors(compare.compare))
app.command("tune")(show_errors(tune.tune))
app.command("scale")(show_errors(scale.scale))
app.command("report")(show_errors(report.report))
app.command("models")(show_errors(models.models))
app.command("model")(show_errors(models.model))


@app.callback(invoke_without_command=True)
def main(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Show the version when asked."""
    if version:
        from rankloom import __version__

        typer.echo(__version__)
        raise typer.Exit
