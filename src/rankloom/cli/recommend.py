"""`rankloom recommend RUN`: the best items after histories of item ids."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl


def recommend(
    run: Annotated[Path, typer.Argument(help="Run folder of a retrieval model.")],
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, with commas between them.")
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            help="Table (csv, parquet, jsonl) with a column user and a column items: lists of item "
            "ids, or text with spaces or commas between them."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Items for each history.")] = 10,
    block: Annotated[
        list[str] | None, typer.Option(help="Item that nobody may get; may be repeated.")
    ] = None,
    exclude_history: Annotated[
        bool | None, typer.Option(help="Leave out items of the history itself.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Sequence data set folder, if it moved.")
    ] = None,
    appended: Annotated[
        Path | None,
        typer.Option(help="Ids with new items, by tokenize --append; --dataset holds the items."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Recommend items after one history, or after each user's of a table."""
    from rankloom.training.retrieval_run import RetrievalRun

    if (history is None) == (users is None):
        raise ValueError("give either --history or --users")
    names: list[str] | None = None
    if users is not None:
        names, histories = _read_users(users)
    else:
        assert history is not None
        histories = [[item.strip() for item in history.split(",") if item.strip()]]
    opened = RetrievalRun.open(run, dataset=dataset, appended=appended)
    answers = opened.recommend(
        histories, count=k, blocked=block or (), exclude_history=exclude_history, users=names
    )
    for place, answer in enumerate(answers):
        user = None if names is None else names[place]
        if as_json:
            values = {
                "items": answer.items,
                "titles": answer.titles,
                "scores": answer.scores,
                "unknown": answer.unknown,
            }
            typer.echo(json.dumps(values if user is None else {"user": user, **values}))
            continue
        if user is not None:
            typer.echo(f"user {user}")
        if answer.unknown:
            typer.echo(f"unknown items of the history, left out: {answer.unknown}")
        for item, title, score in zip(answer.items, answer.titles, answer.scores, strict=True):
            typer.echo(f"{score:12.4f}  {item}  {title}".rstrip())


def _read_users(path: Path) -> tuple[list[str], list[list[str]]]:
    """Users and their histories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or holds something else.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
        elif path.suffix in (".jsonl", ".ndjson"):
            frame = pl.read_ndjson(path)
        elif path.suffix == ".csv":
            frame = pl.read_csv(path, infer_schema=False)
        else:
            raise ValueError(f"{path}: a table of users ends in .csv, .parquet or .jsonl")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from None
    missing = [name for name in ("user", "items") if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; it has {', '.join(frame.columns)}")
    return frame["user"].cast(pl.String).fill_null("").to_list(), _lists(frame["items"], path)


def _lists(items: "pl.Series", path: Path) -> list[list[str]]:
    import polars as pl

    if isinstance(items.dtype, pl.Array):
        items = items.arr.to_list()
    if isinstance(items.dtype, pl.List):
        inner = items.dtype.inner
        # Whole numbers that were written with a decimal point, as pandas does, are whole again.
        whole = isinstance(inner, pl.Float32 | pl.Float64) and _all_whole(items)
        lists = items.cast(pl.List(pl.Int64)) if whole else items
        lists = lists.cast(pl.List(pl.String))
    elif items.dtype == pl.String:
        lists = items.str.extract_all(r"[^\s,]+")
    elif items.dtype.is_integer() or items.dtype == pl.Null:  # one item each, or none at all
        lists = items.cast(pl.String).reshape((-1, 1)).arr.to_list()
    else:
        raise ValueError(f"{path}: column items must hold lists or text; got {items.dtype}")
    return [
        [item for item in history if item is not None] for history in lists.fill_null([]).to_list()
    ]


def _all_whole(lists: "pl.Series") -> bool:
    numbers = lists.explode().drop_nulls()
    return bool((numbers == numbers.floor()).all())
