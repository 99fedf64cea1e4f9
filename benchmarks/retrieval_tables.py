"""Markdown tables of the results of retrieval."""

from typing import Any


def decoding(document: dict[str, Any]) -> list[str]:
    """Ways of decoding, and what the trie costs."""
    trie = document["trie"]
    lines = [
        f"Batches of {document['batch_size']} users for users per second; requests of one user for "
        "the time of a user.",
        "",
        "| generator | decoding | users/s | times the peer | p50 of a user | p99 of a user |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in document["results"]:
        rate = row["users_per_second"]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}"
        lines.append(
            f"| {row['model']} | {row['search']} | {rate:,.{1 if rate >= 10 else 3}f} | {ratio} "
            f"| {row['p50_seconds'] * 1e3:,.1f} ms | {row['p99_seconds'] * 1e3:,.1f} ms |"
        )
    same = [row["same_ids_as_peer"] for row in document["results"]]
    shares = [f"{share:.1%}" for share in same if share is not None]
    lines += [
        "",
        f"Beam search finds {', '.join(shares)} of the peer's ids.",
        "",
        f"**A step of decoding, {document['step_users']} users at once**",
        "",
        "| generator | any token, no trie | with the trie | the trie's gathers alone "
        "| their share of a step |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['free_step_seconds'] * 1e3:,.2f} ms "
        f"| {row['step_seconds'] * 1e3:,.2f} ms | {row['trie_seconds'] * 1e3:,.2f} ms "
        f"| {row['trie_seconds'] / row['step_seconds']:.1%} |"
        for row in document["steps"]
    ]
    if "cascade" in document:
        lines += [
            "",
            "**Merged ids against the COBRA-style cascade**, to item numbers",
            "",
            "| generator | codes of an id | users/s | share of the cascade's cost | p50 of a user "
            "| p99 of a user |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['model']} | {row['mean_length']:.2f} | {row['users_per_second']:,.1f} "
            f"| {row['share_of_cascade']:.0%} | {row['p50_seconds'] * 1e3:,.1f} ms "
            f"| {row['p99_seconds'] * 1e3:,.1f} ms |"
            for row in document["cascade"]
        ]
    children = ", ".join(f"{most}" for most in trie["most_children"])
    lines += [
        "",
        f"The trie of {trie['items']:,} items has {trie['nodes']:,} nodes, at most {children} "
        f"children at each depth, and is built in {trie['build_seconds'] * 1e3:,.0f} ms.",
    ]
    return lines


def tokenizing(document: dict[str, Any]) -> list[str]:
    """Tokenizers side by side."""
    lines = [
        "| tokenizer | items/s | fitting | memory while fitting | memory in all |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['tokenizer']} | {row['items_per_second']:,.0f} | {row['fit_seconds']:,.1f} s "
        f"| {row['fit_memory_bytes'] / 2**20:,.0f} MiB "
        f"| {row['peak_memory_bytes'] / 2**20:,.0f} MiB |"
        for row in document["results"]
    ]
    return lines


TABLES = {"retrieval_decoding": decoding, "tokenizing": tokenizing}
"""By the kind of a result document."""
