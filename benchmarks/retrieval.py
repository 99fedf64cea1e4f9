"""Decoding on a catalogue of Beauty's size: users per second, time of a user, cost of the trie.

All in one process with one set of random weights, one way after another in every round. The peer
(`retrieval_t5`) has the weights of our encoder-decoder. Throughput is of batches, the time of a
user of requests that come one at a time.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from benchmarks.onetrans_cache import seconds_of
from benchmarks.retrieval_cascade import CASCADE_SIZES, compare
from benchmarks.retrieval_t5 import HuggingFaceSearch
from rankloom.retrieval.decode_step import children_of
from rankloom.retrieval.decoding import Decoded, beam_search, exact_search
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.histories import HistoryBatch, pad_histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import Generator
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.trie import Trie

NUM_ITEMS = 12_101
"""Of Amazon Beauty."""
LEVEL_SIZES = (256, 256, 256)
MEAN_LENGTH = 9
"""Items of a history, about as in Amazon Beauty; never more than `MAX_LENGTH`."""
MAX_LENGTH = 20
BEAMS = 50
BATCH_SIZE = 32
USERS = 128
"""Decoded in batches."""
REQUESTS = 100
"""Decoded one at a time."""
STEP_USERS = 8
"""Decoded at once where a step is taken apart: about the block that decoding makes itself."""
SLOW_USERS = 4
"""Of exact scoring, in every round."""
PEER = "Hugging Face generate, dict trie"


def run(
    out: Path,
    *,
    rounds: int,
    threads: int,
    num_items: int = NUM_ITEMS,
    users: int = USERS,
    requests: int = REQUESTS,
) -> None:
    """Measure and write one result file."""
    import transformers

    torch.set_num_threads(threads)
    ids = synthetic_ids(num_items)
    trie = Trie.build(ids)
    schema = ItemSchema(ids.num_items, ids=ids)
    histories = synthetic_histories(num_items, max(users, requests))
    torch.manual_seed(0)
    config = EncDecConfig(max_length=MAX_LENGTH)
    encdec = EncDec(config, schema).eval()
    decoder = Decoder(DecoderConfig(max_length=MAX_LENGTH), schema).eval()
    peer = HuggingFaceSearch(encdec, config, ids)
    building = [seconds_of(partial(Trie.build, ids)) for _ in range(rounds)]
    facts = describe_machine(threads)
    facts["versions"]["transformers"] = transformers.__version__
    document = {
        "kind": "retrieval_decoding",
        "what": f"{num_items:,} items with ids of {len(LEVEL_SIZES)} codes and an end, {BEAMS} "
        f"beams, histories of {MEAN_LENGTH} items on average, float32, random weights",
        "rounds": rounds,
        "batch_size": BATCH_SIZE,
        "step_users": STEP_USERS,
        "trie": {
            "items": num_items,
            "nodes": trie.num_nodes,
            "ids": trie.leaves,
            "most_children": trie.max_branch,
            "build_seconds": statistics.median(building),
        },
        "results": _searches(encdec, decoder, peer, trie, histories, rounds, users, requests),
        "steps": [
            {"model": name, **_step(model, trie, _rows(histories, 0, STEP_USERS), rounds)}
            for name, model in _models(encdec, decoder).items()
        ],
        "cascade": compare(
            synthetic_ids(num_items, CASCADE_SIZES),
            _batches(histories, users),
            _single(histories, requests),
            beams=BEAMS,
            rounds=rounds,
            max_length=MAX_LENGTH,
        ),
        **facts,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def synthetic_ids(num_items: int, level_sizes: tuple[int, ...] = LEVEL_SIZES) -> SemanticIds:
    """Ids whose codes are unevenly frequent, as those of clusters are, with a few collisions."""
    rng = np.random.default_rng(0)
    codes = []
    for size in level_sizes:
        weights = rng.lognormal(0.0, 1.0, size)
        codes.append(rng.choice(size, num_items, p=weights / weights.sum()))
    return SemanticIds(np.stack(codes, 1).astype(np.int32), level_sizes)


def synthetic_histories(num_items: int, users: int) -> HistoryBatch:
    """Random items; lengths are geometric, from 3 on."""
    rng = np.random.default_rng(1)
    lengths = np.minimum(3 + rng.geometric(1 / (MEAN_LENGTH - 2), users) - 1, MAX_LENGTH)
    rows = [rng.integers(1, num_items + 1, length) for length in lengths]
    return HistoryBatch(pad_histories(rows, MAX_LENGTH))


def _models(encdec: nn.Module, decoder: nn.Module) -> dict[str, Any]:
    return {"encdec": encdec, "decoder": decoder}


def _rows(batch: HistoryBatch, start: int, stop: int) -> HistoryBatch:
    """Some rows, as narrow as they can be."""
    items = batch.items[start:stop]
    return HistoryBatch(items[:, : int((items > 0).sum(1).max())])


def _batches(histories: HistoryBatch, users: int) -> list[HistoryBatch]:
    return [
        _rows(histories, start, min(start + BATCH_SIZE, users))
        for start in range(0, users, BATCH_SIZE)
    ]


def _single(histories: HistoryBatch, requests: int) -> list[HistoryBatch]:
    return [_rows(histories, user, user + 1) for user in range(requests)]


def _searches(
    encdec: EncDec,
    decoder: Decoder,
    peer: HuggingFaceSearch,
    trie: Trie,
    histories: HistoryBatch,
    rounds: int,
    users: int,
    requests: int,
) -> list[dict[str, Any]]:
    batches, single = _batches(histories, users), _single(histories, requests)
    few = [_rows(histories, 0, SLOW_USERS)]
    Search = Callable[[HistoryBatch], Any]
    searches: dict[tuple[str, str], tuple[Search, list[HistoryBatch], list[HistoryBatch]]] = {
        ("encdec", PEER): (partial(peer, beams=BEAMS), batches, single)
    }
    for name, model in _models(encdec, decoder).items():
        beam = partial(beam_search, model, trie=trie, beams=BEAMS)
        searches |= {
            (name, "beam search"): (beam, batches, single),
            (name, "beam search, renormalised"): (partial(beam, renormalise=True), batches, single),
            (name, "exact"): (
                partial(exact_search, model, trie=trie, beams=BEAMS),
                few,
                single[:SLOW_USERS],
            ),
        }
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in searches}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in searches}
    for turn in range(rounds + 1):  # the first warms up
        for key, (search, together, alone) in searches.items():
            seconds = sum(seconds_of(partial(search, batch)) for batch in together)
            if turn:
                rates[key].append(sum(batch.size for batch in together) / seconds)
            if turn == rounds:
                times[key] += [seconds_of(partial(search, batch)) for batch in alone]
    theirs = rates["encdec", PEER]
    same = _same_as_peer(peer, encdec, trie, few[0])
    return [
        {
            "model": name,
            "search": search,
            "users_per_second": statistics.median(rates[name, search]),
            "ratio": _ratio(rates[name, search], theirs) if name == "encdec" else None,
            "requests": len(times[name, search]),
            "p50_seconds": float(np.percentile(times[name, search], 50)),
            "p99_seconds": float(np.percentile(times[name, search], 99)),
            "same_ids_as_peer": same if (name, search) == ("encdec", "beam search") else None,
        }
        for name, search in searches
    ]


def _same_as_peer(peer: HuggingFaceSearch, model: EncDec, trie: Trie, batch: HistoryBatch) -> float:
    """Share of the peer's ids that our beam search finds: it must do the same work."""
    ours = beam_search(model, batch, trie, beams=BEAMS).leaves.tolist()
    theirs = peer.found(batch, BEAMS)
    return statistics.mean(
        len(found & set(leaves)) / len(found) for found, leaves in zip(theirs, ours, strict=True)
    )


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times faster, the median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def _step(model: Generator, trie: Trie, batch: HistoryBatch, rounds: int) -> dict[str, float]:
    """Seconds of a step of decoding with the trie and without, and of the trie's part alone."""
    parts: dict[str, Callable[[], Any]] = {
        "start": partial(model.start, batch),
        "with": partial(beam_search, model, batch, trie, beams=BEAMS, memory_bytes=2**40),
        "without": partial(free_search, model, batch, trie.depth),
        "trie": trie_part(trie, batch.size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):  # the first warms up
        for name, part in parts.items():
            elapsed = seconds_of(part)
            if turn:
                seconds[name].append(elapsed)
    start, bound, free, trie_alone = (statistics.median(seconds[name]) for name in parts)
    return {
        "start_seconds": start,
        "step_seconds": (bound - start) / trie.depth,
        "free_step_seconds": (free - start) / trie.depth,
        "trie_seconds": trie_alone / trie.depth,
    }


def free_search(model: Generator, batch: HistoryBatch, steps: int, beams: int = BEAMS) -> Decoded:
    """Beam search over the whole vocabulary, valid or not: what a step costs without a trie."""
    hidden, state = model.start(batch)
    scores = torch.zeros(batch.size, 1)
    for step in range(steps):
        gains = model.logits(hidden).log_softmax(-1)  # [batch, beams, vocabulary]
        totals = (scores[:, :, None] + gains).flatten(1)
        scores, choice = totals.topk(beams, dim=1)
        tokens = choice % gains.shape[2]
        if step + 1 < steps:
            hidden, state = model.advance(state, tokens, choice // gains.shape[2])
    return Decoded(tokens, scores)


def trie_part(trie: Trie, users: int) -> Callable[[], None]:
    """What the trie alone adds to all steps: children, their tokens, and gathering their logits."""
    rng = torch.Generator().manual_seed(0)
    steps: list[tuple[Tensor, Tensor]] = []
    first, last = 0, 1  # nodes of the depth
    for depth in range(trie.depth):
        beams = BEAMS if depth else 1
        nodes = torch.randint(first, last, (users, beams), generator=rng, dtype=torch.int32)
        steps.append((nodes, torch.randn(users, beams, trie.vocabulary_size, generator=rng)))
        inner = ~trie.is_leaf(torch.arange(first, last))
        first, last = last, last + int(trie.num_children[first:last][inner].sum())

    def call() -> None:
        for depth, (nodes, logits) in enumerate(steps):
            children = children_of(trie, nodes, depth)
            gains = logits.gather(2, children.tokens)
            gains.masked_fill(children.stays, 0.0).masked_fill(~children.legal, -torch.inf)

    return call
