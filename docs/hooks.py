"""Fill pages from the code and from result files: `<!-- generate: NAME ARGUMENT -->`.

Tables of settings, models and results are never typed by hand.
"""

import json
import shlex
import shutil
import sys
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from glob import glob
from html import escape
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from rankloom.report.charts import Chart
    from rankloom.report.inspection_table import InspectionTable
    from rankloom.report.leaderboard import Leaderboard

ROOT = Path(__file__).parents[1]

MARK = "<!-- generate:"


CHART_SCRIPTS = ("assets/plotly.min.js", "assets/charts.js")
"""What draws the charts of a page: plotly, and the script of the reports' pages."""


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """A page with charts loads what draws them."""
    if 'class="chart"' not in html:
        return html
    up = "../" * page.url.count("/")
    return html + "".join(f'<script src="{up}{script}"></script>' for script in CHART_SCRIPTS)


def on_post_build(config: Any, **_: Any) -> None:
    """Lay what draws the charts beside the pages, so that nothing is loaded from elsewhere."""
    sources = (
        files("plotly") / "package_data" / "plotly.min.js",
        files("rankloom.report") / "templates" / "page.js",
    )
    for source, script in zip(sources, CHART_SCRIPTS, strict=True):
        target = Path(config["site_dir"], script)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(str(source), target)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every mark of a page by what it names."""
    lines = []
    for line in markdown.splitlines():
        if line.strip().startswith(MARK):
            kind, _, argument = line.strip()[len(MARK) :].removesuffix("-->").strip().partition(" ")
            indent = line[: line.index(MARK)]
            line = textwrap.indent(GENERATORS[kind](argument.strip()), indent)
        lines.append(line)
    return "\n".join(lines)


def config_table(path: str) -> str:
    """Fields of a config class, `module:Class`."""
    module, _, name = path.partition(":")
    config = getattr(import_module(module), name)
    lines = [config.__doc__ or "", "", "| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in config.model_fields.items():
        default = to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)
        shown = "required" if field.is_required() else f"`{json.dumps(default)}`"
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{key}` | {shown} | {meaning} |".replace(" | |", " |"))
    return "\n".join(lines)


def model_table(family: str) -> str:
    """The models of one family, or the catalog."""
    from rankloom.catalog import ENTRIES

    lines = ["| name | model | year | idea | paper |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{e.name}` | {e.title} | {e.year} | {e.idea} | {e.paper} |"
        for e in ENTRIES
        if family in ("", e.family)
    ]
    return "\n".join(lines)


def zoo_table(runs: str) -> str:
    """Every ranking model by year: its cost on ten fields, and its AUC in recorded runs if any."""
    from rankloom.data.examples import example_schema, random_batch
    from rankloom.evaluation.cost import measure_cost
    from rankloom.ranking.catalog import RANKING_ENTRIES
    from rankloom.report.texts import count, number

    aucs = _best_aucs(runs)
    # The shape that docs/models.md states: ten fields, 538 values and two reserved rows each.
    schema = example_schema(
        num_categorical=9, num_numeric=0, sequences=False, vectors=False, rows_per_table=540
    )
    batch = random_batch(schema, rows=64)
    lines = [
        "| model | name | year | idea | parameters | operations per row | AUC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in sorted(RANKING_ENTRIES, key=lambda entry: entry.year):
        cost = measure_cost(entry.build(entry.config(), schema), batch)
        cells = [f"[{entry.title}](papers/{entry.name}.md)", f"`{entry.name}`", str(entry.year)]
        cells += [entry.idea, count(cost.parameters), count(cost.flops_per_row)]
        lines.append(f"| {' | '.join([*cells, number(aucs.get(entry.name))])} |")
    return "\n".join(lines)


def _best_aucs(runs: str) -> dict[str, float]:
    """Test AUC by model, the mean over the seeds of its best recipe."""
    aucs: dict[str, float] = {}
    for table in _leaderboard(runs).tables:
        for row in table.rows:
            summary = row.metrics.get("auc")
            if summary is not None:
                aucs[row.model] = max(summary.mean, aucs.get(row.model, summary.mean))
    return aucs


def leaderboard(arguments: str) -> str:
    """The table of recorded runs, as Markdown; the page has headings of its own.

    The arguments are those of `rankloom report`, patterns of folders among them.
    """
    from rankloom.report.tables import to_markdown

    text = to_markdown(_leaderboard(arguments))
    lines = [line for line in text.splitlines() if not line.startswith("## ")]
    return "\n".join(lines).replace("\\<", "&lt;")  # an escape that Python-Markdown does not know


def _leaderboard(arguments: str) -> "Leaderboard":
    from rankloom.cli.report import read_published
    from rankloom.report.leaderboard import build_leaderboard
    from rankloom.runs.record import find_records

    parser = ArgumentParser("leaderboard", exit_on_error=False)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--metric", action="append")
    parser.add_argument("--reference")
    parser.add_argument("--published", type=ROOT.joinpath)
    given = parser.parse_args(shlex.split(arguments))
    folders = [folder for pattern in given.folders for folder in sorted(glob(str(ROOT / pattern)))]
    return build_leaderboard(
        [run.record for folder in folders for run in find_records(folder)],
        metrics=given.metric,
        reference=given.reference,
        published=None if given.published is None else read_published(given.published),
    )


def gain_charts(arguments: str) -> str:
    """Charts of the gain over the reference by size of scenario; arguments as of `leaderboard`."""
    from rankloom.report.gain_charts import gain_charts as charts

    return _drawn([chart for table in _leaderboard(arguments).tables for chart in charts(table)])


def cost_charts(arguments: str) -> str:
    """Charts of the first metric against operations and parameters; arguments likewise."""
    from rankloom.report.charts import cost_charts as charts

    return _drawn([chart for table in _leaderboard(arguments).tables for chart in charts(table)])


def _drawn(charts: "Sequence[Chart]") -> str:
    """Charts as the script of the reports' pages finds them; no empty line may end the HTML."""
    if not charts:
        raise ValueError("there is nothing to draw")
    return "\n".join(
        f'\n<figure><div class="chart" role="img" aria-label="{escape(chart.title)}"></div>'
        f'<script type="application/json">{chart.figure}</script>'
        f"<figcaption>{escape(chart.title)}. {escape(chart.caption)}</figcaption></figure>\n"
        for chart in charts
    )


def tuning_table(patterns: str) -> str:
    """What searches found for every recipe, from saved `tune.json` files; patterns are allowed."""
    from rankloom.report.tuning import overview
    from rankloom.training.trials import TuneResult

    paths = [path for pattern in patterns.split() for path in sorted(ROOT.glob(pattern))]
    if not paths:
        raise ValueError(f"no search under {patterns}")
    results = [TuneResult.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]
    searches = [search for result in results for search in result.searches]
    return overview(results[0].model_copy(update={"searches": searches}))


def figures_table(path: str) -> str:
    """Figures by metric, from a saved file of them."""
    from rankloom.report.texts import number

    figures = json.loads((ROOT / path).read_text(encoding="utf-8"))
    lines = [f"| {' | '.join(figures)} |", "| ---: " * len(figures) + "|"]
    return "\n".join([*lines, f"| {' | '.join(number(value) for value in figures.values())} |"])


def depth_tables(path: str) -> str:
    """The tables of a saved `depths.json`."""
    from rankloom.evaluation.depth_figures import read_depths
    from rankloom.report.depths import depth_tables as tables

    figures = read_depths(ROOT / path)
    lines = [f"{figures.dataset}, {figures.split} split, {figures.model}, seed {figures.seed}."]
    return "\n".join([*lines, *(line for table in tables(figures) for line in _text_table(table))])


def inspection(arguments: str) -> str:
    """Sections of a saved `inspect.json`: its path, their headings, `--only` tables or charts."""
    from rankloom.evaluation.inspection import read_inspection
    from rankloom.report.inspection_page import inspection_sections

    parser = ArgumentParser("inspection", exit_on_error=False)
    parser.add_argument("path", type=ROOT.joinpath)
    parser.add_argument("headings", nargs="+")
    parser.add_argument("--only", choices=["tables", "charts"])
    given = parser.parse_args(shlex.split(arguments))
    sections = {one.heading: one for one in inspection_sections(read_inspection(given.path))}
    lines = []
    for heading in given.headings:
        section = sections[heading]
        if given.only != "tables":
            lines.append(_drawn(section.charts))
        if given.only != "charts":
            lines += [line for table in section.tables for line in _text_table(table)]
    return "\n".join(lines)


def _text_table(table: "InspectionTable") -> list[str]:
    others = len(table.columns) - table.names
    lines = ["", f"**{table.title}**", "", f"| {' | '.join(table.columns)} |"]
    lines.append("| --- " * table.names + "| ---: " * others + "|")
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return [*lines, *(line for note in table.notes for line in ("", note))]


def speed_tables(path: str) -> str:
    """Tables of a benchmark result."""
    if str(ROOT) not in sys.path:  # mkdocs puts the path back after loading a hook
        sys.path.append(str(ROOT))
    from benchmarks.tables import to_markdown

    file = ROOT / path
    if not file.exists():
        return f"Not measured yet: `{path}` does not exist."
    return to_markdown(json.loads(file.read_text(encoding="utf-8")))


def connection_table(_: str) -> str:
    """Which models made of token layers go with which connections, and why others do not."""
    reasons: list[str] = []
    rows: dict[str, dict[str, str]] = {}
    for connection, model, problem in connection_pairs():
        if problem and problem not in reasons:
            reasons.append(problem)
        cell = f"{reasons.index(problem) + 1}" if problem else "yes"
        rows.setdefault(connection, {})[model] = cell
    models = list(dict.fromkeys(model for cells in rows.values() for model in cells))
    lines = [f"| connection | {' | '.join(f'`{model}`' for model in models)} |"]
    lines.append("| --- " * (len(models) + 1) + "|")
    lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in rows.items()]
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines)


def connection_pairs() -> Iterator[tuple[str, str, str | None]]:
    """Try every connection on every model made of token layers: one step of training.

    Yields:
        The connection's kind and settings, the model's name, and the error that says why they do
        not go together, None when they do.
    """
    from typing import get_args

    from rankloom.catalog import ENTRIES
    from rankloom.data.examples import example_schema, random_batch
    from rankloom.ranking.connections import Connection
    from rankloom.ranking.token_network import TokenNetwork

    schema = example_schema()
    batch = random_batch(schema, rows=4)
    kinds = [{"kind": part().kind} for part in get_args(get_args(Connection)[0])]
    kinds.append({"kind": "mudd", "num_streams": 1})
    for settings in kinds:
        others = [f"{key} = {value}" for key, value in settings.items() if key != "kind"]
        shown = ", ".join([str(settings["kind"]), *others])
        for entry in ENTRIES:
            if not issubclass(entry.config, TokenNetwork):
                continue
            try:
                config = entry.config.model_validate({**SMALL, "connection": settings})
                model = entry.build(config, schema)
            except ValueError as error:
                yield shown, entry.name, str(error)
                continue
            model(batch).sum().backward()
            yield shown, entry.name, None


SMALL = {"embedding_dim": 4, "dim": 16, "num_layers": 2, "head": {"hidden": [8]}}
"""Sizes of the models that connections are tried on."""


GENERATORS = {
    "config": config_table,
    "connections": connection_table,
    "cost-charts": cost_charts,
    "depths": depth_tables,
    "figures": figures_table,
    "gain-charts": gain_charts,
    "inspection": inspection,
    "models": model_table,
    "zoo": zoo_table,
    "leaderboard": leaderboard,
    "speed": speed_tables,
    "tuning": tuning_table,
}
