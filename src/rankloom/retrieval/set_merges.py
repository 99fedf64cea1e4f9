"""ActionPiece's vocabulary: pairs of codes that occur together in histories become one token.

Source: Hou et al., ICML 2025, arXiv:2502.13581 (ActionPiece), section 3.2.1, and the weights of the
authors' code. An item is the set of its codes, a history a sequence of sets. A pair of tokens
weighs 2 / m in a set of m tokens and 1 / (m1 m2) in two neighbouring sets of m1 and m2 tokens; the
pair of the greatest weight over all histories becomes a token, and so on. A token made in two
neighbouring sets lies in a slot between them; a filled slot stands between its two neighbours as a
set of one token, and a set all of whose tokens are gone takes the token of the slot before it.
Differs from the paper: see `# DIFF:`. Weights are whole numbers here, so that equal ones are equal;
of these the pair of the lowest tokens is merged.
"""

import heapq
import math
from collections import defaultdict

import numpy as np
from pydantic import Field

from rankloom.config import Config
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.semantic_ids import FIRST_CODE, IntArray, SemanticIds

Sets = list[list[int]]
"""Tokens of each set of a history."""
Slots = list[int]
"""Between each set and the next: a token, or 0."""


class SetMergesConfig(Config):
    """How large a vocabulary is learned from histories."""

    vocabulary_size: int = Field(40_000, ge=1)
    """Tokens in all, codes and special tokens included; fewer where no two tokens are left beside
    each other. No more than the codes are: no merges."""
    max_items: int = Field(50, ge=1)
    """Histories are cut into pieces of at most so many items, newest first; pairs across a cut are
    not seen. Long histories are counted anew after each merge that changes them."""

    def learn(self, ids: SemanticIds, histories: Histories) -> IntArray:
        """`learn_set_merges` with these settings."""
        return learn_set_merges(
            ids, histories, vocabulary_size=self.vocabulary_size, max_items=self.max_items
        )


def learn_set_merges(
    ids: SemanticIds, histories: Histories, *, vocabulary_size: int, max_items: int = 50
) -> IntArray:
    """Merges of codes over histories; merges that the ids have already do not count.

    Args:
        ids: semantic ids of any tokenizer, one code for each level of an item.
        histories: the training part of the sequences.
        vocabulary_size: tokens in all.
        max_items: histories are cut into pieces of at most so many items.

    Returns:
        [merges, 2] int32 pairs of tokens, in the order they were learned. The token that begins at
        the lower level comes first, so that merges within an item apply to its id too.

    Raises:
        ValueError: the histories are of another number of items than the ids.
    """
    if histories.num_items != ids.num_items:
        raise ValueError(
            f"histories and ids must be of one catalogue; got {histories.num_items} and "
            f"{ids.num_items} items"
        )
    tokens = np.where(ids.codes >= 0, ids.codes + ids.level_offsets, 0)
    of_item = [[token for token in row if token] for row in tokens.tolist()]
    corpus = _Corpus(
        [
            [list(of_item[number - 1]) for number in piece]
            for user in range(histories.num_users)
            for piece in _pieces(histories.of(user).tolist(), max_items)
        ],
        num_levels=ids.codes.shape[1],
        num_tokens=max(vocabulary_size, FIRST_CODE + sum(ids.level_sizes)),
    )
    first_levels = [0] * FIRST_CODE
    for level, size in enumerate(ids.level_sizes):
        first_levels += [level] * size
    merges: list[tuple[int, int]] = []
    made: dict[tuple[int, int], int] = {}
    while len(first_levels) < vocabulary_size and (pair := corpus.heaviest()) is not None:
        # A pair that a filled slot kept apart may meet again once the slot is empty.
        token = made.setdefault(pair, len(first_levels))
        corpus.merge(*pair, token)
        if token == len(first_levels):
            left, right = sorted(pair, key=lambda token: (first_levels[token], token))
            merges.append((left, right))
            first_levels.append(first_levels[left])
    return np.asarray(merges, np.int32).reshape(-1, 2)


class _Corpus:
    """Histories, the weights of their pairs, and where each token occurs."""

    def __init__(self, histories: list[Sets], num_levels: int, num_tokens: int) -> None:
        self.histories = [(sets, [0] * (len(sets) - 1)) for sets in histories]
        # A pair is one number; its weight is a multiple of one over `unit`.
        self.base = num_tokens + 1
        self.unit = math.lcm(*range(1, num_levels + 1)) ** 2
        self.weights: defaultdict[int, int] = defaultdict(int)
        # Where a token was when it came up; some histories have lost it since.
        self.rows_of: defaultdict[int, set[int]] = defaultdict(set)
        for row, (sets, slots) in enumerate(self.histories):
            for pair, weight in self._pairs(sets, slots).items():
                self.weights[pair] += weight
            for token in {token for tokens in sets for token in tokens}:
                self.rows_of[token].add(row)
        # Entries are never taken out of the heap when a weight changes; stale ones are skipped.
        self.heap = [(-weight, pair) for pair, weight in self.weights.items()]
        heapq.heapify(self.heap)

    def heaviest(self) -> tuple[int, int] | None:
        """The pair of the greatest weight; None where no two tokens are beside each other."""
        while self.heap:
            weight, pair = heapq.heappop(self.heap)
            if -weight == self.weights.get(pair, 0) > 0:
                return divmod(pair, self.base)
        return None

    def merge(self, a: int, b: int, made: int) -> None:
        """Make one token of a pair in all histories."""
        changes: defaultdict[int, int] = defaultdict(int)
        rows, others = sorted((self.rows_of[a], self.rows_of[b]), key=len)
        for row in rows & others:
            sets, slots = self.histories[row]
            if not _occurs(sets, slots, a, b):
                continue
            for pair, weight in self._pairs(sets, slots).items():
                changes[pair] -= weight
            _merge(sets, slots, a, b, made)
            for pair, weight in self._pairs(sets, slots).items():
                changes[pair] += weight
            self.rows_of[made].add(row)
        for pair, change in changes.items():
            if change:
                self.weights[pair] += change
                if self.weights[pair]:
                    heapq.heappush(self.heap, (-self.weights[pair], pair))
                else:
                    del self.weights[pair]

    def _pairs(self, sets: Sets, slots: Slots) -> dict[int, int]:
        """Weights of all pairs of a history."""
        base, unit = self.base, self.unit
        found: defaultdict[int, int] = defaultdict(int)

        def add(some: list[int], others: list[int], weight: int) -> None:
            for a in some:
                for b in others:
                    found[a * base + b if a < b else b * base + a] += weight

        for place, tokens in enumerate(sets):
            count = len(tokens)
            for index in range(count - 1):
                add(tokens[index : index + 1], tokens[index + 1 :], 2 * unit // count)
            if place == len(slots):
                break
            after, slot = sets[place + 1], slots[place]
            if slot:
                add(tokens, [slot], unit // max(count, 1))
                add(after, [slot], unit // max(len(after), 1))
            elif tokens and after:
                add(tokens, after, unit // (count * len(after)))
        return found


def _occurs(sets: Sets, slots: Slots, a: int, b: int) -> bool:
    """Whether a pair could be merged anywhere in a history."""
    for place, tokens in enumerate(sets):
        if a != b and a in tokens and b in tokens:
            return True
        if place == len(slots):
            return False
        after, slot = sets[place + 1], slots[place]
        if slot:
            other = b if slot == a else a if slot == b else 0
            if other and (other in tokens or other in after):
                return True
        elif (a in tokens and b in after) or (b in tokens and a in after):
            return True
    return False


def _merge(sets: Sets, slots: Slots, a: int, b: int, made: int) -> None:
    """Make one token of a pair wherever it occurs, from the oldest item on."""
    for place, tokens in enumerate(sets):
        if a != b and a in tokens and b in tokens:
            tokens.remove(a)
            tokens.remove(b)
            tokens.insert(0, made)
        if place == len(slots):
            break
        after = sets[place + 1]
        if slots[place]:
            for beside in (tokens, after):
                slot = slots[place]
                other = b if slot == a else a if slot == b else 0
                if other and other in beside:
                    beside.remove(other)
                    slots[place] = made
        else:
            for first, second in ((a, b), (b, a)):
                if first in tokens and second in after and not slots[place]:
                    tokens.remove(first)
                    after.remove(second)
                    slots[place] = made
    _close_gaps(sets, slots)


def _close_gaps(sets: Sets, slots: Slots) -> None:
    """Fill empty sets from the slot before them, and take out what stays empty with its slot."""
    place = 0
    while place < len(sets):
        if not sets[place] and place and slots[place - 1]:
            sets[place] = [slots[place - 1]]
            slots[place - 1] = 0
            place = max(place - 1, 0)  # the set before may be empty, and its slot now is
        elif not sets[place] and place < len(slots) and not slots[place]:
            del sets[place], slots[place]
            place = max(place - 1, 0)
        else:
            place += 1


def _pieces(items: list[int], max_items: int) -> list[list[int]]:
    """Parts of at most `max_items`, cut from the newest on."""
    # DIFF: the paper counts whole histories, which the Amazon sets hardly have longer than that.
    ends = range(len(items), 0, -max_items)
    return [items[max(end - max_items, 0) : end] for end in ends]
