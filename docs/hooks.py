"""Fill pages from the code and from result files: `<!-- generate: NAME ARGUMENT -->`.

Tables of settings, models and results are never typed by hand.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

MARK = "<!-- generate:"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every mark of a page by what it names."""
    lines = []
    for line in markdown.splitlines():
        if line.strip().startswith(MARK):
            kind, _, argument = line.strip()[len(MARK) :].removesuffix("-->").strip().partition(" ")
            line = GENERATORS[kind](argument.strip())
        lines.append(line)
    return "\n".join(lines)


def config_table(path: str) -> str:
    """Fields of a config class, `module:Class`."""
    module, _, name = path.partition(":")
    config = getattr(import_module(module), name)
    lines = [config.__doc__ or "", "", "| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if hasattr(default, "model_dump"):
            default = default.model_dump(mode="json")
        shown = "required" if field.is_required() else f"`{json.dumps(default, default=str)}`"
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{key}` | {shown} | {meaning} |".replace(" | |", " |"))
    return "\n".join(lines)


def model_table(_: str) -> str:
    """The catalog."""
    from rankloom.catalog import ENTRIES

    lines = ["| name | model | year | idea | paper |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{e.name}` | {e.title} | {e.year} | {e.idea} | {e.paper} |" for e in ENTRIES]
    return "\n".join(lines)


def leaderboard(path: str) -> str:
    """A saved leaderboard, as Markdown; the page has headings of its own."""
    from rankloom.report.tables import read_json, to_markdown

    text = to_markdown(read_json(ROOT / path))
    lines = [line for line in text.splitlines() if not line.startswith("## ")]
    return "\n".join(lines).replace("\\<", "&lt;")  # an escape that Python-Markdown does not know


def speed_tables(path: str) -> str:
    """Tables of a benchmark result."""
    if str(ROOT) not in sys.path:  # mkdocs puts the path back after loading a hook
        sys.path.append(str(ROOT))
    from benchmarks.tables import to_markdown

    return to_markdown(json.loads((ROOT / path).read_text(encoding="utf-8")))


GENERATORS = {
    "config": config_table,
    "models": model_table,
    "leaderboard": leaderboard,
    "speed": speed_tables,
}
