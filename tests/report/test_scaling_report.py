"""Scaling curves from records: tables, sentences, chart and page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from run_records import build_record

from rankloom.evaluation.equal_compute import EqualCompute, NotReached
from rankloom.evaluation.scaling import NoCurve, ScalingCurve
from rankloom.report.rows import Published
from rankloom.report.scaling import Scaling, build_scaling, read_scaling
from rankloom.report.scaling_page import render_scaling, scaling_charts, write_scaling
from rankloom.report.scaling_text import (
    claims,
    equal_sentence,
    headlines,
    law_sentence,
    terminal,
    to_markdown,
)
from rankloom.runs.environment import Commit
from rankloom.runs.record import StoredRun
from rankloom.training.recipe import Recipe
from rankloom.training.scale import SizeRuns

DEPTHS = (2, 4, 8, 16, 32)


def sizes_of(
    name: str,
    model: str,
    law: tuple[float, float, float],
    *,
    metric: str = "auc",
    noise: float = 0,
    depths: tuple[int, ...] = DEPTHS,
) -> list[SizeRuns]:
    """Sizes with three seeds each, a million FLOPs per layer, on a planted law."""
    alpha, beta, gamma = law
    generator = np.random.default_rng(len(name))
    found = []
    for depth in depths:
        recipe = Recipe(name=name, dataset="prepared", model={"name": model})
        size = SizeRuns(recipe, {"model.num_layers": depth})
        compute = 1e6 * depth
        for seed in range(3):
            value = alpha - beta * compute**-gamma + noise * generator.normal()
            record = build_record(
                model,
                seed,
                cost={"flops_per_row": compute, "dense_parameters": 10 * depth},
                metrics={"test": {metric: value}},
            )
            size.runs[seed] = StoredRun(Path(name), record)
        found.append(size)
    return found


A, B = (0.83, 0.3, 0.12), (0.83, 0.3 * 2**0.12, 0.12)
"""B needs twice the compute of A."""


def planted(**options: Any) -> Scaling:
    sizes = [*sizes_of("slow", "wukong", B), *sizes_of("fast", "dcnv2", A)]
    return build_scaling([*sizes, *sizes_of("level", "dnn", (0.7, 0, 1))], samples=20, **options)


def test_each_model_has_its_law_and_its_comparison() -> None:
    scaling = planted()
    slow, fast, level = scaling.models
    assert (scaling.reference, slow.equal) == ("slow", ())
    assert isinstance(slow.fit, ScalingCurve)
    assert isinstance(fast.fit, ScalingCurve)
    assert slow.fit.gamma.value == pytest.approx(0.12)
    assert fast.line == pytest.approx(A)
    assert isinstance(level.fit, NoCurve)
    assert level.line is None
    outcomes = [row.outcome for row in fast.equal]
    assert [outcome.kind for outcome in outcomes] == ["equal"] * 4 + ["not reached"]
    first = outcomes[0]
    assert isinstance(first, EqualCompute)
    assert (first.compute, first.ratio) == pytest.approx((4e6, 2))
    assert [row.nearest for row in fast.equal] == [
        *(f"num_layers={depth}" for depth in (4, 8, 16, 32)),
        None,
    ]
    assert all(isinstance(row.outcome, NotReached) for row in level.equal)
    assert fast.sizes[1].flops_per_row == 4e6
    assert (fast.sizes[1].dense_parameters, fast.sizes[1].embedding_parameters) == (40, None)
    assert fast.sizes[1].metric.count == 3


def test_the_sentences_say_it() -> None:
    scaling = planted()
    slow, fast, level = scaling.models
    assert law_sentence(scaling, slow).startswith(
        "slow: auc(C) = 0.8300 - 0.326 C^(-0.120); gamma 0.120 [0.120, 0.120], R2 1.000. Twice "
        "the compute takes away 8.0% of the distance to alpha."
    )
    assert law_sentence(scaling, level) == (
        "level: no curve (flat: all sizes have the same value)."
    )
    assert equal_sentence(scaling, fast, fast.equal[0]) == (
        "fast at num_layers=2 equals slow at 4.00M FLOPs per row, 2.00 times the compute "
        "[2.00, 2.00]; the nearest size there is num_layers=4."
    ).replace("4.00M", "4M")
    assert equal_sentence(scaling, fast, fast.equal[-1]) == (
        "fast at num_layers=32 against slow: not reached within the grid of the reference."
    )
    lines = headlines(scaling)
    assert len(lines) == 5  # three laws, and what is best of each of the two others
    assert lines[3].startswith("fast at num_layers=16 equals slow at 32M FLOPs per row")
    assert "level at num_layers=2 against slow: the smallest size" in lines[4]


def test_the_other_way_round_costs_half() -> None:
    scaling = planted(reference="dcnv2")  # by its model
    assert scaling.reference == "fast"
    slow = scaling.models[0]
    assert isinstance(slow.equal[0].outcome, NotReached)
    outcome = slow.equal[1].outcome
    assert isinstance(outcome, EqualCompute)
    assert outcome.ratio == pytest.approx(0.5)


def test_lower_is_better() -> None:
    sizes = sizes_of("loss", "fm", (0.4, -2.0, 0.3), metric="log_loss", noise=1e-5)
    scaling = build_scaling(sizes, metric="log_loss", samples=20)
    (model,) = scaling.models
    assert isinstance(model.fit, ScalingCurve)
    assert model.fit.gamma.value == pytest.approx(0.3, rel=0.05)
    assert law_sentence(scaling, model).startswith("loss: log_loss(C) = 0.4")
    assert " + " in law_sentence(scaling, model)
    (chart,) = scaling_charts(scaling)
    points, line = json.loads(chart.figure)["data"]
    assert line["y"][0] == pytest.approx(points["y"][0], abs=1e-3)
    assert line["y"][0] > line["y"][-1]


def test_failures_and_skipped_keys_are_told() -> None:
    sizes = sizes_of("slow", "wukong", B, depths=(2, 4, 8, 16, 32, 64))
    sizes[0].runs.clear()
    sizes[0].failures[1] = "the loss is not finite"
    for size in sizes:
        size.skipped = ("model.dim",)
    scaling = build_scaling(sizes, samples=20)
    (model,) = scaling.models
    assert model.sizes[0].flops_per_row is None
    assert isinstance(model.fit, ScalingCurve)  # five sizes are left
    text = to_markdown(scaling)
    assert "slow at num_layers=2, seed 1, failed: the loss is not finite" in text
    assert "Not settings of slow: model.dim." in text
    assert "| slow | num_layers=2 | - | - | - | 0 | - |" in text


def test_runs_of_several_sources_are_told() -> None:
    sizes = sizes_of("slow", "wukong", B)
    assert "several sources" not in to_markdown(build_scaling(sizes, samples=20))
    run = sizes[2].runs[1]
    changed = run.record.model_copy(update={"commit": Commit(id=None, source_hash="6060")})
    sizes[2].runs[1] = StoredRun(run.folder, changed)
    scaling = build_scaling(sizes, samples=20)
    assert scaling.source_hashes == ("5050", "6060")
    assert "The runs were made by several sources (5050, 6060)" in to_markdown(scaling)


def test_files_hold_the_same(tmp_path: Path) -> None:
    published = {"slow": Published(metrics={"gamma": 0.071}, source="a paper | 2026")}
    scaling = planted(published=published)
    assert claims(scaling) == ["Published (slow): gamma 0.071. a paper | 2026"]
    files = write_scaling(tmp_path, scaling, command="rankloom scale a.toml")
    assert [file.name for file in files] == ["scaling.json", "scaling.md", "scaling.html"]
    assert read_scaling(tmp_path) == scaling
    text = files[1].read_text(encoding="utf-8")
    assert "rankloom scale a.toml" in text
    assert "a paper \\| 2026" in text
    assert "| fast | num_layers=4 | 2.00 | [2.00, 2.00] | 8M | num_layers=8 |" in text
    assert text.count("| level | num_layers") == 2 * len(DEPTHS)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w", encoding="utf-8"))
    console.print(terminal(scaling))
    console.file.close()
    assert "num_layers=32" in console.export_text()


def test_the_page_draws_points_and_lines_and_loads_nothing() -> None:
    hostile = "<img src=http://evil.example/x>"
    scaling = planted(published={"slow": Published(metrics={"gamma": 1}, source=hostile)})
    text = render_scaling(scaling, command="rankloom scale <a>.toml")
    assert hostile not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "rankloom scale &lt;a&gt;.toml" in text
    assert render_scaling(scaling, command="rankloom scale <a>.toml") == text
    (chart,) = scaling_charts(scaling)
    figure = json.loads(chart.figure)
    assert figure["layout"]["xaxis"]["type"] == "log"
    names = [trace["name"] for trace in figure["data"]]
    assert names == ["slow", "slow: gamma 0.120", "fast", "fast: gamma 0.120", "level"]
    points, line = figure["data"][:2]
    assert points["x"] == [1e6 * depth for depth in DEPTHS]
    assert points["text"][0] == "slow, num_layers=2"
    assert len(points["error_y"]["array"]) == len(DEPTHS)
    assert (line["x"][0], line["x"][-1]) == pytest.approx((2e6, 3.2e7))
    np.testing.assert_allclose(line["y"], B[0] - B[1] * np.array(line["x"]) ** -B[2], rtol=1e-7)


def test_a_line_that_its_points_do_not_decide_is_dotted() -> None:
    sizes = sizes_of("straight", "fm", (0.5, 0, 1), noise=0)
    for place, size in enumerate(sizes):
        for seed in size.runs:
            record = size.runs[seed].record.model_copy(
                update={"metrics": {"test": {"auc": 0.5 + 0.02 * place}}}
            )
            size.runs[seed] = StoredRun(Path(), record)
    scaling = build_scaling(sizes, samples=20)
    assert isinstance(scaling.models[0].fit, NoCurve)
    (chart,) = scaling_charts(scaling)
    line = json.loads(chart.figure)["data"][1]
    assert (line["name"], line["line"]["dash"]) == ("straight: gamma not decided", "dot")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "calibration_ratio"}, "calibration_ratio has no better and worse"),
        ({"metric": "gauc"}, "no run has gauc on the test split; there is auc"),
        ({"split": "valid"}, "no run has auc on the valid split; there is nothing"),
        ({"reference": "medium"}, r"reference medium is none of the recipes; there are slow \("),
    ],
)
def test_wrong_questions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted(**options)


def test_nothing_finished() -> None:
    sizes = sizes_of("slow", "wukong", B)
    for size in sizes:
        size.runs.clear()
    sizes[0].failures[0] = "the loss is not finite"
    with pytest.raises(ValueError, match="no finished run: the loss is not finite"):
        build_scaling(sizes)
