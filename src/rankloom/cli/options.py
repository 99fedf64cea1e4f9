"""What several commands are given."""

from pathlib import Path
from typing import Annotated

import typer

Recipes = Annotated[list[Path], typer.Argument(help="Recipes (TOML).")]
OtherDataset = Annotated[
    Path | None, typer.Option(help="Data set folder, in place of the recipe's own.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, dotted; may be repeated.")
]
RunsFolder = Annotated[Path, typer.Option(help="Folder that run folders go into.")]
Jobs = Annotated[int, typer.Option(help="Runs at once; more than one have one thread each.")]
Fresh = Annotated[bool, typer.Option(help="Train again what is recorded.")]
Reference = Annotated[
    str | None,
    typer.Option(help="Recipe or model that the others are compared with."),
]
PublishedFile = Annotated[Path | None, typer.Option(help="What others report, beside (TOML).")]


def overrides_of(settings: list[str] | None, dataset: Path | None) -> list[str]:
    """What a recipe is loaded with: `--set`, and `--dataset` last."""
    return [*(settings or []), *([f"dataset={dataset}"] if dataset else [])]
