"""Two ways to items that share no id: longer merged ids, or short ids and a dense second stage.

A decoder over ids of mean length about 3.1, as CapsID's are after SemanticBPE's merges, against the
COBRA-style cascade over ids of three levels of 32 codes, as published, whose beams are told apart
by vectors. Both have the same layers and beams; every call ends with item numbers.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.onetrans_cache import seconds_of
from rankloom.retrieval.decoding import beam_search, top_items
from rankloom.retrieval.generators.cobra import Cobra, CobraConfig
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.merges import (
    FrequencyOnly,
    SemanticBPEConfig,
    learn_merges,
    with_merges,
)
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.trie import Trie

LEVEL_SIZES = (256,) * 5
SHORTEST, LONGEST = 3, 5
"""Codes of an id before merges."""
MAX_MERGES = 1024
CASCADE_SIZES = (32,) * 3
"""As published."""
VECTOR_WIDTH = 384
"""Of the item vectors, as of the sentence encoder."""
COUNT = 10
"""Items wanted."""
Call = Callable[[HistoryBatch], tuple[Tensor, Tensor]]


def compare(
    ids: SemanticIds,
    together: list[HistoryBatch],
    alone: list[HistoryBatch],
    *,
    beams: int,
    rounds: int,
    max_length: int,
) -> list[dict[str, Any]]:
    """A row for each: users per second in batches, the time of a user alone, the share of the cost.

    Args:
        ids: of the cascade; the decoder has ids of its own, of as many items.
        together: batches of users.
        alone: requests of one user.
        beams: ids that are kept.
        rounds: rounds, one way after the other in each.
        max_length: items of a history that are read.
    """
    merged = merged_ids(ids.num_items)
    calls = {
        "decoder": _decoder(merged, beams, max_length),
        "cobra": _cascade(ids, beams, max_length),
    }
    of_batches: dict[str, list[float]] = {name: [] for name in calls}
    of_users: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            seconds = sum(seconds_of(partial(call, batch)) for batch in together)
            if turn:
                of_batches[name].append(seconds)
            if turn == rounds:
                of_users[name] += [seconds_of(partial(call, batch)) for batch in alone]
    users = sum(batch.size for batch in together)
    lengths = {
        name: (given.tokens > 0).sum(1) - 1 for name, given in (("decoder", merged), ("cobra", ids))
    }
    return [
        {
            "model": name,
            "mean_length": float(lengths[name].mean()),
            "users_per_second": users / statistics.median(of_batches[name]),
            "share_of_cascade": statistics.median(
                own / other
                for own, other in zip(of_batches[name], of_batches["cobra"], strict=True)
            ),
            "p50_seconds": float(np.percentile(of_users[name], 50)),
            "p99_seconds": float(np.percentile(of_users[name], 99)),
        }
        for name in calls
    ]


def merged_ids(num_items: int) -> SemanticIds:
    """Ids of three to five codes, unevenly frequent, with the most frequent pairs merged."""
    rng = np.random.default_rng(2)
    codes = []
    for size in LEVEL_SIZES:
        weights = rng.lognormal(0.0, 1.75, size)
        codes.append(rng.choice(size, num_items, p=weights / weights.sum()))
    lengths = rng.integers(SHORTEST, LONGEST + 1, num_items)
    table = np.stack(codes, 1).astype(np.int32)
    table[np.arange(len(LEVEL_SIZES)) >= lengths[:, None]] = -1
    ids = SemanticIds(table, LEVEL_SIZES)
    config = SemanticBPEConfig(max_merges=MAX_MERGES, score=FrequencyOnly())
    return with_merges(ids, learn_merges(ids, None, config))


def _decoder(ids: SemanticIds, beams: int, max_length: int) -> Call:
    trie = Trie.build(ids)
    schema = ItemSchema(ids.num_items, ids=ids)
    model = Decoder(DecoderConfig(max_length=max_length), schema).eval()

    def call(batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        return top_items(beam_search(model, batch, trie, beams=beams), trie, COUNT)

    return call


def _cascade(ids: SemanticIds, beams: int, max_length: int) -> Call:
    rng = torch.Generator().manual_seed(3)
    schema = ItemSchema(
        ids.num_items, ids=ids, vectors=torch.randn(ids.num_items, VECTOR_WIDTH, generator=rng)
    )
    config = CobraConfig(num_layers=DecoderConfig().num_layers, max_length=max_length)
    model, trie = Cobra(config, schema).eval(), Trie.build(ids)
    vectors = model.item_vectors()  # once, as when serving

    def call(batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        return model.recommend(batch, trie, count=COUNT, beams=beams, item_vectors=vectors)

    return call
