"""Expected item-level metrics against cases worked by hand and slow enumeration."""

import math

import numpy as np
import pytest
import torch

from rankloom.evaluation.retrieval_metrics import (
    Places,
    expected_ndcg,
    expected_recall,
    expected_reciprocal_rank,
    id_places,
    id_recall,
    per_user,
    popularity_slices,
    score_places,
    summarise_places,
)


def places(*pairs: tuple[int, int]) -> Places:
    first, size = np.array(pairs, np.int64).reshape(-1, 2).T
    return Places(first, size)


def test_group_across_the_cutoff_by_hand() -> None:
    """Ranks 4, 5, 6 of which two are within five."""
    one = places((4, 3))
    assert expected_recall(one, 5) == pytest.approx([2 / 3])
    assert expected_ndcg(one, 5) == pytest.approx([(1 / math.log2(5) + 1 / math.log2(6)) / 3])
    assert expected_reciprocal_rank(one, 5) == pytest.approx([(1 / 4 + 1 / 5) / 3])


def test_one_item_groups_are_the_ordinary_metrics() -> None:
    found = places((1, 1), (3, 1), (10, 1), (11, 1), (0, 1))
    assert expected_recall(found, 10).tolist() == [1, 1, 1, 0, 0]
    assert expected_ndcg(found, 10) == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0])
    assert expected_reciprocal_rank(found, 10) == pytest.approx([1, 1 / 3, 0.1, 0, 0])


@pytest.mark.parametrize("cutoff", [1, 2, 5, 20])
def test_expectation_is_the_mean_over_all_orders_of_a_group(cutoff: int) -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 15, 40)
    size = generator.integers(1, 9, 40)
    found = Places(first, size)
    recall, ndcg, mrr = [], [], []
    for p, g in zip(first, size, strict=True):
        ranks = range(p, p + g) if p else []
        inside = [j for j in ranks if j <= cutoff]
        recall.append(len(inside) / g)
        ndcg.append(sum(1 / math.log2(j + 1) for j in inside) / g)
        mrr.append(sum(1 / j for j in inside) / g)
    np.testing.assert_allclose(expected_recall(found, cutoff), recall)
    np.testing.assert_allclose(expected_ndcg(found, cutoff), ndcg)
    np.testing.assert_allclose(expected_reciprocal_rank(found, cutoff), mrr)


def test_scores_give_places_with_ties() -> None:
    scores = torch.tensor([[3.0, 1, 3, 2], [0, 0, 0, 0], [1, -torch.inf, 2, 0]])
    found = score_places(scores, torch.tensor([4, 2, 2]))
    assert found.first.tolist() == [3, 1, 0]  # the last target does not take part
    assert found.size.tolist() == [1, 4, 1]
    assert found.id_rank is None


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="some are NaN"):
        score_places(torch.tensor([[0.0, torch.nan]]), torch.tensor([1]))


def test_ids_give_places_behind_the_items_of_the_ids_above() -> None:
    """Ids 7, 2, 5 hold 2, 3 and 1 items: ranks 1-2, 3-5 and 6."""
    ids = np.array([[7, 2, 5], [7, 2, 5], [7, 2, -1], [7, 2, 5]])
    sizes = np.array([[2, 3, 1], [2, 3, 1], [2, 3, 0], [2, 0, 1]])
    found = id_places(ids, sizes, np.array([2, 5, 9, 5]))
    assert found.first.tolist() == [3, 6, 0, 3]
    assert found.size.tolist() == [3, 1, 1, 1]
    assert found.id_rank is not None
    # Of the last user all items of id 2 are excluded: it is no rank.
    assert found.id_rank.tolist() == [2, 3, 0, 2]
    assert id_recall(found, 2).tolist() == [1, 0, 0, 1]
    # What counting the id as a hit gives too much.
    assert expected_recall(found, 3).tolist() == [1 / 3, 0, 0, 1]


def test_an_id_all_of_whose_items_are_excluded_is_not_found() -> None:
    found = id_places(np.array([[4, 3]]), np.array([[0, 2]]), np.array([4]))
    assert found.first.tolist() == [0]
    assert found.id_rank is not None
    assert found.id_rank.tolist() == [0]


def test_scored_ids_and_ranked_ids_agree() -> None:
    """Items share the score of their id: both ways give one place."""
    generator = np.random.default_rng(1)
    groups = generator.integers(0, 6, 20)
    id_scores = generator.normal(size=(9, 6))
    targets = generator.integers(1, 21, 9)
    by_score = score_places(torch.from_numpy(id_scores[:, groups]), torch.from_numpy(targets))
    order = np.argsort(-id_scores, 1)
    by_rank = id_places(order, np.bincount(groups, minlength=6)[order], groups[targets - 1])
    np.testing.assert_array_equal(by_score.first, by_rank.first)
    np.testing.assert_array_equal(by_score.size, by_rank.size)


def test_summary_holds_every_metric_at_every_cutoff() -> None:
    plain = summarise_places(places((1, 1), (6, 1)), (5, 10))
    assert plain.keys() == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (5, 10)}
    assert plain["recall@5"] == 0.5
    assert plain["recall@10"] == 1.0
    with_ids = Places(np.array([6]), np.array([2]), np.array([3]))
    assert summarise_places(with_ids, (5,))["recall_id@5"] == 1.0
    assert math.isnan(summarise_places(places(), (5,))["recall@5"])


def test_values_per_user_by_name() -> None:
    found = places((2, 1), (0, 1))
    assert per_user(found, "mrr@3").tolist() == [0.5, 0]
    for name in ("auc", "recall", "recall@", "recall@0", "hits@5"):
        with pytest.raises(ValueError, match="unknown metric"):
            per_user(found, name)
    with pytest.raises(ValueError, match="needs a model that gives semantic ids"):
        per_user(found, "recall_id@5")


def test_selected_users_keep_their_places() -> None:
    found = Places(np.array([1, 2, 3]), np.array([1, 1, 4]), np.array([1, 2, 2]))
    chosen = found.select(np.array([True, False, True]))
    assert chosen.first.tolist() == [1, 3]
    assert chosen.id_rank is not None
    assert chosen.id_rank.tolist() == [1, 2]


def test_impossible_places_are_refused() -> None:
    with pytest.raises(ValueError, match="one rank and one size"):
        Places(np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match="at least one item"):
        Places(np.array([1]), np.array([0]))


def test_thirds_of_interactions_by_hand() -> None:
    """Of 12 interactions: 6 + 3 + 2 + 1 + 0. Before each in order: 0, 6, 9, 11, 12."""
    slices = popularity_slices(np.array([1, 6, 0, 3, 2]))
    assert slices["head"].tolist() == [False, True, False, False, False]
    assert slices["torso"].tolist() == [False, False, False, True, False]
    assert slices["tail"].tolist() == [True, False, True, False, True]
    assert slices["cold"].tolist() == [True, False, True, True, True]


def test_slices_of_items_that_never_occur() -> None:
    slices = popularity_slices(np.zeros(3, np.int64))
    assert slices["tail"].all()
    assert slices["cold"].all()
    assert not slices["head"].any()
