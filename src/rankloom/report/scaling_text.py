"""Scaling curves as sentences and tables: scaling.md, the terminal, and the page's tables."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from rankloom.evaluation.equal_compute import NotReached
from rankloom.evaluation.scaling import Estimate, NoCurve, gap_shrinkage
from rankloom.report.inspection_table import InspectionTable
from rankloom.report.scaling import EqualRow, ModelScaling, Scaling
from rankloom.report.texts import MISSING, count, number, summary_text

LARGE_SHARE_AT_BOUND = 0.1
"""Share of bootstrap draws at a bound that a reader is warned of."""


def law_sentence(scaling: Scaling, model: ModelScaling) -> str:
    """The fitted law of one model with its intervals, or why there is none."""
    fit = model.fit
    if isinstance(fit, NoCurve):
        return f"{model.name}: no curve ({fit.reason})."
    sign = "-" if scaling.higher_is_better else "+"
    text = (
        f"{model.name}: {scaling.metric}(C) = {fit.alpha.value:.4f} {sign} {fit.beta.value:.4g} "
        f"C^(-{fit.gamma.value:.3f}); gamma {_estimate(fit.gamma, 3)}, R2 {fit.r2:.3f}. Twice the "
        f"compute takes away {gap_shrinkage(fit.gamma.value):.1%} of the distance to alpha."
    )
    if fit.share_at_bound > LARGE_SHARE_AT_BOUND:
        text += (
            f" In {fit.share_at_bound:.0%} of the bootstrap draws alpha or gamma lay at a bound: "
            "the points hardly decide the curve."
        )
    return text


def equal_sentence(scaling: Scaling, model: ModelScaling, row: EqualRow) -> str:
    """What the reference needs to be as good as a model at one size."""
    own = f"{model.name} at {row.size}"
    if isinstance(row.outcome, NotReached):
        return f"{own} against {scaling.reference}: {row.outcome.reason}."
    return (
        f"{own} equals {scaling.reference} at {count(row.outcome.compute)} FLOPs per row, "
        f"{row.outcome.ratio:.2f} times the compute {_ratio_interval(row)}; the nearest size there "
        f"is {row.nearest}."
    )


def headlines(scaling: Scaling) -> list[str]:
    """The law of every model, and of each but the reference its best size that this one reaches."""
    lines = [law_sentence(scaling, model) for model in scaling.models]
    for model in scaling.models:
        reached = [
            (row.outcome.compute, row)
            for row in model.equal
            if not isinstance(row.outcome, NotReached)
        ]
        if reached:
            best = max(reached, key=lambda found: found[0])[1]
            lines.append(equal_sentence(scaling, model, best))
        elif model.equal:
            lines.append(equal_sentence(scaling, model, model.equal[0]))
    return lines


def claims(scaling: Scaling) -> list[str]:
    """One line per model that a paper claims something of."""
    return [
        f"Published ({model.name}): "
        + ", ".join(f"{name} {value:g}" for name, value in model.published.metrics.items())
        + f". {model.published.source}"
        for model in scaling.models
        if model.published is not None
    ]


def method(scaling: Scaling) -> list[str]:
    """What a reader must know of the numbers."""
    sign = "-" if scaling.higher_is_better else "+"
    notes = [
        f"C: floating-point operations of scoring one row, of all kinds. Law: {scaling.metric}(C) "
        f"= alpha {sign} beta C^(-gamma), least squares over all runs. gamma does not depend on "
        "the unit of C, beta does.",
        f"Intervals: {scaling.level:.0%}, from {scaling.samples:,} bootstrap draws of sizes, and "
        "of the seeds of each. Nothing is claimed beyond the smallest and the largest size.",
    ]
    if len(scaling.source_hashes) > 1:
        notes.append(
            f"The runs were made by several sources ({', '.join(scaling.source_hashes)}): the "
            "library changed while the grid was trained."
        )
    for model in scaling.models:
        if model.skipped:
            notes.append(f"Not settings of {model.name}: {', '.join(model.skipped)}.")
        notes += [
            f"{model.name} at {size.size}, seed {seed}, failed: {reason}"
            for size in model.sizes
            for seed, reason in size.failures.items()
        ]
    return notes


def law_table(scaling: Scaling) -> InspectionTable:
    """The fitted laws, a line per model."""
    rows = []
    for model in scaling.models:
        fit = model.fit
        if isinstance(fit, NoCurve):
            rows.append((model.name, *[MISSING] * 5, fit.reason))
            continue
        rows.append(
            (
                model.name,
                _estimate(fit.gamma, 3),
                _estimate(fit.alpha, 4),
                f"{fit.beta.value:.4g}",
                f"{fit.r2:.3f}",
                f"{gap_shrinkage(fit.gamma.value):.1%}",
                f"{fit.share_at_bound:.0%} of draws at a bound",
            )
        )
    return InspectionTable(
        title="Curves",
        columns=("recipe", "gamma", "alpha", "beta", "R2", "gap closed by doubling C", ""),
        rows=tuple(rows),
        notes=tuple(claims(scaling)),
    )


def size_table(scaling: Scaling) -> InspectionTable:
    """Every point: its size, compute and metric."""
    rows = [
        (
            model.name,
            size.size,
            count(size.flops_per_row),
            count(size.dense_parameters),
            count(size.embedding_parameters),
            str(size.metric.count),
            summary_text(size.metric),
        )
        for model in scaling.models
        for size in model.sizes
    ]
    metric = f"{scaling.split} {scaling.metric}"
    return InspectionTable(
        title="Sizes",
        columns=("recipe", "size", "FLOPs/row", "dense", "embedding", "seeds", metric),
        rows=tuple(rows),
        names=2,
        notes=tuple(method(scaling)),
    )


def equal_table(scaling: Scaling) -> InspectionTable | None:
    """The compute that the reference needs for each size of the others; None: there are none."""
    rows = []
    for model in scaling.models:
        for row in model.equal:
            if isinstance(row.outcome, NotReached):
                cells = (MISSING, MISSING, MISSING, row.outcome.reason)
            else:
                times = f"{row.outcome.ratio:.2f}"
                cells = (times, _ratio_interval(row), count(row.outcome.compute), row.nearest or "")
            rows.append((model.name, row.size, *cells))
    if not rows:
        return None
    return InspectionTable(
        title=f"Compute that {scaling.reference} needs for the same {scaling.metric}",
        columns=(
            "recipe",
            "size",
            "times",
            "interval",
            "FLOPs/row",
            f"size of {scaling.reference}",
        ),
        rows=tuple(rows),
        names=2,
        notes=(
            "Times: that compute over the model's own; above 1 the model saves compute. Read off "
            f"the fitted line of {scaling.reference} between its smallest and its largest size; of "
            "its sizes the one nearest in compute is named. The interval draws the seeds of the "
            "model's size together with those lines.",
        ),
    )


def to_markdown(scaling: Scaling, *, command: str = "") -> str:
    """Laws, comparisons and points."""
    parts = [
        "# Scaling",
        f"{scaling.dataset.name}, {scaling.split} split, data `{scaling.dataset.data_hash}`. "
        f"rankloom {scaling.versions.rankloom}, source `{scaling.commit.source_hash}`, "
        f"{scaling.machine.cpu}.",
    ]
    if command:
        parts.append(f"```text\n{command}\n```")
    parts.append(_bullets(headlines(scaling)))
    for table in (law_table(scaling), equal_table(scaling), size_table(scaling)):
        if table is not None:
            parts += [f"## {_cell(table.title)}", _table(table)]
            if table.notes:
                parts.append(_bullets(table.notes))
    return "\n\n".join(parts) + "\n"


def terminal(scaling: Scaling) -> Group:
    """Points, then laws and comparisons, as a rich renderable."""
    drawn = RichTable(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for position, heading in enumerate(("recipe", "size", "FLOPs/row", "seeds", scaling.metric)):
        drawn.add_column(heading, justify="left" if position < 2 else "right", overflow="fold")
    for model in scaling.models:
        for size in model.sizes:
            cells = (model.name, size.size, count(size.flops_per_row), str(size.metric.count))
            drawn.add_row(*map(Text, cells), Text(number(size.metric.mean)))
    return Group(drawn, *map(Text, [*headlines(scaling), *claims(scaling)]))


def _estimate(estimate: Estimate, digits: int) -> str:
    ends = f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.value:.{digits}f} {ends}"


def _ratio_interval(row: EqualRow) -> str:
    assert not isinstance(row.outcome, NotReached)
    low, high = row.outcome.low, row.outcome.high
    below = "below the grid" if low is None else f"{low:.2f}"
    above = "beyond the grid" if high is None else f"{high:.2f}"
    return f"[{below}, {above}]"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _table(table: InspectionTable) -> str:
    dashes = ["---"] * table.names + ["---:"] * (len(table.columns) - table.names)
    lines = [table.columns, dashes, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot end a Markdown cell, start a line or become markup."""
    flat = " ".join(text.split())
    for character in "\\|<>*`":
        flat = flat.replace(character, f"\\{character}")
    return flat
