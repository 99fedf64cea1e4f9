"""Item-KNN: similarities worked by hand, neighbours against a dense reference."""

import numpy as np
import pytest
import torch

from rankloom.retrieval.histories import Histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import ItemScorer
from rankloom.retrieval.sequential import item_knn
from rankloom.retrieval.sequential.item_knn import ItemKNN, ItemKNNConfig
from tests.retrieval.sequential.sequential_models import contexts

# Users of item 1: a b c; of 2: a b; of 3: c (twice); of 4: d alone; nobody took 5.
HISTORIES = Histories.from_lists([[1, 2], [2, 1], [3, 1, 3], [4]], num_items=5)


def fitted(histories: Histories = HISTORIES, **settings: float) -> ItemKNN:
    model = ItemKNN(ItemKNNConfig(**settings), ItemSchema(histories.num_items))
    model.fit(histories)
    return model


def test_similarity_by_hand() -> None:
    model = fitted(shrinkage=1.0, num_neighbours=2)
    assert isinstance(model, ItemScorer)
    with_two, with_three = 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)
    assert model.neighbours.tolist() == [[0, 0], [2, 3], [1, 0], [1, 0], [0, 0], [0, 0]]
    expected = [[0, 0], [with_two, with_three], [with_two, 0], [with_three, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(model.similarity, torch.tensor(expected))


def test_scores_sum_over_the_history_newest_first() -> None:
    two, three = 2 / 6**0.5, 1 / 3**0.5
    batch = contexts([3, 2], [1], [], [4, 5])
    plain = fitted(shrinkage=0.0).score_items(batch)
    expected = [[three + two, 0, 0, 0, 0], [0, two, three, 0, 0], [0] * 5, [0] * 5]
    torch.testing.assert_close(plain, torch.tensor(expected))
    recent = fitted(shrinkage=0.0, recency=0.5).score_items(batch)
    torch.testing.assert_close(recent[0, 0].item(), 0.5 * three + two)
    torch.testing.assert_close(recent[1], plain[1])


@pytest.mark.parametrize("block", [3, 2048])
def test_neighbours_are_those_of_a_dense_reference(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_knn, "BLOCK_ITEMS", block)
    generator = np.random.default_rng(1)
    lists = [generator.integers(1, 13, generator.integers(0, 7)) for _ in range(40)]
    model = fitted(Histories.from_lists(lists, 12), num_neighbours=4, shrinkage=3.0)
    taken = np.zeros((40, 13))
    for user, items in enumerate(lists):
        taken[user, items] = 1
    for item in range(1, 13):
        found = []
        for other in range(1, 13):
            together = (taken[:, item] * taken[:, other]).sum()
            if other != item and together:
                length = np.sqrt(taken[:, item].sum() * taken[:, other].sum())
                found.append((-together / (length + 3.0), other))
        found = sorted(found)[:4]
        assert model.neighbours[item, : len(found)].tolist() == [other for _, other in found]
        expected = [-similarity for similarity, _ in found]
        assert model.similarity[item, : len(found)].tolist() == pytest.approx(expected)


def test_a_catalogue_of_one_item_and_no_users() -> None:
    assert fitted(Histories.from_lists([[1], [1]], 1)).score_items(contexts([1])).tolist() == [[0]]
    assert fitted(Histories.from_lists([], 2)).score_items(contexts([2])).tolist() == [[0, 0]]


def test_fitting_again_forgets_and_state_is_all_of_it() -> None:
    model = fitted(num_neighbours=3)
    other = ItemKNN(ItemKNNConfig(num_neighbours=3), ItemSchema(5))
    other.load_state_dict(model.state_dict())
    batch = contexts([1, 2])
    assert torch.equal(other.score_items(batch), model.score_items(batch))
    other.fit(Histories.from_lists([[4, 5]], 5))
    assert other.score_items(contexts([1])).tolist() == [[0] * 5]


@pytest.mark.gpu
def test_it_is_fitted_where_it_lies() -> None:
    model = ItemKNN(ItemKNNConfig(num_neighbours=2), ItemSchema(5)).cuda()
    model.fit(HISTORIES)
    assert model.neighbours.is_cuda
    assert model.neighbours.cpu().tolist() == fitted(num_neighbours=2).neighbours.tolist()
