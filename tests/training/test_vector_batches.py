"""Batches of item vectors, and how far training has come."""

import pytest
import torch

from rankloom.training.batches import check_applied
from rankloom.training.config import TrainingConfig
from rankloom.training.vector_batches import VectorBatches

VECTORS = torch.arange(22.0).view(11, 2)


def test_every_row_comes_once_with_its_vector_and_the_share_that_is_done() -> None:
    loader = VectorBatches(VECTORS, 5, epochs=2, seed=1)
    assert len(loader) == 2  # 5 and 6: no batch of one row
    orders, progress = [], []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        rows = torch.cat([batch.rows for batch in batches])
        assert sorted(rows.tolist()) == list(range(11))
        assert torch.equal(torch.cat([batch.vectors for batch in batches]), VECTORS[rows])
        orders.append(rows.tolist())
        progress += [batch.progress for batch in batches]
    assert progress == [0.0, 0.25, 0.5, 0.75]
    assert orders[0] != orders[1]
    loader.set_epoch(2)
    assert [batch.progress for batch in loader] == [0.75, 0.75]


def test_it_goes_on_exactly_where_it_stood() -> None:
    first = VectorBatches(VECTORS, 3, epochs=4, seed=2)
    first.set_epoch(1)
    given = iter(first)
    next(given)
    second = VectorBatches(VECTORS, 3, epochs=4, seed=2)
    second.restore(first.state())
    rest, again = list(given), list(second)
    assert [batch.progress for batch in rest] == [batch.progress for batch in again]
    assert [b.rows.tolist() for b in rest] == [b.rows.tolist() for b in again]
    with pytest.raises(ValueError, match="loader state does not fit: epochs 4, here 5"):
        VectorBatches(VECTORS, 3, epochs=5, seed=2).restore(first.state())


def test_one_item_is_a_batch_and_none_is_an_error() -> None:
    assert [batch.size for batch in VectorBatches(VECTORS[:1], 4, epochs=1)] == [1]
    with pytest.raises(ValueError, match="at least one item"):
        VectorBatches(VECTORS[:0], 4, epochs=1)
    with pytest.raises(ValueError, match="got batch_size=4, epochs=0, seed=0"):
        VectorBatches(VECTORS, 4, epochs=0)


def test_the_loop_accepts_them_without_settings_of_tables() -> None:
    loader = VectorBatches(VECTORS, 4, epochs=1)
    check_applied(loader, TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match=r"training\.compile: for models of rows of a table only"):
        check_applied(loader, TrainingConfig(compile=True))
