"""The best items of scorers, generators and models that fuse beams."""

from typing import Any

import numpy as np
import pytest
import torch
from table_generator import TableGenerator
from torch import Tensor, nn

from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.recommender import best_items
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.trie import Trie


class Scores(nn.Module):
    """The same scores after every history."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.register_buffer("scores", torch.tensor(scores))
        self.scores: Tensor

    def score_items(self, batch: HistoryBatch) -> Tensor:
        return self.scores.expand(batch.size, -1)


def rows(count: int) -> HistoryBatch:
    return HistoryBatch(torch.ones(count, 1, dtype=torch.int64))


def test_scorers_by_hand() -> None:
    items, scores = best_items(Scores(1.0, 3.0, 2.0, 3.0), rows(2), 3)
    assert items.tolist() == [[2, 4, 3]] * 2  # of equal scores the smaller number first
    assert scores.tolist() == [[3.0, 3.0, 2.0]] * 2


def test_blocked_items_do_not_come_and_missing_ones_are_zero() -> None:
    blocked = torch.tensor([[2, 0], [1, 3]])
    items, scores = best_items(Scores(1.0, 3.0, 2.0), rows(2), 5, blocked=blocked)
    assert items.tolist() == [[3, 1, 0, 0, 0], [2, 0, 0, 0, 0]]
    assert scores.tolist() == [
        [2.0, 1.0, *[-torch.inf] * 3],
        [3.0, *[-torch.inf] * 4],
    ]


def test_no_rows() -> None:
    items, scores = best_items(Scores(1.0, 2.0), rows(0), 2)
    assert items.shape == scores.shape == (0, 2)


@pytest.mark.parametrize("mode", ["beam", "exact"])
def test_generators_give_the_items_of_their_best_ids(mode: Any) -> None:
    ids = SemanticIds(np.array([[0, 1], [1, 0], [1, 0], [0, 0]], np.int32), (2, 2))
    trie = Trie.build(ids)
    model = TableGenerator(ids.vocabulary_size)
    items, scores = best_items(model, rows(1), 4, trie=trie, mode=mode, beams=1)
    # As many ids are kept as items are wanted, so one beam is no limit.
    assert sorted(items[0].tolist()) == [1, 2, 3, 4]
    assert (scores.diff() <= 0).all()
    place = items[0].tolist()
    assert abs(place.index(2) - place.index(3)) == 1
    assert scores[0, place.index(2)] == scores[0, place.index(3)]
    without, _ = best_items(model, rows(1), 4, trie=trie, mode=mode, blocked=torch.tensor([[3]]))
    assert sorted(without[0].tolist()) == [0, 1, 2, 4]


def test_a_model_that_fuses_beams_is_asked_itself() -> None:
    class Fused(TableGenerator):
        def recommend(self, batch: HistoryBatch, trie: Trie, **given: Any) -> Any:
            assert given == {"count": 2, "beams": 9, "blocked": None}
            return torch.tensor([[2, 1]]), torch.tensor([[0.5, 0.25]])

    ids = SemanticIds(np.array([[0], [1]], np.int32), (2,))
    items, scores = best_items(
        Fused(ids.vocabulary_size), rows(1), 2, trie=Trie.build(ids), beams=9
    )
    assert items.tolist() == [[2, 1]]
    assert scores.tolist() == [[0.5, 0.25]]


def test_wrong_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear neither scores items nor generates"):
        best_items(nn.Linear(1, 1), rows(1), 2)
    with pytest.raises(ValueError, match="needs the trie of the catalogue"):
        best_items(TableGenerator(5), rows(1), 2)
