"""`rankloom prepare SCHEMA.toml --out DIR`: raw tables to data set folder, of rows or sequences."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def prepare(
    schema: Annotated[
        Path, typer.Argument(help="Table schema, or declaration of sequences (TOML).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw files.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing data set.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a data set folder.

    A table schema gives rows for ranking, with vocabularies and statistics of the training split. A
    declaration with [interactions] or [sequences] gives a catalogue of items and users' sequences.
    """
    from rankloom.cli.console import row_progress
    from rankloom.config import read_toml
    from rankloom.data.prepare import prepare as run_prepare

    if read_toml(schema).keys() & {"interactions", "sequences"}:
        _prepare_sequences(schema, out, root, overwrite, as_json)
        return
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


def _prepare_sequences(
    spec: Path, out: Path, root: Path | None, overwrite: bool, as_json: bool
) -> None:
    from rankloom.data.sequences import prepare_sequences

    start = time.perf_counter()
    data = prepare_sequences(spec, out, root=root, overwrite=overwrite)
    seconds = time.perf_counter() - start
    counts = {
        "users": data.histories.num_users,
        "items": data.catalogue.num_items,
        "interactions": data.histories.items.size,
    }
    if as_json:
        summary = {"folder": str(out), **counts, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(summary | {"data_hash": data.data_hash}))
        return
    listing = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    typer.echo(f"{out}: {listing} in {seconds:.1f} s")
