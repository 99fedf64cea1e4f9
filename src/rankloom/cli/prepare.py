"""`rankloom prepare SCHEMA.toml --out DIR`: raw table to data set folder."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def prepare(
    schema: Annotated[Path, typer.Argument(help="Table schema (TOML).")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw files.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit vocabularies and statistics on the training split and write a data set folder."""
    from rankloom.cli.console import row_progress
    from rankloom.data.prepare import prepare as run_prepare

    start = time.perf_counter()
    with row_progress() as progress:
        dataset = run_prepare(schema, out, root=root, overwrite=overwrite, progress=progress)
    seconds = time.perf_counter() - start
    rows = {name: split.rows for name, split in dataset.manifest.splits.items()}
    if as_json:
        summary = {"folder": str(out), "rows": rows, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(summary | {"data_hash": dataset.data_hash}))
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    speed = sum(rows.values()) / seconds
    typer.echo(f"{out}: {counts} rows in {seconds:.1f} s ({speed:,.0f} rows/s)")
