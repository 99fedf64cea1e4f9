"""From a generator to items: beam search over a trie, and exact scores of the whole catalogue.

Knows no model but the `Generator` protocol. The score of an id is the log-likelihood that training
computes for it: at each token a log-softmax over the whole vocabulary, from which the children of
the trie are gathered; no mask over the vocabulary is made. With `renormalise` the softmax is over
the children alone and only their logits are computed, which is faster and another ranking.

Put the generator in evaluation mode first: decoding does not, and dropout would blur its scores.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankloom.retrieval.decode_step import beam_bytes, best, children_of, log_probabilities
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.protocols import Generator, State
from rankloom.retrieval.semantic_ids import PADDING
from rankloom.retrieval.trie import Trie

CPU_BYTES, DEVICE_BYTES = 2**23, 2**30
"""Size of a block of users where none is given. Small on a processor: measured at 50 beams, blocks
of about eight users, which stay in its caches, took two thirds of the time of 32 users at once."""
EXACT_NODES = 1024
"""Nodes that exact scoring handles at once, at most."""


@dataclass(frozen=True)
class Decoded:
    """The best ids of each request, best first."""

    leaves: Int[Tensor, "batch beams"]
    """int64 leaves of the trie; -1 where there are fewer than `beams`."""
    scores: Float[Tensor, "batch beams"]
    """float32 log-likelihoods; -inf there."""


@torch.no_grad()
def beam_search(
    generator: Generator,
    batch: HistoryBatch,
    trie: Trie,
    *,
    beams: int,
    renormalise: bool = False,
    blocked: Int[Tensor, "batch blocked"] | None = None,
    memory_bytes: int | None = None,
) -> Decoded:
    """The likeliest ids of the catalogue, found with a fixed number of beams.

    The number of steps is the trie's depth for every request. Beams of equal scores are ordered by
    their tokens. With as many beams as the catalogue has ids nothing is ever dropped, and the
    answer is that of `exact_search`.

    Args:
        generator: in evaluation mode.
        batch: histories, on the device of the trie and of the generator.
        trie: the catalogue.
        beams: ids kept from step to step, and returned.
        renormalise: spread each step's probability over the children alone.
        blocked: numbers of items that a request may not get, 0 for none (its own history, say). An
            id is left out once all of its items are blocked.
        memory_bytes: users are decoded in blocks that take about this much beside the model and the
            answer, one user at least. None: 8 MiB on a processor, 1 GiB on other devices.

    Raises:
        ValueError: fewer than one beam, or an unknown item is blocked.
    """
    if beams < 1:
        raise ValueError(f"beams must be at least 1; got {beams}")
    parts = []
    for rows in _blocks(batch, trie, beams, memory_bytes):
        banned = None if blocked is None else trie.blocked_leaves(blocked[rows])
        parts.append(_beam_search(generator, _rows(batch, rows), trie, beams, renormalise, banned))
    return _joined(parts, beams, batch.items.device)


def _beam_search(
    generator: Generator,
    batch: HistoryBatch,
    trie: Trie,
    beams: int,
    renormalise: bool,
    blocked: Int[Tensor, "batch blocked"] | None,
) -> Decoded:
    """Beam search of one block of users; as many answers as there are, `beams` at most."""
    hidden, state = generator.start(batch)
    nodes = torch.zeros((batch.size, 1), dtype=torch.int32, device=batch.items.device)
    scores = torch.zeros(nodes.shape, device=nodes.device)
    if blocked is not None:  # nothing is left of a request that blocks every item
        scores = scores.masked_fill(~trie.is_legal(nodes, blocked), -math.inf)
    steps = trie.depth
    if renormalise:  # a node's only child is certain: what follows the last choice costs nothing
        steps = max(
            (depth + 1 for depth, most in enumerate(trie.max_branch) if most > 1), default=0
        )
    for depth in range(steps):
        children = children_of(trie, nodes, depth, blocked)
        gains = log_probabilities(generator, trie, hidden, children, renormalise=renormalise)
        totals = (scores[:, :, None] + gains).flatten(1)  # [batch, beams * branch]
        choice = best(totals, children.nodes.flatten(1), trie.first_leaf, beams)  # [batch, beams]
        parents = choice // gains.shape[2]
        scores = totals.gather(1, choice)
        nodes = children.nodes.flatten(1).gather(1, choice)
        if depth + 1 < steps:
            # A beam that was finished already writes padding.
            written = children.tokens.masked_fill(children.stays, PADDING)
            tokens = written.flatten(1).gather(1, choice)
            hidden, state = generator.advance(state, tokens, parents)
    leaves = trie.first_leaf[nodes].long()
    return Decoded(leaves.masked_fill(scores == -math.inf, -1), scores)


@torch.no_grad()
def score_all(
    generator: Generator,
    batch: HistoryBatch,
    trie: Trie,
    *,
    renormalise: bool = False,
    blocked: Int[Tensor, "batch blocked"] | None = None,
    memory_bytes: int | None = None,
) -> Float[Tensor, "batch leaves"]:
    """Log-likelihood of every id of the catalogue, float32; -inf where blocked.

    Every node of the trie is visited once for each user, some thousand at a time: for tests, and
    for catalogues below a million items where the time is there. It relies on `advance` leaving the
    state that it is given as it is. Arguments and errors are those of `beam_search`.
    """
    scores = torch.full((batch.size, trie.leaves), -math.inf, device=batch.items.device)
    most = _budget(batch, memory_bytes) // beam_bytes(trie)
    nodes_at_once = max(1, min(EXACT_NODES, trie.leaves, most))  # no depth has more than `leaves`
    for rows in _blocks(batch, trie, nodes_at_once, memory_bytes):
        block = _rows(batch, rows)
        banned = None if blocked is None else trie.blocked_leaves(blocked[rows])
        hidden, state = generator.start(block)
        root = torch.zeros(1, dtype=torch.int32, device=scores.device)
        visit = _Visit(generator, trie, renormalise, banned, nodes_at_once, scores[rows])
        visit.below(root, torch.zeros((block.size, 1), device=scores.device), hidden, state, 0)
    return scores


@dataclass(frozen=True)
class _Visit:
    """Scores everything below some nodes of one depth, depth first, into `scores`."""

    generator: Generator
    trie: Trie
    renormalise: bool
    blocked: Int[Tensor, "batch blocked"] | None
    nodes_at_once: int
    scores: Float[Tensor, "batch leaves"]

    def below(
        self,
        nodes: Int[Tensor, " nodes"],
        totals: Float[Tensor, "batch nodes"],
        hidden: Float[Tensor, "batch nodes dim"],
        state: State,
        depth: int,
    ) -> None:
        trie, size = self.trie, totals.shape[0]
        every = nodes.expand(size, -1)
        children = children_of(trie, every, depth, self.blocked)
        gains = log_probabilities(
            self.generator, trie, hidden, children, renormalise=self.renormalise
        )
        place = torch.arange(gains.shape[2], device=nodes.device)
        exists = place < trie.num_children[nodes][:, None]  # [nodes, branch]
        parents = exists.nonzero()[:, 0]  # [children]
        below = trie.first_child[nodes][parents] + place.expand_as(exists)[exists]
        totals = totals[:, parents] + gains[:, exists]  # [batch, children]
        ended = trie.is_leaf(below)
        self.scores[:, trie.first_leaf[below[ended]]] = totals[:, ended]
        inner = (~ended).nonzero()[:, 0]
        for start in range(0, len(inner), self.nodes_at_once):
            part = inner[start : start + self.nodes_at_once]
            tokens = trie.token[below[part]].long().expand(size, -1)
            chosen = parents[part].expand(size, -1)
            following, after = self.generator.advance(state, tokens, chosen)
            self.below(below[part], totals[:, part], following, after, depth + 1)


def exact_search(
    generator: Generator,
    batch: HistoryBatch,
    trie: Trie,
    *,
    beams: int,
    renormalise: bool = False,
    blocked: Int[Tensor, "batch blocked"] | None = None,
    memory_bytes: int | None = None,
) -> Decoded:
    """The likeliest ids by `score_all`: what `beam_search` approximates.

    Arguments and errors are those of `beam_search`.
    """
    if beams < 1:
        raise ValueError(f"beams must be at least 1; got {beams}")
    leaves = torch.arange(trie.leaves, device=batch.items.device)
    parts = []
    # The scores of a block are counted too: in a large catalogue they outgrow the nodes at hand.
    width = max(min(EXACT_NODES, trie.leaves), trie.leaves // trie.vocabulary_size)
    for rows in _blocks(batch, trie, width, memory_bytes):
        scores = score_all(
            generator,
            _rows(batch, rows),
            trie,
            renormalise=renormalise,
            blocked=None if blocked is None else blocked[rows],
            memory_bytes=memory_bytes,
        )
        choice = best(scores, leaves.expand(scores.shape), leaves, beams)
        scores = scores.gather(1, choice)
        parts.append(Decoded(choice.masked_fill(scores == -math.inf, -1), scores))
    return _joined(parts, beams, batch.items.device)


def top_items(
    decoded: Decoded,
    trie: Trie,
    count: int,
    blocked: Int[Tensor, "batch blocked"] | None = None,
) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
    """The items of the decoded ids, best first.

    Items that share an id have its score and stand in the order that `Trie.build` was given
    (`priority`, then item number).

    Args:
        decoded: ids, from the same trie.
        trie: the catalogue.
        count: items wanted.
        blocked: what decoding was given: an id may have other items than the blocked ones.

    Returns:
        int64 item numbers, 0 where there are fewer, and their float32 scores, -inf there.
    """
    extra = 0 if blocked is None else blocked.shape[1]
    leaves = decoded.leaves.clamp(min=0)  # [batch, beams]
    sizes = (trie.leaf_offsets[leaves + 1] - trie.leaf_offsets[leaves]).long()
    ends = sizes.masked_fill(decoded.leaves < 0, 0).cumsum(1)
    places = torch.arange(count + extra, device=leaves.device).expand(len(leaves), -1).contiguous()
    beam = torch.searchsorted(ends, places, right=True)  # [batch, count + extra]
    there = beam < leaves.shape[1]
    beam = beam.clamp(max=leaves.shape[1] - 1)
    inside = places - (ends - sizes).gather(1, beam)
    entry = (trie.leaf_offsets[leaves.gather(1, beam)] + inside).masked_fill(~there, 0)
    items = trie.leaf_items[entry].long().masked_fill(~there, 0)
    scores = decoded.scores.gather(1, beam).masked_fill(~there, -math.inf)
    if blocked is not None:
        barred = (items[:, :, None] == blocked[:, None, :]).any(2)
        items, scores = items.masked_fill(barred, 0), scores.masked_fill(barred, -math.inf)
        order = (items == 0).sort(dim=1, stable=True).indices[:, :count]
        items, scores = items.gather(1, order), scores.gather(1, order)
    return items, scores


def _budget(batch: HistoryBatch, memory_bytes: int | None) -> int:
    if memory_bytes is not None:
        return memory_bytes
    return CPU_BYTES if batch.items.device.type == "cpu" else DEVICE_BYTES


def _blocks(
    batch: HistoryBatch, trie: Trie, beams: int, memory_bytes: int | None
) -> Iterator[slice]:
    """Rows of the batch that are decoded together."""
    step = max(1, _budget(batch, memory_bytes) // (beam_bytes(trie) * beams))
    return (slice(start, start + step) for start in range(0, batch.size, step))


def _rows(batch: HistoryBatch, rows: slice) -> HistoryBatch:
    users = None if batch.users is None else batch.users[rows]
    return replace(batch, items=batch.items[rows], targets=None, users=users)


def _joined(parts: list[Decoded], beams: int, device: torch.device) -> Decoded:
    """The answers of all blocks, at full width."""
    size = sum(len(part.leaves) for part in parts)
    leaves = torch.full((size, beams), -1, device=device)
    scores = torch.full((size, beams), -math.inf, device=device)
    start = 0
    for part in parts:
        rows = slice(start, start + len(part.leaves))
        leaves[rows, : part.leaves.shape[1]] = part.leaves
        scores[rows, : part.scores.shape[1]] = part.scores
        start = rows.stop
    return Decoded(leaves, scores)
