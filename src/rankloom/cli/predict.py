"""`rankloom predict RUN TABLE --out scores.parquet`: score rows of a raw table."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    table: Annotated[str, typer.Argument(help="Raw table with the data set's feature columns.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it moved.")] = None,
) -> None:
    """Score a raw table. Row order is kept; one probability column per task is written."""
    from rankloom.training.run import Run

    rows = Run.open(run, dataset=dataset).predict_table(table, out)
    typer.echo(f"{out}: {rows:,} rows")
