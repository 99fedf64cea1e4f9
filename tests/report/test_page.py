import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_records import build_record
from scenario_records import runs_of

from rankloom.config import read_toml
from rankloom.report.leaderboard import build_leaderboard
from rankloom.report.page import render_page, write_report
from rankloom.report.rows import Published
from rankloom.runs.history import write_history
from rankloom.runs.record import DatasetFacts, Record, StoredRun, find_records, write_record

HOSTILE = "<img src=http://evil.example/x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, attributes, visible text and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self._open: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = (tag, dict(attrs))
        self.tags.append(self._open)

    def handle_endtag(self, tag: str) -> None:
        self._open = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open
        if tag == "script":
            self.scripts.append((attributes, data))
        elif tag == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def store(root: Path, *records: Record) -> list[StoredRun]:
    """The records as run folders with a history each."""
    for record in records:
        folder = root / f"{record.model}-{record.seed}-{record.dataset.data_hash}".replace("/", "_")
        write_record(folder, record)
        if record.status == "completed":
            rows = [{"step": n, "epoch": n, "auc": 0.5 + n / 10} for n in (1, 2)]
            write_history(folder, rows)
    return find_records(root)


@pytest.fixture
def runs(tmp_path: Path) -> list[StoredRun]:
    scenarios = {"test": {"home feed": {"rows": 1234, "auc": 0.61}}}
    return store(
        tmp_path / "runs",
        build_record("fm", 1, 0.81, scenarios=scenarios),
        build_record("fm", 2, 0.83, scenarios=scenarios),
        build_record("lr", 1, 0.70),
        build_record("lr", 2, math.nan),
        build_record("dnn", 1, status="failed", error="the loss is NaN", metrics={}, training=None),
    )


def page_of(runs: list[StoredRun], **options: object) -> str:
    board = build_leaderboard([run.record for run in runs])
    return render_page(board, runs, **options)  # type: ignore[arg-type]


def test_loads_nothing(runs: list[StoredRun]) -> None:
    page = Page(page_of(runs))
    loading = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        for name in loading & attributes.keys():
            assert (attributes[name] or "").startswith("#"), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "")
    for style in page.styles:
        assert not re.search(r"url\s*\(|@import", style)
    ours = [script for attributes, script in page.scripts if attributes.get("id") != "plotly"]
    assert ours
    for script in ours:
        assert not re.search(r"https?:|\bfetch\b|XMLHttpRequest|\bimport\b", script)


def test_policy_forbids_loading(runs: list[StoredRun]) -> None:
    """What plotly itself could load (maps) the browser refuses."""
    page = Page(page_of(runs))
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_plotly_stands_inside_once(runs: list[StoredRun]) -> None:
    page = Page(page_of(runs))
    bundles = [script for attributes, script in page.scripts if attributes.get("id") == "plotly"]
    assert "".join(bundles).count("plotly.js v") == 1


def test_page_without_charts_has_no_plotly(tmp_path: Path) -> None:
    record = build_record(cost={})
    write_record(tmp_path, record)
    text = page_of([StoredRun(tmp_path, record)])
    assert len(text) < 50_000
    assert "0.75000" in text


def test_every_chart_is_valid_json(runs: list[StoredRun]) -> None:
    page = Page(page_of(runs))
    figures = [
        json.loads(script)
        for attributes, script in page.scripts
        if attributes.get("type") == "application/json"
    ]
    assert len(figures) == 3  # validation AUC, FLOPs, parameters
    assert all(figure["data"] for figure in figures)
    assert sum(attributes.get("class") == "chart" for _, attributes in page.tags) == 3


def test_shows_what_is_recorded(runs: list[StoredRun]) -> None:
    text = Page(page_of(runs, title="Rankers", commands=["rankloom compare a.toml"])).text
    for expected in (
        "Rankers",
        "Test CPU",
        "c0ffee",
        "0.82000",
        "± 0.01414",
        "(1 of 2)",
        "home feed",
        "1,234",
        "demo-fm-1",
        "failed: the loss is NaN",
        "rankloom compare a.toml",
        "failed runs are left out: demo-dnn-1",
    ):
        assert expected in text


def test_commands_by_default(runs: list[StoredRun]) -> None:
    assert "rankloom train demo-fm.toml --set seed=2" in Page(page_of(runs)).text


def test_recipes_are_toml_and_linked(tmp_path: Path, runs: list[StoredRun]) -> None:
    text = page_of(runs)
    page = Page(text)
    identifiers = {attributes.get("id") for _, attributes in page.tags}
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links
    assert all(link is not None and link[1:] in identifiers for link in links)
    recipe = next(part for part in page.texts if "embedding_dim" in part)
    file = tmp_path / "recipe.toml"
    file.write_text(recipe)
    values = read_toml(file)
    assert values["training"] == {"learning_rate": 1e-3}  # None is left out


def test_names_are_escaped(tmp_path: Path) -> None:
    recipe = {"name": HOSTILE, "model": {"name": HOSTILE}, "note": "</pre><script>"}
    record = build_record(
        "m",
        recipe=recipe,
        run_id=HOSTILE,
        scenarios={"test": {HOSTILE: {"rows": 1, "auc": 0.5}}},
        dataset=DatasetFacts(name=HOSTILE, data_hash='">', rows={HOSTILE: 1}, labels=(HOSTILE,)),
    ).model_copy(update={"model": HOSTILE})
    write_record(tmp_path, record)
    runs = [StoredRun(tmp_path, record)]
    published = {HOSTILE: Published(metrics={"auc": 0.5}, source=HOSTILE)}
    board = build_leaderboard([record], published=published)
    page = Page(render_page(board, runs, title=HOSTILE, commands=[HOSTILE]))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert page.text.count(HOSTILE) >= 8


def test_cells_sort_by_number(runs: list[StoredRun]) -> None:
    """A cell's value is the whole number behind its rounded text, and empty when undefined."""
    text = page_of(runs)
    cell = re.search(r'data-value="([0-9.]+)"[^>]*>0\.82000<', text)
    assert cell is not None
    assert float(cell[1]) == pytest.approx(0.82, abs=1e-12)
    assert 'data-value="">-<' in text
    assert not re.search(r'data-value="(nan|None)"', text)


def test_same_runs_same_page(runs: list[StoredRun]) -> None:
    assert page_of(runs) == page_of(runs[::-1])


def test_two_data_sets_have_two_sections(tmp_path: Path) -> None:
    other = DatasetFacts(name="other", data_hash="bbbb", rows={"test": 1})
    runs = store(tmp_path, build_record("fm"), build_record("fm", dataset=other))
    page = Page(page_of(runs))
    assert "demo, test split" in page.text
    assert "other, test split" in page.text
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_write_report(tmp_path: Path, runs: list[StoredRun]) -> None:
    board, files = write_report(tmp_path / "report", runs, reference="fm", title="T")
    assert [file.name for file in files] == [
        "leaderboard.json",
        "leaderboard.md",
        "leaderboard.csv",
        "index.html",
    ]
    assert board.tables[0].reference == "fm"
    page = Page(files[-1].read_text(encoding="utf-8"))
    assert "Differences are to fm" in page.text
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == sorted(
        file.name for file in files
    )


def test_scenarios_stand_by_size_with_counts_and_means(tmp_path: Path) -> None:
    records = [*runs_of("fm", 0.8, pooled=7), *runs_of("lr", 0.7, pooled=7)]
    runs = store(tmp_path, *records)
    board = build_leaderboard(records, reference="lr")
    text = render_page(board, runs)
    scenarios = text[text.index("auc of each scenario</summary>") : text.index("<h3>Runs</h3>")]
    order = re.findall(r'<th scope="row"[^>]*>([^<]+)<', scenarios)
    assert order[:3] == ["macro mean", "mean by rows", "worst"]
    assert order[3:] == ["search", "home", "cart", "tail of 7 scenarios"]
    page = Page(text)
    assert "search 2,000 200" in page.text
    assert "+0.10000" in scenarios
    assert "Gain by size of the scenario" in page.text
    assert "Gain by size" not in Page(render_page(build_leaderboard(records), runs)).text


def test_a_single_run_shows_its_intervals(tmp_path: Path) -> None:
    figures = {"home": {"rows": 9, "auc": 0.6, "auc_low": 0.55, "auc_high": 0.65}}
    runs = store(tmp_path, build_record("fm", scenarios={"test": figures}))
    assert "0.55000 to 0.65000" in Page(page_of(runs)).text
    runs = store(tmp_path, *(build_record("fm", s, scenarios={"test": figures}) for s in (1, 2)))
    text = Page(page_of(runs)).text
    assert "0.55000 to" not in text
    assert "± 0.00000" in text


def retrieval_record(model: str, recall: float, shared: float | None) -> Record:
    """A run of a model that retrieves, with the slices of its catalogue."""
    figures = {"recall@10": recall, "ndcg@10": recall / 2, "mrr@10": recall / 3}
    if shared is not None:
        figures |= {"recall_id@10": shared, "invalid_rate": 0.0}
    facts = DatasetFacts(
        name="beauty", data_hash="cccc", rows={"train": 9, "test": 9}, items=12_101, interactions=99
    )
    slices = {name: {"rows": 3, **figures} for name in ("head", "torso", "tail", "cold")}
    return build_record(
        model,
        family="retrieval",
        dataset=facts,
        metrics={"test": figures},
        scenarios={"test": slices},
    )


def test_retrieval_shows_slices_and_ids_beside_items(tmp_path: Path) -> None:
    runs = store(
        tmp_path,
        retrieval_record("decoder", 0.06, 0.09),
        retrieval_record("sasrec", 0.08, None),
    )
    board = build_leaderboard([run.record for run in runs])
    assert board.tables[0].metrics == (
        "recall@10",
        "recall_id@10",
        "ndcg@10",
        "mrr@10",
        "invalid_rate",
    )
    assert [row.label for row in board.tables[0].rows] == ["sasrec", "decoder"]
    page = Page(render_page(board, runs))
    for words in (
        "items 12,101",
        "Slices",
        "recall@10 of each slice",
        "cold targets occur less than 5 times",
        "0.09000",
    ):
        assert words in page.text
    assert "positives" not in page.text
    assert "scenario" not in page.text.lower()


def test_scenarios_keep_their_name_and_positives(runs: list[StoredRun]) -> None:
    text = Page(page_of(runs)).text
    assert "auc of each scenario" in text
    assert "positives" in text
    assert "slice" not in text.lower()
