"""`rankloom tokenize RECIPE.toml`: semantic ids of a catalogue, and what they are like."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankloom.cli.options import Settings, overrides_of

if TYPE_CHECKING:
    from rich.table import Table

    from rankloom.training.tokenized import Tokenized


def tokenize(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a retrieval model (TOML).")],
    dataset: Annotated[
        Path | None, typer.Option(help="Sequence data set folder, in place of the recipe's own.")
    ] = None,
    append: Annotated[
        Path | None,
        typer.Option(
            help="Sequence data set with new items after those of the recipe's: they get ids "
            "beside the published ones, which never change."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs; ids go into tokenizers/ there.")] = (
        Path("runs")
    ),
    settings: Settings = None,
    fresh: Annotated[bool, typer.Option(help="Make them again.")] = False,
    examples: Annotated[int, typer.Option(help="Codes to show the items of.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print folder and diagnostics.")] = False,
) -> None:
    """Make the semantic ids of a recipe's catalogue, or show those made before."""
    from rankloom.cli.console import STDOUT, training_progress
    from rankloom.data.sequence_store import SequenceData
    from rankloom.retrieval.diagnostics import code_examples
    from rankloom.training.append_items import append as run_append
    from rankloom.training.retrieval_recipe import load_retrieval_recipe
    from rankloom.training.tokenize import tokenize as run_tokenize

    overrides = overrides_of(settings, dataset)
    chosen = load_retrieval_recipe(recipe, overrides)
    data = SequenceData.open(chosen.dataset if append is None else append)
    with training_progress() as update:
        if append is None:
            found = run_tokenize(
                chosen,
                out=out,
                data=data,
                fresh=fresh,
                progress=lambda state: update(chosen.name, state),
            )
        else:
            found = run_append(chosen, data, out=out)
    if as_json:
        diagnostics = found.diagnostics.model_dump(mode="json")
        typer.echo(json.dumps({"folder": str(found.folder), "diagnostics": diagnostics}))
        return
    STDOUT.print(_table(found))
    for example in code_examples(
        found.ids, data.catalogue.titles, found.vectors, num_codes=examples
    ):
        code = " ".join(str(number) for number in example.codes)
        STDOUT.print(f"code {code}: {example.num_items} items", highlight=False)
        for title in example.titles:
            STDOUT.print(f"  {title}", highlight=False, markup=False)
    typer.echo(f"semantic ids: {found.folder}")


def _table(found: "Tokenized") -> "Table":
    from rich.table import Table

    what, ids = found.diagnostics, found.ids
    table = Table("measure", "value", box=None)

    def row(name: str, value: str) -> None:
        table.add_row(name, value)

    def levels(values: tuple[float | None, ...]) -> str:
        return "  ".join("-" if value is None else f"{value:.3f}" for value in values)

    row("tokenizer", ids.tokenizer)
    row("items, distinct ids", f"{what.num_items:,}, {what.num_ids:,}")
    row("codes of each level", " ".join(str(size) for size in ids.level_sizes))
    row("merges", str(len(ids.merges)))
    if what.assigned_collision_share is not None:
        row("items whose codes collide", f"{what.assigned_collision_share:.2%}")
    row("items that share their id", f"{what.collision_share:.2%}")
    row("largest groups", " ".join(str(size) for size in what.largest_groups) or "none")
    row("codes used, all and by level", levels((what.utilisation, *what.utilisation_by_level)))
    row("Gini of code counts", f"{what.gini:.3f}")
    row("code entropy by level, bits", levels(what.entropy_by_level))
    row("cosine inside codes of 1, 2 ...", levels(what.intra_code_cosine))
    row("reconstruction error", levels((what.reconstruction_error,)))
    row("codes of an id, mean and shares", levels((what.mean_length, *what.length_shares)))
    row("tokens of an id, mean", f"{what.mean_tokens:.3f}")
    for reason, share in what.stop_shares.items():
        row(f"ended by {reason}", f"{share:.2%}")
    return table
