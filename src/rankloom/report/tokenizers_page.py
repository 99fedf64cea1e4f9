"""The page of tokenizers side by side: one HTML file that opens from disk and loads nothing."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rankloom.report.charts import DASHES, Chart, colour, figure_json, figure_layout
from rankloom.report.templates import render
from rankloom.report.tokenizers import (
    NamedIds,
    length_table,
    level_tables,
    measure_table,
    neighbour_tables,
    stop_table,
)
from rankloom.runs.atomic import write_text

TOKENIZERS_PAGE = "tokenizers.html"
"""Name of the page in its folder."""


def write_tokenizers_page(folder: str | Path, ids: Sequence[NamedIds]) -> Path:
    """Write `tokenizers.html` into a folder in one step, and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    file = Path(folder) / TOKENIZERS_PAGE
    write_text(file, render_tokenizers(ids))
    return file


def render_tokenizers(ids: Sequence[NamedIds]) -> str:
    """The HTML text; the same input gives the same text."""
    first = ids[0].found
    return render(
        "tokenizers.html.j2",
        title="Tokenizers side by side",
        summary=f"{len(ids)} tokenizers of {first.ids.num_items:,} items, catalogue "
        f"{first.ids.items_hash}.",
        tokenizers=[
            {
                "label": one.label,
                "folder": one.found.folder.name,
                "vectors": one.found.ids.vectors_hash,
                "hash": one.found.ids.content_hash,
            }
            for one in ids
        ],
        sections=_sections(ids),
    )


def length_chart(ids: Sequence[NamedIds]) -> Chart:
    """Share of the items by codes of their id, a bar per tokenizer."""
    figure = go.Figure()
    for position, one in enumerate(ids):
        shares = one.found.diagnostics.length_shares
        figure.add_trace(
            go.Bar(
                x=[str(length + 1) for length in range(len(shares))],
                y=list(shares),
                name=html.escape(one.label),
                marker={"color": colour(position)},
                hovertemplate="%{y:.3f}",
            )
        )
    figure.update_layout(figure_layout("codes of an id", "share of the items"), barmode="group")
    figure.update_xaxes(type="category", categoryorder="category ascending")
    return Chart(
        title="Lengths of ids",
        caption="Once collisions are settled.",
        figure=figure_json(figure),
    )


def level_chart(ids: Sequence[NamedIds], title: str, vertical: str, measure: str) -> Chart:
    """A measure by level, a line per tokenizer.

    Args:
        ids: the tokenizers.
        title: heading.
        vertical: name of the axis.
        measure: field of the diagnostics with a value for each level.
    """
    figure = go.Figure()
    for position, one in enumerate(ids):
        values: Sequence[float | None] = getattr(one.found.diagnostics, measure)
        known = [(level + 1, value) for level, value in enumerate(values) if value is not None]
        figure.add_trace(
            go.Scatter(
                x=[level for level, _ in known],
                y=[value for _, value in known],
                mode="lines+markers",
                line={
                    "color": colour(position),
                    "dash": DASHES[position // 8 % len(DASHES)],
                    "width": 2,
                },
                name=html.escape(one.label),
                hovertemplate="%{y:.3f}",
            )
        )
    figure.update_layout(figure_layout("level", vertical))
    figure.update_xaxes(dtick=1)
    return Chart(title=title, caption="Level by level.", figure=figure_json(figure))


def _sections(ids: Sequence[NamedIds]) -> list[dict[str, Any]]:
    stops = stop_table(ids)
    found: list[dict[str, Any]] = [
        {"heading": "All levels", "tables": [measure_table(ids)], "charts": []},
        {
            "heading": "Lengths",
            "tables": [length_table(ids), *([] if stops is None else [stops])],
            "charts": [length_chart(ids)],
        },
        {
            "heading": "Levels",
            "tables": level_tables(ids),
            "charts": [
                level_chart(ids, "Entropy of the codes", "bits", "entropy_by_level"),
                level_chart(ids, "Cosine inside codes", "mean cosine", "intra_code_cosine"),
            ],
        },
    ]
    neighbours = neighbour_tables(ids)
    if neighbours:
        heading = "The same items under each tokenizer"
        found.append({"heading": heading, "tables": neighbours, "charts": []})
    return found
