"""Numbers, differences and names as the text of a table's cell."""

import math

from rankloom.report.leaderboard import SIGNIFICANCE
from rankloom.report.seeds import Difference, Summary

MISSING = "-"
"""What stands in a table where there is nothing to say."""


def number(value: float | None, digits: int = 5) -> str:
    """A metric value."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A count, a rate or a cost: whole below ten thousand, then three figures (63.8k, 1.25M)."""
    if value is None or math.isnan(value):
        return MISSING
    if abs(value) < 9_999.5:
        return f"{value:,.0f}"
    for limit, suffix in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if abs(value) < 999.5 * limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value / 1e12:.3g}T"


def p_text(value: float) -> str:
    """A p-value."""
    if math.isnan(value):
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def summary_text(summary: Summary) -> str:
    """Mean ± deviation; with the number of seeds it stands on when some are undefined."""
    text = number(summary.mean)
    if not math.isnan(summary.deviation):
        text += f" ± {summary.deviation:.5f}"
    if summary.values and not summary.complete and summary.count:
        text += f" ({summary.count} of {len(summary.values)})"
    return text


def difference_text(difference: Difference | None) -> str:
    """Signed difference with its adjusted p-value."""
    if difference is None or math.isnan(difference.mean):
        return MISSING
    text = f"{difference.mean:+.5f}"
    if not math.isnan(difference.p_adjusted):
        text += f" (p {p_text(difference.p_adjusted)})"
    return text


def significant(difference: Difference | None) -> bool:
    """Whether a difference to the reference counts, after adjustment."""
    return difference is not None and difference.p_adjusted < SIGNIFICANCE


def markdown_cell(text: str) -> str:
    """Text that cannot end a Markdown cell, start a line or become markup."""
    flat = " ".join(text.split())
    for character in "\\|<>*`[]":
        flat = flat.replace(character, f"\\{character}")
    return flat
