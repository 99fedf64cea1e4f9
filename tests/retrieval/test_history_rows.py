"""Padded rows of histories, and evaluation batches."""

import numpy as np
import pytest
import torch

from rankloom.retrieval.histories import Histories
from rankloom.retrieval.history_rows import evaluation_batches, pad_ranges

CONTEXTS = Histories.from_lists([[1, 2, 3], [], [4], [5, 6, 7, 8, 9], [2, 1]], num_items=9)


def test_ranges_are_padded_at_the_end() -> None:
    rows = pad_ranges(np.array([5, 6, 7, 8]), np.array([1, 3, 4]), np.array([3, 1, 0]), 3)
    assert rows.tolist() == [[6, 7, 8], [8, 0, 0], [0, 0, 0]]


def test_batches_go_by_length_and_the_inverse_order_puts_rows_back() -> None:
    users = np.array([10, 11, 12, 13, 14])
    batches, inverse = evaluation_batches(CONTEXTS, users, batch_size=2, max_length=4)
    given = list(batches)
    assert [batch.items.tolist() for batch in given] == [
        [[0], [4]],
        [[2, 1, 0], [1, 2, 3]],
        [[6, 7, 8, 9]],
    ]
    numbers = torch.cat([batch.users for batch in given])
    assert numbers[inverse].tolist() == [11, 12, 13, 14, 15]
    assert all(batch.targets is None for batch in given)


def test_users_may_be_unknown_and_contexts_missing() -> None:
    batches, _ = evaluation_batches(CONTEXTS, None, batch_size=9, max_length=9)
    assert next(iter(batches)).users is None
    batches, inverse = evaluation_batches(Histories.from_lists([], 3), None, 9, 9)
    assert list(batches) == []
    assert inverse.size == 0
    only_empty, _ = evaluation_batches(Histories.from_lists([[]], 3), None, 9, 9)
    assert next(only_empty).items.tolist() == [[0]]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length must be positive; got batch_size=2, max_l"):
        evaluation_batches(CONTEXTS, None, 2, 0)
    with pytest.raises(ValueError, match="one user for each context: got 2 of 5"):
        evaluation_batches(CONTEXTS, np.array([1, 2]), 2, 3)
