"""`rankloom schema infer TABLE`: a proposal to edit."""

from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.errors import show_errors

app = typer.Typer(help="Table schemas.", no_args_is_help=True)


@app.callback()
def schema() -> None:
    """Table schemas: what the columns of a raw table mean."""


@show_errors
def infer(
    table: Annotated[str, typer.Argument(help="A file or a quoted glob.")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
) -> None:
    """Propose a schema for a raw table; every guess comes with its reason."""
    from rankloom.data.infer import infer_schema
    from rankloom.data.table_schema import TableInput

    text = infer_schema(TableInput(files=table), Path(), name or Path(table).name.split(".")[0])
    if out is None:
        typer.echo(text)
        return
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out")
    out.write_text(text, encoding="utf-8")
    typer.echo(f"proposed schema: {out}; edit it, then: rankloom prepare {out} --out DIR")


app.command("infer")(infer)
