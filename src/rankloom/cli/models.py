"""`rankloom models` and `rankloom model NAME`: the catalog."""

import json
from typing import Annotated, Any

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the catalog."""
    from rankloom.catalog import ENTRIES

    if as_json:
        keys = ("name", "family", "title", "paper", "year", "idea")
        typer.echo(json.dumps([{key: getattr(entry, key) for key in keys} for entry in ENTRIES]))
        return
    from rich.table import Table

    from rankloom.cli.console import STDOUT

    table = Table("name", "family", "year", "idea", "paper", box=None)
    for entry in ENTRIES:
        table.add_row(entry.name, entry.family, str(entry.year), entry.idea, entry.paper)
    STDOUT.print(table)


def model(
    name: Annotated[str, typer.Argument(help="Name in the catalog.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema.")] = False,
) -> None:
    """Show one model: paper, equations, and every key of its config."""
    import inspect

    from rankloom.catalog import lookup

    entry = lookup(name)
    if as_json:
        typer.echo(json.dumps(entry.config.model_json_schema()))
        return
    from rich.table import Table

    from rankloom.cli.console import STDOUT

    module = inspect.getmodule(entry.build)
    text = inspect.getdoc(module) if module is not None else None
    STDOUT.print(f"[bold]{entry.title}[/bold]  {entry.paper}", highlight=False)
    STDOUT.print(text or entry.idea, highlight=False, markup=False)
    table = Table("key", "type", "default", "meaning", title="[model] keys", title_justify="left")
    for key, field in entry.config.model_fields.items():
        shown = "required"
        if not field.is_required():
            shown = repr(_plain(field.get_default(call_default_factory=True)))
        table.add_row(key, _type_name(field.annotation), shown, field.description or "")
    STDOUT.print(table)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")
