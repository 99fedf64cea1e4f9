"""Places of targets by scores, by beams and exactly, against rankings made one user at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankloom.evaluation.retrieval_metrics import Places
from rankloom.evaluation.retrieval_protocol import (
    RetrievalEvaluation,
    RetrievalEvaluationConfig,
    compare_places,
    evaluate_retrieval,
)
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.retrieval.semantic_ids import FIRST_CODE, PADDING, SemanticIds
from rankloom.retrieval.trie import Trie

NUM_ITEMS = 12
CODES = np.array(
    [
        [0, 0],
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 0],
        [1, 0],
        [1, 1],
        [2, 0],
        [2, 1],
        [2, -1],
        [3, 0],
        [3, -1],
    ]
)
"""Items 1 and 2 share an id, and so do items 4, 5 and 6."""
IDS = SemanticIds(CODES.astype(np.int32), (4, 2))
CONTEXTS = Histories.from_lists([[1, 2, 3], [], [7], [7, 4, 4, 8, 9], [12, 1]], NUM_ITEMS)
TARGETS = np.array([5, 1, 9, 4, 3])


class Scorer(nn.Module):
    """Scores of an item pair table, by the newest item; whole numbers, so that some are equal."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        table = torch.randint(0, 5, (NUM_ITEMS + 1, NUM_ITEMS), generator=generator)
        self.table = nn.Parameter(table.float())

    def score_items(self, batch: HistoryBatch) -> Tensor:
        newest = batch.items.gather(1, (batch.lengths - 1).clamp(min=0)[:, None])[:, 0]
        return self.table[newest]


class Bigrams(nn.Module):
    """Token logits by the token before and the number of items in the history."""

    training_rows = "users"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        shape = (8, IDS.vocabulary_size, IDS.vocabulary_size)
        self.table = nn.Parameter(2 * torch.randn(shape, generator=generator))

    def start(self, batch: HistoryBatch) -> tuple[Tensor, Any]:
        return self.table[batch.lengths, PADDING][:, None], batch.lengths

    def advance(self, state: Any, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Any]:
        return self.table[state[:, None], tokens], state

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return hidden.gather(-1, tokens)

    def loss(self, batch: HistoryBatch) -> Any:
        raise NotImplementedError

    def likelihood(self, history: list[int], item: int) -> float:
        """Of the tokens of an item's id, one after another."""
        before, total = PADDING, 0.0
        for token in IDS.tokens[item - 1].tolist():
            if token == PADDING:
                break
            total += torch.log_softmax(self.table[len(history), before], 0)[token].item()
            before = token
        return total


def config(**changes: Any) -> RetrievalEvaluationConfig:
    return RetrievalEvaluationConfig.model_validate({"cutoffs": (1, 3, 5)} | changes)


def evaluate(model: nn.Module, **changes: Any) -> RetrievalEvaluation:
    settings = {"batch_size": 2, "max_length": 3}
    trie = None if isinstance(model, Scorer) else Trie.build(IDS)
    return evaluate_retrieval(model, CONTEXTS, TARGETS, config(**changes), trie=trie, **settings)


def expected(scores: list[dict[int, float]]) -> tuple[list[int], list[int]]:
    """First rank and size of the target's group among items that have a score, by counting."""
    first, size = [], []
    for values, target in zip(scores, TARGETS.tolist(), strict=True):
        if target not in values:
            first.append(0)
            size.append(1)
            continue
        own = values[target]
        first.append(
            1 + sum(v > own and not math.isclose(v, own, abs_tol=1e-5) for v in values.values())
        )
        size.append(sum(math.isclose(v, own, abs_tol=1e-5) for v in values.values()))
    return first, size


@pytest.mark.parametrize("excluding", [False, True])
def test_scorers_are_ranked_by_all_scores(excluding: bool) -> None:
    model = Scorer()
    found = evaluate(model, exclude_history=excluding).places
    scores = []
    for user in range(5):
        history = CONTEXTS.of(user)[-3:].tolist()
        row = model.table[history[-1] if history else 0].tolist()
        gone = set(history) if excluding else set()
        scores.append({i: row[i - 1] for i in range(1, 13) if i not in gone})
    first, size = expected(scores)
    assert found.first.tolist() == first
    assert found.size.tolist() == size
    assert found.id_rank is None
    assert (0 in first) == excluding  # item 4 is of the history of the fourth user


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("mode", ["beam", "exact"])
def test_generators_are_ranked_by_the_likelihood_of_ids(mode: str, excluding: bool) -> None:
    model = Bigrams()
    found = evaluate(model, mode=mode, exclude_history=excluding).places
    scores = []
    for user in range(5):
        history = CONTEXTS.of(user)[-3:].tolist()
        gone = set(history) if excluding else set()
        scores.append({i: model.likelihood(history, i) for i in range(1, 13) if i not in gone})
    first, size = expected(scores)
    assert found.first.tolist() == first
    assert found.size.tolist() == size
    assert max(size) > 1  # some ids are shared
    assert found.id_rank is not None
    assert ((found.id_rank <= found.first) & (found.id_rank > 0) == (found.first > 0)).all()


def test_ids_beyond_the_beams_are_not_found() -> None:
    wide, narrow = evaluate(Bigrams()), evaluate(Bigrams(), beams=1)
    kept = wide.places.id_rank == 1
    assert kept.any()
    assert not kept.all()
    # One beam may end in another id than the best one; what it finds stands first.
    assert set(narrow.places.first.tolist()) <= {0, 1}
    assert (narrow.places.first > 0).sum() <= kept.sum() + 1
    assert wide.metrics["invalid_rate"] == narrow.metrics["invalid_rate"] == 0.0


def test_a_removed_target_is_not_found_where_beams_are_left_empty() -> None:
    trie = Trie.build(IDS, removed=TARGETS)
    found = evaluate_retrieval(Bigrams(), CONTEXTS, TARGETS, config(beams=20), trie=trie)
    np.testing.assert_array_equal(found.places.first, 0)
    assert found.places.id_rank is not None
    np.testing.assert_array_equal(found.places.id_rank, 0)


def test_shared_ids_make_the_id_figure_too_high() -> None:
    found = evaluate(Bigrams(), cutoffs=(1, 3)).metrics
    assert found["recall_id@3"] >= found["recall@3"]
    assert {"recall@1", "ndcg@3", "mrr@1", "recall_id@1", "invalid_rate"} <= found.keys()
    assert "recall_id@3" not in evaluate(Scorer()).metrics
    assert "invalid_rate" not in evaluate(Bigrams(), mode="exact").metrics


def test_renormalised_scores_are_another_ranking() -> None:
    plain = evaluate(Bigrams(), mode="exact").places
    other = evaluate(Bigrams(), mode="exact", renormalise=True).places
    assert plain.first.tolist() != other.first.tolist()


def test_slices_hold_their_users() -> None:
    counts = np.zeros(NUM_ITEMS, np.int64)
    counts[[4, 0, 8]] = 9, 9, 6
    found = evaluate_retrieval(
        Scorer(), CONTEXTS, TARGETS, config(), training_counts=counts, batch_size=2
    )
    rows = {name: figures["rows"] for name, figures in found.scenarios.items()}
    # Before item 1: 0 of 24; before item 5: 9; before item 9: 18.
    assert rows == {"head": 1, "torso": 1, "tail": 3, "cold": 2}
    own = found.places.select(TARGETS == 1)
    assert found.scenarios["head"]["recall@5"] == float(own.first[0] + own.size[0] - 1 <= 5)
    without = evaluate_retrieval(
        Scorer(), CONTEXTS, TARGETS, config(slices=False), training_counts=counts
    )
    assert without.scenarios == {}


def test_interval_and_paired_comparison() -> None:
    first = np.array([1, 2, 30, 4] * 50)
    ones = np.ones(200, np.int64)
    found = RetrievalEvaluation({}, Places(first, ones))
    interval = found.interval("recall@10")
    assert interval.estimate == 0.75
    assert interval.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 200), rel=0.15)
    worse = Places(np.where(first == 2, 20, first), ones)
    test = compare_places(found.places, worse, "recall@10")
    assert test.difference == 0.25
    assert test.p_value < 1e-6
    same = compare_places(worse, worse, "recall@10")
    assert (same.difference, same.p_value) == (0.0, 1.0)
    with pytest.raises(ValueError, match="same users"):
        compare_places(found.places, worse.select(np.arange(3)), "recall@10")


def test_no_users_give_no_figures() -> None:
    none = Histories.from_lists([], NUM_ITEMS)
    found = evaluate_retrieval(Scorer(), none, np.empty(0, np.int64), config())
    assert found.rows == 0
    assert math.isnan(found.metrics["recall@5"])


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the trie"):
        evaluate_retrieval(Bigrams(), CONTEXTS, TARGETS, config())
    with pytest.raises(ValueError, match="Linear neither scores items"):
        evaluate_retrieval(nn.Linear(1, 1), CONTEXTS, TARGETS, config())
    with pytest.raises(ValueError, match="one target for each context: got 2 of 5"):
        evaluate_retrieval(Scorer(), CONTEXTS, TARGETS[:2], config())
    for cutoffs in ((), (0, 5), (10, 5), (5, 5)):
        with pytest.raises(ValueError, match="cutoffs must be ranks from 1, ascending"):
            config(cutoffs=cutoffs)


def test_codes_are_as_the_comment_says() -> None:
    assert IDS.groups.tolist().count(IDS.groups[3]) == 3
    assert IDS.level_offsets.tolist() == [FIRST_CODE, FIRST_CODE + 4]
