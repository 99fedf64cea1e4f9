"""The results of a search as tune.json, tune.md, a terminal table, and recipes ready to compare."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from rankloom.report.texts import MISSING, number
from rankloom.runs.atomic import write_text
from rankloom.training.trials import RESULT_FILE, Search, Trial, TuneResult

PAGE_FILE = "tune.md"
"""Name of the tables in a report folder."""
BEST_FOLDER = "best"
"""Folder of the recipes with the best settings inside a report folder."""


def write_tuning(folder: str | Path, result: TuneResult, *, command: str = "") -> list[Path]:
    """Write tune.json, tune.md and `best/<recipe>.toml` of each recipe, and return the files.

    Args:
        folder: folder of the report; made when missing.
        result: the results. A recipe without a completed trial gets no recipe file.
        command: what one types to repeat the search.

    Raises:
        OSError: the folder cannot be written.
    """
    base = Path(folder)
    files = [write_json(base, result), base / PAGE_FILE]
    write_text(files[1], to_markdown(result, command=command))
    for search in result.searches:
        if search.best_recipe is not None:
            files.append(base / BEST_FOLDER / f"{search.recipe}.toml")
            write_text(files[-1], best_recipe(result, search))
    return files


def write_json(folder: str | Path, result: TuneResult) -> Path:
    """Write tune.json in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / RESULT_FILE
    text = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_text(file, text + "\n")
    return file


def best_recipe(result: TuneResult, search: Search) -> str:
    """TOML text of a recipe with its best setting, and where that comes from."""
    own, best = _own(search), _best(search)
    if best is None or search.best_recipe is None:
        raise ValueError(f"no trial of {search.recipe} is completed")
    lines = [
        f"Setting found by a search on validation {search.monitor}: trial {best.number} of "
        f"{_extent(search)}; seed {result.seed}.",
        f"Validation {search.monitor} {number(best.metric, 6)}; "
        f"with the recipe's own setting {number(None if own is None else own.metric, 6)}.",
        *(f"{key} = {_value(value)}" for key, value in best.settings.items()),
        f"rankloom {result.versions.rankloom}, source {result.commit.source_hash}, "
        f"{result.finished.strftime('%Y-%m-%d')}; the test split was not read.",
    ]
    return "\n".join(f"# {line}" for line in lines) + "\n\n" + tomli_w.dumps(search.best_recipe)


def to_markdown(result: TuneResult, *, command: str = "") -> str:
    """An overview of all recipes, then the trials of each."""
    parts = [
        "# Search",
        f"At most {result.trials} trials of each recipe, its own setting first; order of settings "
        f"and trials with seed {result.seed}; {result.jobs} at once. Chosen by the metric of the "
        "best evaluation on the validation split; the test split was not read. rankloom "
        f"{result.versions.rankloom}, source `{result.commit.source_hash}`, {result.machine.cpu}.",
    ]
    if command:
        parts.append(f"```text\n{command}\n```")
    parts.append(overview(result))
    for search in result.searches:
        parts += [f"## {search.recipe}", _sentence(search), _table(_rows(search))]
    return "\n\n".join(parts) + "\n"


def overview(result: TuneResult) -> str:
    """One row per recipe, as a Markdown table."""
    return _table([OVERVIEW, *(_overview(search) for search in result.searches)])


def terminal(result: TuneResult) -> RichTable:
    """One row per recipe, as a rich renderable."""
    drawn = RichTable(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for position, heading in enumerate(OVERVIEW):
        text = position in (0, len(OVERVIEW) - 1)
        drawn.add_column(heading, justify="left" if text else "right", overflow="fold")
    for search in result.searches:
        drawn.add_row(*(Text(cell) for cell in _overview(search)))
    return drawn


OVERVIEW = ["recipe", "trials", "metric", "own", "best", "setting of the best"]


def _overview(search: Search) -> list[str]:
    own, best = _own(search), _best(search)
    failed = sum(trial.status == "failed" for trial in search.trials)
    trials = str(len(search.trials))
    if len(search.trials) < search.planned:
        trials += f" of {search.planned}"
    if failed:
        trials += f" ({failed} failed)"
    return [
        search.recipe,
        trials,
        search.monitor,
        number(None if own is None else own.metric),
        number(None if best is None else best.metric),
        MISSING if best is None else "its own" if best.number == 1 else _settings(best.settings),
    ]


def _rows(search: Search) -> list[list[str]]:
    keys = list(search.grid)
    rows = [["trial", *(f"`{key}`" for key in keys), search.monitor, "epochs", "seconds", ""]]
    for trial in search.trials:
        notes = [
            "own setting" if trial.number == 1 else "",
            "**best**" if trial.number == search.best else "",
            f"failed: {trial.error}" if trial.status == "failed" else "",
        ]
        rows.append(
            [
                str(trial.number),
                *(_value(trial.settings[key]) for key in keys),
                number(trial.metric, 6),
                MISSING if trial.epochs is None else str(trial.epochs),
                number(trial.seconds, 1),
                ", ".join(note for note in notes if note),
            ]
        )
    return rows


def _sentence(search: Search) -> str:
    text = (
        f"Model `{search.model}` on {search.dataset}, data `{search.data_hash}`; "
        f"trials: {_extent(search)}; {'higher' if search.monitor_mode == 'max' else 'lower'} "
        f"{search.monitor} is better."
    )
    if search.skipped:
        text += f" Not settings of this model: {', '.join(search.skipped)}."
    threads = sorted({trial.threads for trial in search.trials if trial.threads is not None})
    if threads:
        text += f" Threads per trial: {', '.join(map(str, threads))}."
    return text


def _extent(search: Search) -> str:
    if search.whole_grid:
        return f"{search.planned} (all of a grid of {search.combinations:,})"
    return f"{search.planned} (from a grid of {search.combinations:,})"


def _own(search: Search) -> Trial | None:
    return next((trial for trial in search.trials if trial.number == 1), None)


def _best(search: Search) -> Trial | None:
    return next((trial for trial in search.trials if trial.number == search.best), None)


def _settings(settings: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}={_value(item)}" for key, item in settings.items())


def _value(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _table(rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
