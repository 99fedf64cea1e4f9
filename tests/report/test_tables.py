import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from run_records import build_record

from rankloom.report.leaderboard import Leaderboard, build_leaderboard
from rankloom.report.rows import Published
from rankloom.report.seeds import Difference, summarise
from rankloom.report.tables import (
    read_json,
    terminal,
    to_csv,
    to_markdown,
    write_json,
    write_tables,
)
from rankloom.report.texts import count, difference_text, summary_text
from rankloom.runs.record import Record


def board(**options: object) -> Leaderboard:
    better = {1: 0.800, 2: 0.811, 3: 0.819}
    worse = {1: 0.700, 2: 0.710, 3: 0.720}
    records = [
        build_record(model, seed, value)
        for model, values in (("fm", better), ("lr", worse))
        for seed, value in values.items()
    ]
    return build_leaderboard(records, **options)  # type: ignore[arg-type]


def undefined(model: str = "fm") -> Record:
    return build_record(model, metrics={"test": {"auc": math.nan}}, cost={}, training=None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0, "0"),
        (9_999, "9,999"),
        (9_999.6, "10k"),
        (63_820, "63.8k"),
        (999_600, "1M"),
        (1_250_000, "1.25M"),
        (3.2e9, "3.2G"),
        (5e12, "5T"),
    ],
)
def test_count(value: float | None, text: str) -> None:
    assert count(value) == text


def test_summary_text() -> None:
    assert summary_text(summarise({1: 0.5, 2: 0.75})) == "0.62500 ± 0.17678"
    assert summary_text(summarise({1: 0.5})) == "0.50000"
    assert summary_text(summarise({1: 0.5, 2: math.nan})) == "0.50000 (1 of 2)"
    assert summary_text(summarise({1: math.nan})) == "-"


def test_difference_text() -> None:
    def difference(mean: float, p: float) -> str:
        return difference_text(Difference(mean=mean, seeds=2, p_value=p, p_adjusted=p))

    assert difference(-0.00123, 0.04) == "-0.00123 (p 0.040)"
    assert difference(0.00123, 1e-5) == "+0.00123 (p <0.001)"
    assert difference(0.1, math.nan) == "+0.10000"
    assert difference(math.nan, math.nan) == difference_text(None) == "-"


def test_json_round_trip(tmp_path: Path) -> None:
    published = {"fm": Published(metrics={"auc": 0.8}, source="a paper")}
    leaderboard = board(reference="lr", published=published)
    file = tmp_path / "leaderboard.json"
    write_json(file, leaderboard)
    assert read_json(file) == leaderboard
    values = json.loads(file.read_text())
    assert values["tables"][0]["rows"][0]["label"] == "fm"
    assert values["tables"][0]["rows"][0]["metrics"]["auc"]["values"]["2"] == 0.811


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    file = tmp_path / "leaderboard.json"
    write_json(file, build_leaderboard([undefined()]))
    values = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert values["tables"][0]["rows"][0]["metrics"]["auc"]["mean"] is None
    again = read_json(file).tables[0].rows[0]
    assert math.isnan(again.metrics["auc"].mean)
    assert again.flops_per_row is None


def test_json_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="unknown key rows"):
        read_json(tmp_path / "a.json")


def test_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(board(reference="lr")))))
    fm, lr = lines
    assert (fm["label"], fm["seeds"], fm["auc_best"], lr["auc_best"]) == ("fm", "1 2 3", "1", "0")
    assert float(fm["auc_mean"]) == pytest.approx(0.81)
    assert float(fm["auc_difference"]) == pytest.approx(0.1)
    assert lr["auc_difference"] == ""
    assert fm["dense_parameters"] == "100"


def test_csv_leaves_the_undefined_empty() -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv(build_leaderboard([undefined()]))))
    assert (line["auc_mean"], line["auc_sd"], line["flops_per_row"]) == ("", "", "")


def test_markdown() -> None:
    published = {"lr": Published(metrics={"auc": 0.71}, source="a paper")}
    text = to_markdown(board(reference="lr", published=published))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| fm | 3 | **0.81000 ± 0.00954** | +0.10000 (p ")
    assert "| reference | 0.71000 |" in lines[3]
    assert "- Published (lr): a paper" in text


def test_markdown_cannot_be_broken_by_a_name() -> None:
    name = "a|b\n<script>*x*"
    text = to_markdown(build_leaderboard([build_record(name)]))
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    assert row.startswith("| a\\|b \\<script\\>\\*x\\* | 1 |")


def drawn(leaderboard: Leaderboard, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(terminal(leaderboard))
    return console.export_text()


def test_terminal_fits_80_columns() -> None:
    text = drawn(board(reference="lr"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "0.81000 *" in text
    assert "±0.00954" in text
    assert "reference" in text
    assert "120" in text  # dense and embedding parameters together


def test_terminal_shows_markup_in_names_as_text() -> None:
    assert "[red]x[/red]" in drawn(build_leaderboard([build_record("[red]x[/red]")]))


def test_terminal_counts_defined_seeds() -> None:
    records = [build_record("fm", 1, 0.5), build_record("fm", 2, math.nan)]
    assert "0.50000 (1/2)" in drawn(build_leaderboard(records))


def test_write_tables(tmp_path: Path) -> None:
    files = write_tables(tmp_path / "report", board())
    assert [file.name for file in files] == [
        "leaderboard.json",
        "leaderboard.md",
        "leaderboard.csv",
    ]
    assert all(file.stat().st_size for file in files)
