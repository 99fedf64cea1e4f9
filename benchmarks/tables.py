"""Markdown tables of result files."""

import statistics
from typing import Any

from benchmarks import retrieval_tables
from benchmarks.speed import median_ratio

OURS = ("rankloom", "rankloom bf16 compiled")
ROOFLINE = {
    "rankloom": "matrix products float32",
    "rankloom bf16 compiled": "matrix products bfloat16",
}


def to_markdown(document: dict[str, Any]) -> str:
    """The tables of one result document."""
    tables = {
        "training": _training,
        "preparation": _preparation,
        "parts": _parts,
        "zoo": _zoo,
        "dlf": _dlf,
        "onetrans_cache": _onetrans_cache,
        "connections": _connections,
        "experts": _experts,
        "loopctr": _loopctr,
        "scenario": _scenario,
    }
    if document["kind"] in retrieval_tables.TABLES:
        table = retrieval_tables.TABLES[document["kind"]]
        return "\n".join([*_header(document), *table(document)])
    return tables[document["kind"]](document)


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


def _zoo(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| model | sizes | training rows/s | ÷ best peer | inference rows/s | ÷ best peer "
        "| MFLOP/row | share of peak | memory | best peer's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    slower = []
    for result in document["results"]:
        name = result["case"] if result["wheel_has_layer"] else f"{result['case']} †"
        training, inference = (
            result[f"{kind}_rows_per_second"] for kind in ("training", "inference")
        )
        rates = [statistics.median(rate["rankloom"]) for rate in (training, inference)]
        ratios = [_against_best(rate) for rate in (training, inference)]
        if any(ratio is not None and ratio[1] < 1 for ratio in ratios):
            slower.append(f"`{result['case']}`")
        cost, memory = result["cost"], result["peak_memory_bytes"]
        # A training step is three forward passes: its own, and two of products in backward.
        share = (
            3
            * cost["flops_per_row"]
            * rates[0]
            / statistics.median(result["peak_flops_per_second"])
        )
        best = ratios[0]
        theirs = "" if best is None else f"{memory[best[0]] / 2**30:.1f} GiB"
        lines.append(
            f"| {name} | {result['sizes']} | {rates[0]:,.0f} | {_shown(ratios[0])} "
            f"| {rates[1]:,.0f} | {_shown(ratios[1])} | {cost['flops_per_row'] / 1e6:.2f} "
            f"| {share:.0%} | {memory['rankloom'] / 2**30:.1f} GiB | {theirs} |"
        )
    verdict = f"A peer is faster at {', '.join(slower)}." if slower else "No peer is faster."
    return "\n".join([*lines, "", verdict])


def _against_best(rates: dict[str, list[float]]) -> tuple[str, float] | None:
    """The fastest peer and our rate over its; None where nobody else has the model."""
    peers = {name: statistics.median(rate) for name, rate in rates.items() if name != "rankloom"}
    if not peers:
        return None
    best = max(peers, key=lambda name: peers[name])
    return best, median_ratio(rates["rankloom"], rates[best])


def _shown(ratio: tuple[str, float] | None) -> str:
    if ratio is None:
        return ""
    name, value = ratio
    mark = f"**{value:.2f}, slower**" if value < 1 else f"{value:.2f}"
    return f"{mark} {name}"


def _dlf(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| fields | layers | step | forward | backward | memory | MFLOP/row "
        "| share of product peak | share of copy bandwidth |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in document["results"]:
        cost = result["cost"]
        seconds = result["forward_seconds"]
        rate = cost["batch_rows"] / seconds
        flops = cost["flops_per_row"] * rate / result["flops_per_second"]
        moved = cost["bytes_moved_per_row"] * rate / result["bytes_per_second"]
        lines.append(
            f"| {result['fields']} | {result['layers']} | {result['step_seconds'] * 1e3:,.0f} ms "
            f"| {seconds * 1e3:,.0f} ms | {result['backward_seconds'] * 1e3:,.0f} ms "
            f"| {result['peak_memory_bytes'] / 2**30:.1f} GiB | {cost['flops_per_row'] / 1e6:.2f} "
            f"| {flops:.0%} | {moved:.0%} |"
        )
    return "\n".join(lines)


def _connections(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| connection | step ÷ identity | compiled ÷ identity | memory for backward ÷ identity "
        "| operations ÷ identity |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for result in document["results"]:
        compiled = result.get("compiled_ratio")
        lines.append(
            f"| {result['connection']} | {result['eager_ratio']:.2f} "
            f"| {'' if compiled is None else f'{compiled:.2f}'} "
            f"| {result['saved_bytes_ratio']:.2f} | {result['flops_ratio']:.3f} |"
        )
    return "\n".join(lines)


def _experts(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| experts | active | choices | dim | rows | forward, all | ÷ chosen "
        "| step, all | ÷ chosen | auto |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for result in document["results"]:
        forward, step = result["all_forward_seconds"], result["all_step_seconds"]
        lines.append(
            f"| {result['experts']} {result['layer']} | {result['active']} "
            f"| {'even' if result['even'] else 'uneven'} | {result['dim']} | {result['rows']:,} "
            f"| {forward * 1e3:,.2f} ms | {forward / result['chosen_forward_seconds']:.2f} "
            f"| {step * 1e3:,.2f} ms | {step / result['chosen_step_seconds']:.2f} "
            f"| {result['auto']} |"
        )
    return "\n".join(lines)


def _onetrans_cache(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "| candidates | pyramid | events with every candidate | events once | of which encoding "
        "| times faster | cache |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in document["results"]:
        together, encode = result["together_seconds"], result["encode_seconds"]
        once = encode + result["score_seconds"]
        lines.append(
            f"| {result['candidates']:,} | {'yes' if result['pyramid'] else 'no'} "
            f"| {together * 1e3:,.1f} ms | {once * 1e3:,.1f} ms | {encode * 1e3:,.1f} ms "
            f"| {together / once:.1f} | {result['cache_bytes'] / 1024:,.0f} KiB |"
        )
    return "\n".join(lines)


def _loopctr(document: dict[str, Any]) -> str:
    lines = [
        *_header(document),
        "**A training step**",
        "",
        "| model | rows/s | ÷ LoopCTR | kept for backward |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['rows_per_second']:,.0f} | {row['ratio']:.2f} "
        f"| {row['saved_bytes'] / 2**20:,.0f} MiB |"
        for row in document["training"]
    ]
    lines += [
        "",
        "**Scoring a prepared data set**",
        "",
        "| model | loops | rows/s | ÷ LoopCTR with all loops |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {'' if row['loops'] is None else row['loops']} "
        f"| {row['rows_per_second']:,.0f} | {row['ratio']:.2f} |"
        for row in document["scoring"]
    ]
    lines += [
        "",
        "**One request**",
        "",
        "| loops | candidates | events with every candidate | events once | times faster | cache |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in document["requests"]:
        once = row["encode_seconds"] + row["score_seconds"]
        lines.append(
            f"| {row['loops']} | {row['candidates']:,} | {row['together_seconds'] * 1e3:,.1f} ms "
            f"| {once * 1e3:,.1f} ms | {row['together_seconds'] / once:.1f} "
            f"| {row['cache_bytes'] / 1024:,.0f} KiB |"
        )
    return "\n".join(lines)


def _scenario(document: dict[str, Any]) -> str:
    lines = _header(document)
    for size, hidden in document["hidden"].items():
        lines += [
            f"**A training step, hidden layers {hidden}**",
            "",
            "| model | parameters | rows/s | ÷ DNN |",
            "| --- | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['model']} | {row['parameters']:,} | {row['rows_per_second']:,.0f} "
            f"| {row['ratio']:.2f} |"
            for row in document["training"]
            if row["size"] == size
        ]
        lines += [
            "",
            f"**Scoring, hidden layers {hidden}**",
            "",
            "| model | rows of a batch | milliseconds | times faster than MI-DPG |",
            "| --- | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['model']} | {row['rows']:,} | {row['milliseconds']:.2f} | {row['ratio']:.2f} |"
            for row in document["scoring"]
            if row["size"] == size
        ]
        lines.append("")
    return "\n".join(lines)
