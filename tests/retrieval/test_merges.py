from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from rankloom.retrieval.merged_tokens import expand_merges
from rankloom.retrieval.merges import (
    FrequencyAndSimilarity,
    FrequencyOnly,
    SemanticBPEConfig,
    learn_merges,
    mean_item_vectors,
    token_vectors,
    with_merges,
)
from rankloom.retrieval.protocols import Assignment
from rankloom.retrieval.semantic_ids import FIRST_CODE, SemanticIds

SIZES = (5, 4, 6)
FIRST_MERGE = FIRST_CODE + sum(SIZES)


def random_ids(seed: int, num_items: int = 120) -> SemanticIds:
    rng = np.random.default_rng(seed)
    draws = [np.minimum(rng.geometric(0.4, num_items) - 1, size - 1) for size in SIZES]
    codes = np.stack(draws, axis=1).astype(np.int32)
    codes[rng.random(num_items) < 0.3, 2] = -1
    return SemanticIds(codes, SIZES)


def random_vectors(seed: int) -> torch.Tensor:
    table = torch.randn(FIRST_MERGE, 3, generator=torch.Generator().manual_seed(seed))
    return table + 0.8  # leans one way, so that some cosines are large


def learn_slowly(
    ids: SemanticIds,
    vectors: np.ndarray | None,
    config: SemanticBPEConfig,
    weights: np.ndarray,
) -> list[tuple[int, int]]:
    """Everything is counted again for every merge."""
    rows = [
        [int(token) for token in row if token > 1]
        for row in SemanticIds(ids.codes, ids.level_sizes).tokens
    ]
    table = {} if vectors is None else dict(enumerate(vectors.astype(np.float64)))
    merges: list[tuple[int, int]] = []
    begins = set(range(FIRST_CODE, FIRST_CODE + SIZES[0]))
    for step in range(config.max_merges):
        counts: Counter[tuple[int, int]] = Counter()
        for row, weight in zip(rows, weights, strict=True):
            for pair in pairwise(row):
                counts[pair] += weight
        best, best_score = None, -np.inf
        for pair in sorted(counts):
            limit = config.max_first_token_vocabulary
            full = limit is not None and len(begins) >= limit
            if counts[pair] < config.min_count or (full and pair[0] in begins):
                continue
            score = counts[pair] / max(counts.values())
            if isinstance(config.score, FrequencyAndSimilarity):
                a, b = table[pair[0]], table[pair[1]]
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                first, last = config.score.first_threshold, config.score.last_threshold
                if cosine <= first + (last - first) * step / max(config.max_merges - 1, 1):
                    continue
                score = config.score.alpha * score + (1 - config.score.alpha) * cosine
            if score > best_score + 1e-12:
                best, best_score = pair, score
        if best is None:
            continue
        token = FIRST_MERGE + len(merges)
        if table:
            table[token] = (table[best[0]] + table[best[1]]) / 2
        if best[0] in begins:
            begins.add(token)
        merges.append(best)
        for number, row in enumerate(rows):
            merged, place = [], 0
            while place < len(row):
                if tuple(row[place : place + 2]) == best:
                    merged.append(token)
                    place += 2
                else:
                    merged.append(row[place])
                    place += 1
            rows[number] = merged
    return merges


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize("score", [FrequencyAndSimilarity(), FrequencyOnly()])
def test_equals_counting_everything_again(
    seed: int, weighted: bool, limit: int | None, score: FrequencyAndSimilarity | FrequencyOnly
) -> None:
    ids, vectors = random_ids(seed), random_vectors(seed)
    config = SemanticBPEConfig(
        max_merges=25, min_count=3, score=score, max_first_token_vocabulary=limit
    )
    weights = np.random.default_rng(seed).integers(0, 4, ids.num_items) if weighted else None
    learned = learn_merges(ids, vectors, config, weights)
    slow_weights = np.ones(ids.num_items) if weights is None else weights
    slow = learn_slowly(ids, vectors.numpy(), config, slow_weights)
    assert len(slow) >= 3
    assert [tuple(pair) for pair in learned.tolist()] == slow


def test_by_hand() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 0], [1, 1], [1, 1], [0, 1]], np.int32)
    ids = SemanticIds(codes, (2, 2))
    config = SemanticBPEConfig(max_merges=5, min_count=2, score=FrequencyOnly())
    np.testing.assert_array_equal(learn_merges(ids, None, config), [[3, 5], [4, 6]])
    # Weighed by popularity the second pair comes first, and the third is frequent enough.
    merges = learn_merges(ids, None, config, [1, 1, 1, 5, 5, 2])
    np.testing.assert_array_equal(merges, [[4, 6], [3, 5], [3, 6]])


def test_a_similar_pair_beats_a_more_frequent_one_and_unlike_tokens_stay_apart() -> None:
    codes = np.array([[0, 0]] * 6 + [[1, 1]] * 5 + [[0, 1]] * 6, np.int32)
    vectors = torch.zeros(7, 2)
    vectors[[4, 6]] = torch.tensor([1.0, 0.0])  # the second pair: cosine 1
    vectors[3] = torch.tensor([0.0, 1.0])
    vectors[5] = torch.tensor([0.6, 0.8])  # the first pair: cosine 0.8
    merges = learn_merges(SemanticIds(codes, (2, 2)), vectors, SemanticBPEConfig(max_merges=3))
    # The first step asks for .9, the second for .725; the third pair has cosine 0.
    np.testing.assert_array_equal(merges, [[4, 6], [3, 5]])


def test_a_step_in_which_no_pair_is_similar_enough_passes() -> None:
    codes = np.array([[0, 0]] * 6, np.int32)
    vectors = torch.zeros(5, 2)
    vectors[3], vectors[4] = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])  # cosine 0.6
    ids = SemanticIds(codes, (1, 1))
    assert len(learn_merges(ids, vectors, SemanticBPEConfig(max_merges=1))) == 0
    np.testing.assert_array_equal(
        learn_merges(ids, vectors, SemanticBPEConfig(max_merges=10)), [[3, 4]]
    )


def test_merged_ids_are_distinct_where_codes_are_prefix_free_and_expand_back() -> None:
    ids = random_ids(7)
    merges = learn_merges(
        ids, None, SemanticBPEConfig(max_merges=40, min_count=2, score=FrequencyOnly())
    )
    merged = with_merges(ids, merges)
    assert merged.vocabulary_size == ids.vocabulary_size + len(merges)
    assert (merged.tokens > 1).sum() < (ids.tokens > 1).sum()
    expanded = expand_merges(merged.tokens, merges, FIRST_MERGE)
    np.testing.assert_array_equal(expanded, ids.tokens[:, : expanded.shape[1]])
    np.testing.assert_array_equal(merged.groups, ids.groups)
    rows = {tuple(token for token in row if token) for row in merged.tokens.tolist()}
    assert len(rows) == ids.groups.max() + 1
    assert not any(a != b and b[: len(a)] == a for a in rows for b in rows)


def test_merges_that_the_ids_have_are_learned_anew() -> None:
    ids = random_ids(1)
    config = SemanticBPEConfig(max_merges=5, score=FrequencyOnly())
    merges = learn_merges(ids, None, config)
    again = learn_merges(with_merges(ids, merges[:2]), None, config)
    np.testing.assert_array_equal(again, merges)


def test_one_item_and_ids_of_one_code() -> None:
    config = SemanticBPEConfig(min_count=1, score=FrequencyOnly())
    one = SemanticIds(np.array([[0, 1, 1]], np.int32), (2, 2, 2))
    assert with_merges(one, learn_merges(one, None, config)).tokens.tolist() == [[10, 1]]
    short = SemanticIds(np.array([[0], [1]], np.int32), (2,))
    assert learn_merges(short, None, config).shape == (0, 2)


class TwoLevels:
    level_sizes: tuple[int, ...] = (2, 1)

    def __init__(self, vectors: list[torch.Tensor | None]) -> None:
        self.vectors = vectors

    def assign(self, vectors: torch.Tensor) -> Assignment:
        raise NotImplementedError

    def code_vectors(self, level: int) -> torch.Tensor | None:
        return self.vectors[level]


def test_token_vectors_of_codes_a_digit_and_merges() -> None:
    codes = np.array([[0, 0, 1], [1, 0, 0]], np.int32)
    ids = with_merges(SemanticIds(codes, (2, 1, 2)), np.array([[3, 5], [8, 6]], np.int32))
    tokenizer = TwoLevels([torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[3.0, 2]])])
    table = token_vectors(tokenizer, ids)
    expected = [[0, 0]] * 3 + [[1, 0], [0, 1], [3, 2], [0, 0], [0, 0], [2, 1], [1, 0.5]]
    torch.testing.assert_close(table, torch.tensor(expected))
    assert token_vectors(TwoLevels([torch.ones(2, 2), None]), ids) is None
    with pytest.raises(ValueError, match=r"must have one width; got \[2, 3\]"):
        token_vectors(TwoLevels([torch.ones(2, 2), torch.ones(1, 3)]), ids)


def test_mean_item_vectors_by_hand() -> None:
    ids = SemanticIds(np.array([[0, 0], [0, -1], [1, 0]], np.int32), (2, 2))
    vectors = torch.tensor([[1.0, 0], [3, 0], [0, 4]])
    table = mean_item_vectors(ids, vectors)
    expected = torch.tensor([[0, 0]] * 3 + [[2, 0], [0, 4], [0.5, 2], [0, 0]])
    torch.testing.assert_close(table, expected)


def test_wrong_input() -> None:
    ids = random_ids(0)
    with pytest.raises(ValueError, match="needs a vector per token, and there are none"):
        learn_merges(ids, None, SemanticBPEConfig())
    with pytest.raises(ValueError, match="a row per token, 18; got 4"):
        learn_merges(ids, torch.ones(4, 2), SemanticBPEConfig())
    with pytest.raises(ValueError, match=r"weights must be \[items\] of 120 items; got shape"):
        learn_merges(ids, None, SemanticBPEConfig(score=FrequencyOnly()), [1.0])
