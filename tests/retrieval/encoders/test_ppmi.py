"""Co-occurrence counted by hand and by loops, PPMI by its equation."""

import math

import numpy as np
import pytest
import torch

from rankloom.retrieval.encoders import PpmiConfig
from rankloom.retrieval.encoders.ppmi import pair_counts, ppmi
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


def catalogue(items: int) -> Catalogue:
    ids = [str(number) for number in range(items)]
    return Catalogue(ids, [""] * items, [""] * items, torch.zeros(items, 0).long())


def slow_counts(histories: Histories, window: int) -> np.ndarray:
    counts = np.zeros((histories.num_items, histories.num_items))
    for user in range(histories.num_users):
        own = histories.of(user) - 1
        for first in range(len(own)):
            for second in range(first + 1, min(first + window, len(own) - 1) + 1):
                if own[first] != own[second]:
                    counts[own[first], own[second]] += 1
                    counts[own[second], own[first]] += 1
    return counts


def test_pairs_of_one_user_within_the_window_are_counted_by_hand() -> None:
    histories = Histories.from_lists([[1, 2, 3], [], [2, 2, 1]], 4)
    near = pair_counts(histories, 1).toarray()
    assert near.tolist() == [[0, 2, 0, 0], [2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    wide = pair_counts(histories, 5).toarray()
    assert wide.tolist() == [[0, 3, 1, 0], [3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_pairs_agree_with_loops() -> None:
    generator = np.random.default_rng(0)
    lists = [generator.integers(1, 13, length) for length in generator.integers(0, 9, 40)]
    histories = Histories.from_lists(lists, 12)
    for window in (1, 3, 20):
        found = pair_counts(histories, window).toarray()
        assert np.array_equal(found, slow_counts(histories, window))


def test_ppmi_is_the_equation() -> None:
    histories = Histories.from_lists([[1, 2, 3, 1], [3, 4, 4, 1], [2, 3]], 5)
    counts = slow_counts(histories, 2)
    found = ppmi(pair_counts(histories, 2), 0.75).toarray()
    context = counts.sum(1) ** 0.75
    for i in range(5):
        for j in range(5):
            expected = 0.0
            if counts[i, j]:
                share = counts[i, j] / counts.sum()
                by_chance = counts[i].sum() / counts.sum() * context[j] / context.sum()
                expected = max(0.0, math.log(share / by_chance))
            assert found[i, j] == pytest.approx(expected)


def test_items_seen_together_are_near_and_unseen_ones_zero() -> None:
    generator = np.random.default_rng(1)
    lists = [generator.integers(1, 6, 6) + 5 * (user % 2) for user in range(60)]
    histories = Histories.from_lists([*lists, [11]], 12)
    # Two groups never meet: the matrix has two blocks, and two directions tell just these apart.
    vectors = PpmiConfig(dim=2).encode(catalogue(12), histories, 0)
    near = vectors @ vectors.T
    assert near[:5, :5].min() > 0.9
    assert near[:5, 5:10].abs().max() < 1e-3
    # Item 11 is alone in its sequence, item 12 is in none.
    assert (vectors[10:] == 0).all()
    assert torch.equal(vectors, PpmiConfig(dim=2).encode(catalogue(12), histories, 0))


def test_without_any_pair_all_are_zero_and_without_sequences_is_an_error() -> None:
    lonely = Histories.from_lists([[1], [2, 2]], 2)
    assert (PpmiConfig(dim=3).encode(catalogue(2), lonely, 0) == torch.zeros(2, 3)).all()
    with pytest.raises(ValueError, match="encoder ppmi learns from sequences"):
        PpmiConfig().encode(catalogue(2), None, 0)


def test_fewer_items_than_dim_are_filled_up_with_zeros() -> None:
    histories = Histories.from_lists([[1, 2, 3]], 3)
    vectors = PpmiConfig(dim=64, normalise=False).encode(catalogue(3), histories, 0)
    assert vectors.shape == (3, 64)
    assert (vectors[:, 3:] == 0).all()
