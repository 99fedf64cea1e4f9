"""Markdown tables of result files."""

import statistics
from typing import Any

from benchmarks.speed import median_ratio

OURS = ("rankloom", "rankloom bf16 compiled")
ROOFLINE = {
    "rankloom": "matrix products float32",
    "rankloom bf16 compiled": "matrix products bfloat16",
}


def to_markdown(document: dict[str, Any]) -> str:
    """The tables of one result document."""
    return {"training": _training, "preparation": _preparation, "parts": _parts}[document["kind"]](
        document
    )


def _header(document: dict[str, Any]) -> list[str]:
    machine, versions = document["machine"], document["versions"]
    return [
        f"{document['what'][0].upper()}{document['what'][1:]}. {machine['cpu']}, "
        f"{machine['threads']} threads, torch {versions['torch']}, Python {versions['python']}; "
        f"medians of {document['rounds']} alternating rounds, {document['when']}.",
        "",
    ]


def _training(document: dict[str, Any]) -> str:
    lines = _header(document)
    for key, title in (
        ("training_rows_per_second", "Training"),
        ("inference_rows_per_second", "Inference"),
    ):
        lines += [
            f"**{title}**",
            "",
            "| model | library | rows/s | ÷ FuxiCTR | share of matrix-product limit | AUC |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for result in document["results"]:
            rates = result[key]
            for name, values in rates.items():
                if name.startswith("matrix"):
                    continue
                limit = rates.get(ROOFLINE.get(name, "matrix products float32"))
                share = "" if limit is None else f"{median_ratio(values, limit):.0%}"
                auc = result["validation_auc_after_the_run"][name]
                lines.append(
                    f"| {result['model']} | {name} | {statistics.median(values):,.0f} "
                    f"| {median_ratio(values, rates['fuxictr']):.2f} | {share} | {auc:.4f} |"
                )
        lines.append("")
    return "\n".join(lines)


def _preparation(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| rows | library | rows/s | ÷ FuxiCTR | peak memory |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    theirs = {
        result["rows"]: result["rows_per_second"]
        for result in document["results"]
        if result["library"] == "fuxictr"
    }
    for result in document["results"]:
        rates = result["rows_per_second"]
        peer = theirs.get(result["rows"])
        ratio = "" if peer is None else f"{median_ratio(rates, peer):.1f}"
        lines.append(
            f"| {result['rows']:,} | {result['library']} | {statistics.median(rates):,.0f} "
            f"| {ratio} | {result['peak_memory_bytes'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def _parts(document: dict[str, Any]) -> str:
    lines = [*_header(document), "| part | median |", "| --- | ---: |"]
    for result in document["results"]:
        value = result["median"]
        shown = f"{value:,.0f}" if value > 100 else f"{value:.3f}"
        lines.append(f"| {result['part']} | {shown} {result['unit']} |")
    return "\n".join(lines)
