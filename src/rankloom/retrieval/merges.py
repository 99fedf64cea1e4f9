"""SemanticBPE: which pairs of adjacent tokens of the semantic ids become one token.

Source: CapsID and SemanticBPE, arXiv:2605.05096, as far as public accounts of it go; the full text
    was not to be had.
Equation: score(a, b) = alpha * count(a, b) / max count + (1 - alpha) * cos(e_a, e_b), among the
    pairs with cos(e_a, e_b) > theta, where theta falls from 0.90 to 0.55; the best pair becomes one
    token, and so on. Pairs are counted inside ids only.
Differs from the paper: its gate (Gumbel softmax over a small network in training, whose form is
    not published) is left out. The merges are learned in one go after the tokenizer, greedily and
    without chance, and applied in the order they were learned.
The paper does not say: number of merges, the least count, e of a code (here whoever calls gives
    it: `token_vectors` takes the tokenizer's) and of a merged token (the mean of its two parts),
    what happens while no pair is above theta (the step passes and theta falls further).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rankloom.config import Config
from rankloom.retrieval.merged_tokens import MergedRows
from rankloom.retrieval.protocols import Tokenizer
from rankloom.retrieval.semantic_ids import FIRST_CODE, PADDING, SemanticIds

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]

Score = Callable[[DoubleArray, DoubleArray, float], DoubleArray]
"""Counts over the largest one [pairs], cosines [pairs] and the share of the steps that are done ->
scores [pairs]; -inf: no candidate."""


class FrequencyAndSimilarity(Config):
    """Pairs that are frequent and whose tokens mean similar things."""

    kind: Literal["frequency_and_similarity"] = "frequency_and_similarity"
    alpha: float = Field(0.6, ge=0, le=1)
    """Weight of the frequency; the rest is the cosine's."""
    first_threshold: float = Field(0.90, ge=-1, le=1)
    """Cosine above which a pair may be merged, at the first step."""
    last_threshold: float = Field(0.55, ge=-1, le=1)
    """The same at the last step; linear between the two."""
    needs_vectors: Literal[True] = True
    """Whether tokens must have vectors."""

    def build(self) -> Score:
        """The score."""

        def score(frequency: DoubleArray, cosine: DoubleArray, progress: float) -> DoubleArray:
            threshold = self.first_threshold + progress * (
                self.last_threshold - self.first_threshold
            )
            scores = self.alpha * frequency + (1 - self.alpha) * cosine
            return np.where(cosine > threshold, scores, -np.inf)

        return score


class FrequencyOnly(Config):
    """The most frequent pair, as plain byte pair encoding."""

    kind: Literal["frequency_only"] = "frequency_only"
    needs_vectors: Literal[False] = False
    """Whether tokens must have vectors."""

    def build(self) -> Score:
        """The score."""
        return lambda frequency, cosine, progress: frequency


class SemanticBPEConfig(Config):
    """How many pairs are merged, and which."""

    max_merges: int = Field(1024, ge=0)
    """Steps, each of which merges one pair or none."""
    min_count: float = Field(5, gt=0)
    """Items (or their weight) that must hold a pair."""
    score: Annotated[FrequencyAndSimilarity | FrequencyOnly, Field(discriminator="kind")] = (
        FrequencyAndSimilarity()
    )
    """What makes a pair good: frequency_and_similarity or frequency_only."""
    max_first_token_vocabulary: int | None = None
    """Tokens that may begin an id at most, codes of level 1 and merges together: once there are so
    many, only pairs further on are merged. None: no limit."""


def token_vectors(tokenizer: Tokenizer, ids: SemanticIds) -> Float[Tensor, "tokens dim"] | None:
    """float32 vector of every token of the ids, merges included; None where a level has none.

    A code has the tokenizer's vector, a merged token the mean of its parts', a special token zeros.
    Levels that the tokenizer does not know (a digit that tells colliding ids apart) have zeros.

    Raises:
        ValueError: levels have vectors of different widths.
    """
    known = [tokenizer.code_vectors(level) for level in range(len(tokenizer.level_sizes))]
    levels = [vectors for vectors in known if vectors is not None]
    if len(levels) < len(known) or not levels:
        return None
    widths = {vectors.shape[1] for vectors in levels}
    if len(widths) > 1:
        raise ValueError(f"code vectors of all levels must have one width; got {sorted(widths)}")
    table = torch.zeros(ids.vocabulary_size, widths.pop())
    for offset, vectors in zip(ids.level_offsets.tolist(), levels, strict=False):
        table[offset : offset + len(vectors)] = vectors.detach().float().cpu()
    first_merge = FIRST_CODE + sum(ids.level_sizes)
    for number, (left, right) in enumerate(ids.merges.tolist()):
        table[first_merge + number] = (table[left] + table[right]) / 2
    return table


def mean_item_vectors(
    ids: SemanticIds, vectors: Float[Tensor, "items width"]
) -> Float[Tensor, "tokens width"]:
    """float32 mean of the vectors of the items that hold a code; zeros for a token nobody holds.

    What the codes of tokenizers without code vectors mean. It also compares levels in one space:
    code vectors of a residual tokenizer speak of what the level before left over.
    """
    first_merge = FIRST_CODE + sum(ids.level_sizes)
    table = torch.zeros(first_merge, vectors.shape[1])
    held = torch.zeros(first_merge)
    for codes, offset in zip(ids.codes.T, ids.level_offsets.tolist(), strict=True):
        rows = torch.from_numpy(np.flatnonzero(codes >= 0))
        tokens = torch.from_numpy(codes[codes >= 0].astype(np.int64)) + offset
        table.index_add_(0, tokens, vectors[rows].detach().float().cpu())
        held.index_add_(0, tokens, torch.ones(len(tokens)))
    return table / held.clamp(min=1).unsqueeze(1)


def with_merges(ids: SemanticIds, merges: IntArray) -> SemanticIds:
    """The ids with other merges; codes, and with them collisions, stay as they are."""
    return replace(ids, merges=np.ascontiguousarray(merges, dtype=np.int32).reshape(-1, 2))


def learn_merges(
    ids: SemanticIds,
    vectors: Float[Tensor, "tokens dim"] | None,
    config: SemanticBPEConfig,
    weights: npt.ArrayLike | None = None,
) -> IntArray:
    """Learn merges from the codes of the items; merges that the ids have already do not count.

    Args:
        ids: semantic ids, of any tokenizer.
        vectors: a vector per token (`token_vectors`, `mean_item_vectors`); rows of merged tokens
            are not read. None: frequency only.
        config: score, number and limits.
        weights: [items] how much an item's pairs count, e.g. its training interactions; None: one.

    Returns:
        [merges, 2] pairs of tokens, in the order they were learned.

    Raises:
        ValueError: the score needs vectors and there are none, or a table has the wrong rows.
    """
    first_merge = FIRST_CODE + sum(ids.level_sizes)
    if vectors is None and config.score.needs_vectors:
        raise ValueError(
            f"the score {config.score.kind} needs a vector per token, and there are none: use "
            "frequency_only, or mean_item_vectors"
        )
    if vectors is not None and len(vectors) < first_merge:
        raise ValueError(f"vectors must have a row per token, {first_merge}; got {len(vectors)}")
    item_weights = np.ones(ids.num_items) if weights is None else np.asarray(weights, np.float64)
    if item_weights.shape != (ids.num_items,):
        raise ValueError(
            f"weights must be [items] of {ids.num_items} items; got shape {item_weights.shape}"
        )
    plain = np.where(ids.codes >= 0, ids.codes + ids.level_offsets, PADDING).astype(np.int32)
    table = np.zeros((first_merge + config.max_merges, 1 if vectors is None else vectors.shape[1]))
    if vectors is not None:
        table[:first_merge] = vectors[:first_merge].detach().cpu().double().numpy()
    begins = np.zeros(first_merge + config.max_merges, np.bool_)
    begins[FIRST_CODE : FIRST_CODE + ids.level_sizes[0]] = True
    limit = config.max_first_token_vocabulary
    room = config.max_merges if limit is None else max(limit - ids.level_sizes[0], 0)

    rows = MergedRows(plain)
    pairs = _Pairs(table, config.min_count)
    pairs.add(*_count_pairs(plain, item_weights))
    score, merges = config.score.build(), list[tuple[int, int]]()
    for step in range(config.max_merges):
        allowed = (pairs.counts >= config.min_count) & (~begins[pairs.left] | (room > 0))
        if not allowed.any():
            break
        frequency = pairs.counts / pairs.counts.max()
        progress = step / max(config.max_merges - 1, 1)
        scores = np.where(allowed, score(frequency, pairs.cosines, progress), -np.inf)
        # DIFF: the best pair without chance; as published a learned gate chooses.
        best = int(scores.argmax())  # of equal ones the first: pairs are in order
        if scores[best] == -np.inf:
            continue
        left, right = int(pairs.left[best]), int(pairs.right[best])
        merged = first_merge + len(merges)
        table[merged] = (table[left] + table[right]) / 2
        begins[merged] = begins[left]
        room -= int(begins[left])
        changed = rows.rows_with(left, right)
        pairs.subtract(*_count_pairs(rows.tokens[changed], item_weights[changed]))
        rows.merge(left, right, merged)
        pairs.add(*_count_pairs(rows.tokens[changed], item_weights[changed]))
        merges.append((left, right))
    return np.asarray(merges, np.int32).reshape(-1, 2)


class _Pairs:
    """Pairs that may be merged, sorted by their tokens, with counts and cosines.

    A pair's count never grows but at the step that made one of its tokens, so that a pair which is
    too rare when it first comes up is never looked at again.
    """

    def __init__(self, table: DoubleArray, min_count: float) -> None:
        self.table = table
        self.min_count = min_count
        self.keys = np.empty(0, np.int64)
        self.counts = np.empty(0)
        self.cosines = np.empty(0)

    @property
    def left(self) -> LongArray:
        return self.keys >> 32

    @property
    def right(self) -> LongArray:
        return self.keys & 0xFFFFFFFF

    def subtract(self, keys: LongArray, counts: DoubleArray) -> None:
        """Take away what rows held before a merge; forget pairs that are too rare by now."""
        places, known = self._find(keys)
        self.counts[places[known]] -= counts[known]
        self._keep(self.counts > 0)

    def add(self, keys: LongArray, counts: DoubleArray) -> None:
        """Count rows after a merge: known pairs again, and pairs with the new token."""
        places, known = self._find(keys)
        self.counts[places[known]] += counts[known]
        new, new_counts = keys[~known], counts[~known]
        new, new_counts = (
            new[new_counts >= self.min_count],
            new_counts[new_counts >= self.min_count],
        )
        at = np.searchsorted(self.keys, new)
        self.keys = np.insert(self.keys, at, new)
        self.counts = np.insert(self.counts, at, new_counts)
        self.cosines = np.insert(self.cosines, at, self._cosines(new))

    def _find(self, keys: LongArray) -> tuple[LongArray, npt.NDArray[np.bool_]]:
        places = np.searchsorted(self.keys, keys)
        inside = places < len(self.keys)
        known = np.zeros(len(keys), np.bool_)
        known[inside] = self.keys[places[inside]] == keys[inside]
        return places, known

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        if not kept.all():
            self.keys, self.counts = self.keys[kept], self.counts[kept]
            self.cosines = self.cosines[kept]

    def _cosines(self, keys: LongArray) -> DoubleArray:
        left, right = self.table[keys >> 32], self.table[keys & 0xFFFFFFFF]
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        return (left * right).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def _count_pairs(tokens: IntArray, weights: DoubleArray) -> tuple[LongArray, DoubleArray]:
    """Keys of the adjacent pairs, ascending, and their weights."""
    left, right = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
    rows, columns = np.nonzero(right != PADDING)
    keys = (left[rows, columns] << 32) | right[rows, columns]
    distinct: LongArray
    distinct, place = np.unique(keys, return_inverse=True)
    counts = np.bincount(place.reshape(-1), weights[rows], minlength=len(distinct))
    return distinct, counts.astype(np.float64, copy=False)
