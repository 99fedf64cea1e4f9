"""A leaderboard as JSON, CSV, Markdown and a terminal table."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from rankloom.config import parse_config, read_json_values
from rankloom.report.leaderboard import Leaderboard, Table
from rankloom.report.rows import Row
from rankloom.report.scenario_tables import scenario_markdown, scenario_terminal
from rankloom.report.texts import count, difference_text, markdown_cell, number, summary_text
from rankloom.runs.atomic import write_text


def write_json(path: str | Path, leaderboard: Leaderboard) -> None:
    """Write leaderboard.json, one object per row; `read_json` gives the leaderboard back."""
    values = leaderboard.model_dump(mode="json")
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Leaderboard:
    """Read leaderboard.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or no leaderboard.
    """
    return parse_config(Leaderboard, read_json_values(path), str(path))


def to_csv(leaderboard: Leaderboard) -> str:
    """One line per row of every table, with plain numbers; what is undefined is empty."""
    metrics = list(dict.fromkeys(name for table in leaderboard.tables for name in table.metrics))
    header = ["dataset", "data_hash", "split", "label", "model", "recipe", "recipe_hash", "seeds"]
    for name in metrics:
        header += [f"{name}_mean", f"{name}_sd", f"{name}_seeds", f"{name}_best"]
        header += [f"{name}_difference", f"{name}_p", f"{name}_p_adjusted", f"{name}_published"]
    header += ["published_source", "dense_parameters", "embedding_parameters", "flops_per_row"]
    header += ["training_rows_per_second", "inference_rows_per_second"]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for table in leaderboard.tables:
        for row in table.rows:
            writer.writerow(_csv_row(table, row))
    return text.getvalue()


def to_markdown(leaderboard: Leaderboard) -> str:
    """Every table with its notes and its largest scenarios; best values in bold."""
    parts = [f"> {markdown_cell(warning)}" for warning in leaderboard.warnings]
    for table in leaderboard.tables:
        parts.append(f"## {markdown_cell(table.dataset.name)}, {markdown_cell(table.split)} split")
        parts.append(f"Data `{table.dataset.data_hash}`.")
        header = columns(table)
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for row in table.rows:
            texts = [markdown_cell(text) for text in cells(table, row)]
            for position, name in metric_positions(table):
                if name in row.best:
                    texts[position] = f"**{texts[position]}**"
            lines.append(texts)
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        notes = [*table.notes, *sources(table)]
        parts.append("\n".join(f"- {markdown_cell(note)}" for note in notes))
        parts += scenario_markdown(table)
    return "\n\n".join(parts) + "\n"


def terminal(leaderboard: Leaderboard, metrics: Sequence[str] | None = None) -> Group:
    """Every table as a rich renderable that fits 80 columns; best values in bold with a star.

    Speeds are rows per second, of training and of scoring.

    Args:
        leaderboard: what to draw.
        metrics: metric columns; None: the first two of each table.
    """
    parts: list[RichTable | Text] = [
        Text(warning, style="yellow") for warning in leaderboard.warnings
    ]
    for table in leaderboard.tables:
        shown = [name for name in metrics or table.metrics[:2] if name in table.metrics]
        title = Text(f"{table.dataset.name}, {table.split} split", style="bold")
        drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE, padding=0)
        drawn.add_column("model", min_width=12, overflow="fold")
        for metric in shown:
            drawn.add_column(metric, justify="right", no_wrap=True)
            if table.reference is not None:
                drawn.add_column(f"Δ {metric}", justify="right", no_wrap=True)
        drawn.add_column("parameters\nFLOPs/row", justify="right", no_wrap=True)
        drawn.add_column("train/s\nscore/s", justify="right", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*_terminal_cells(table, row, shown))
        parts.append(drawn)
        parts += [Text(note, style="dim") for note in [*table.notes, *sources(table)]]
        parts += scenario_terminal(table)
    return Group(*parts)


def _terminal_cells(table: Table, row: Row, metrics: Sequence[str]) -> list[Text]:
    """Cells of two lines: the value, and below it the deviation or the p-value."""
    seeds = "1 seed" if len(row.seeds) == 1 else f"{len(row.seeds)} seeds"
    texts = [Text.assemble(f"{row.label}\n", (seeds, "dim"))]
    for metric in metrics:
        summary = row.metrics[metric]
        mean = number(summary.mean)
        if summary.count and not summary.complete:
            mean += f" ({summary.count}/{len(summary.values)})"
        if metric in row.best:
            mean += " *"
        spread = "" if math.isnan(summary.deviation) else f"±{summary.deviation:.5f}"
        style = "bold green" if metric in row.best else ""
        texts.append(Text.assemble((f"{mean}\n", style), (spread, "dim")))
        if row.label == table.reference:
            texts.append(Text("reference"))
        elif table.reference is not None:
            difference, _, p = _difference_of(row, metric).partition(" (")
            texts.append(Text.assemble(f"{difference}\n", (p.removesuffix(")"), "dim")))
    speeds = count(row.training_rows_per_second), count(row.inference_rows_per_second)
    texts.append(Text(f"{count(row.parameters)}\n{count(row.flops_per_row)}"))
    return [*texts, Text("\n".join(speeds))]


def columns(table: Table) -> list[str]:
    """Headings of the Markdown and terminal tables."""
    names = ["model", "seeds"]
    for metric in table.metrics:
        names.append(metric)
        if table.reference is not None:
            names.append(f"Δ {metric}")
        if _has_published(table, metric):
            names.append(f"published {metric}")
    return [*names, "dense", "embedding", "FLOPs/row", "train rows/s", "score rows/s"]


def cells(table: Table, row: Row) -> list[str]:
    """Texts of a row under the headings of `columns`."""
    texts = [row.label, str(len(row.seeds))]
    for metric in table.metrics:
        texts.append(summary_text(row.metrics[metric]))
        if table.reference is not None:
            is_reference = row.label == table.reference
            texts.append("reference" if is_reference else _difference_of(row, metric))
        if _has_published(table, metric):
            texts.append(number(published_value(row, metric)))
    return [
        *texts,
        count(row.dense_parameters),
        count(row.embedding_parameters),
        count(row.flops_per_row),
        count(row.training_rows_per_second),
        count(row.inference_rows_per_second),
    ]


def metric_positions(table: Table) -> list[tuple[int, str]]:
    """Column number of each metric in `columns`."""
    headings = columns(table)
    return [(headings.index(name), name) for name in table.metrics]


def published_value(row: Row, metric: str) -> float | None:
    """The published value of a row's model; None when there is none."""
    return row.published.metrics.get(metric) if row.published else None


def sources(table: Table) -> list[str]:
    """One line per source of published values."""
    found: dict[str, list[str]] = {}
    for row in table.rows:
        if row.published:
            found.setdefault(row.published.source, []).append(row.label)
    return [f"Published ({', '.join(labels)}): {source}" for source, labels in found.items()]


def _has_published(table: Table, metric: str) -> bool:
    return any(published_value(row, metric) is not None for row in table.rows)


def _difference_of(row: Row, metric: str) -> str:
    return difference_text(row.differences.get(metric))


def _csv_row(table: Table, row: Row) -> dict[str, str]:
    values: dict[str, float | int | str | None] = {
        "dataset": table.dataset.name,
        "data_hash": table.dataset.data_hash,
        "split": table.split,
        "label": row.label,
        "model": row.model,
        "recipe": row.name,
        "recipe_hash": row.recipe_hash,
        "seeds": " ".join(str(seed) for seed in row.seeds),
        "published_source": row.published.source if row.published else None,
        "dense_parameters": row.dense_parameters,
        "embedding_parameters": row.embedding_parameters,
        "flops_per_row": row.flops_per_row,
        "training_rows_per_second": row.training_rows_per_second,
        "inference_rows_per_second": row.inference_rows_per_second,
    }
    for name, summary in row.metrics.items():
        values[f"{name}_mean"] = summary.mean
        values[f"{name}_sd"] = summary.deviation
        values[f"{name}_seeds"] = summary.count
        values[f"{name}_best"] = int(name in row.best)
        values[f"{name}_published"] = published_value(row, name)
        difference = row.differences.get(name)
        if difference is not None:
            values[f"{name}_difference"] = difference.mean
            values[f"{name}_p"] = difference.p_value
            values[f"{name}_p_adjusted"] = difference.p_adjusted
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: float | int | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def write_tables(folder: str | Path, leaderboard: Leaderboard) -> Sequence[Path]:
    """Write leaderboard.json, leaderboard.md and leaderboard.csv, and return their paths."""
    base = Path(folder)
    files = [base / f"leaderboard.{ending}" for ending in ("json", "md", "csv")]
    write_json(files[0], leaderboard)
    write_text(files[1], to_markdown(leaderboard))
    write_text(files[2], to_csv(leaderboard))
    return files
