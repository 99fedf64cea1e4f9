"""`rankloom data list` and `rankloom data get NAME`: public data sets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.errors import show_errors

app = typer.Typer(help="Public data sets: what there is, and how to get it.", no_args_is_help=True)


@app.command("list")
@show_errors
def list_sources(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the data sets, their sizes and terms."""
    from rankloom.data.sources import SOURCES

    if as_json:
        keys = ("name", "title", "rows", "task", "terms", "citation", "page")
        listing = [
            {key: getattr(source, key) for key in keys}
            | {
                "fetched_from": [origin.describe() for origin in source.origins],
                "from_takes": {form.name: list(form.files) for form in source.forms},
            }
            for source in SOURCES.values()
        ]
        typer.echo(json.dumps(listing))
        return
    for source in SOURCES.values():
        how = "fetched" if source.origins else "needs --from"
        typer.echo(f"{source.name}: {source.title}, {source.rows}, {how}")
        typer.echo(f"    predicts: {source.task}")
        typer.echo(f"    terms: {source.terms}")
        typer.echo(f"    page: {source.page}")


@app.command("get")
@show_errors
def get_source(
    name: Annotated[str, typer.Argument(help="A name that `rankloom data list` shows.")],
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FOLDER_OR_URL",
            help="Folder, file, archive or address to take it from.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that gets NAME/raw.")] = Path("data"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare known checksums.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fetch or copy a data set, verify it, and write its table schema."""
    from rankloom.data.sources import get, lookup, read_source_manifest

    folder = get(
        name,
        origin=origin,
        out=out,
        overwrite=overwrite,
        verify=verify,
        progress=lambda line: typer.echo(line, err=True),
    )
    manifest = read_source_manifest(folder)
    schemas = sorted(file for file in manifest.files if file.endswith(".toml"))
    if as_json:
        result = {"folder": str(folder), "schema": str(folder / "schema.toml"), "schemas": schemas}
        typer.echo(json.dumps(result | manifest.model_dump(mode="json")))
        return
    source = lookup(name)
    size = sum(record.bytes for record in manifest.files.values()) / 2**20
    typer.echo(f"{folder}: {source.title}, {len(manifest.files)} files, {size:,.1f} MiB")
    typer.echo(f"terms: {source.terms}")
    typer.echo(f"cite: {source.citation}")
    prepared = folder.parent / "prepared"
    typer.echo(f"next: rankloom prepare {folder / 'schema.toml'} --out {prepared}")
