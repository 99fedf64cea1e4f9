import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.order import BlockShuffle, FullShuffle, StoredOrder, rank_rows


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 120),
    world_size=st.integers(1, 4),
    block_rows=st.integers(2, 9),
    window_blocks=st.integers(1, 5),
    cut=st.integers(0, 120),
)
def test_any_cut_of_a_block_shuffle_gives_the_same_rows(
    rows: int, world_size: int, block_rows: int, window_blocks: int, cut: int
) -> None:
    visited = []
    for rank in range(world_size):
        order = BlockShuffle(rows, 1, 2, rank, world_size, block_rows, window_blocks)
        middle = min(cut, order.rows)
        parts = [order.select(0, middle), order.select(middle, order.rows)]
        again = BlockShuffle(rows, 1, 2, rank, world_size, block_rows, window_blocks)
        assert torch.equal(torch.cat(parts), again.select(0, order.rows))
        visited.append(torch.cat(parts))
        assert len(visited[-1]) == order.rows == rank_rows(rows, rank, world_size)
    assert torch.cat(visited).sort().values.tolist() == list(range(rows))


def test_a_window_reads_its_blocks_only() -> None:
    order = BlockShuffle(1000, 0, 0, 0, 1, block_rows=10, window_blocks=5)
    rows = order.select(0, 1000)
    for window in range(20):
        seen = rows[window * 50 : (window + 1) * 50]
        blocks = seen.div(10, rounding_mode="floor").unique()
        assert len(blocks) == 5
        assert seen.tolist() != sorted(seen.tolist())
        wanted = [row for start, stop in order.block_ranges(window) for row in range(start, stop)]
        assert sorted(wanted) == sorted(seen.tolist())
    first = rows[:50].div(10, rounding_mode="floor").unique().tolist()
    assert first != list(range(5))  # the blocks themselves are shuffled


def test_epochs_windows_and_seeds_have_streams_of_their_own() -> None:
    orders = [
        FullShuffle(50, seed, epoch, 0, 1).select(0, 50).tolist()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_stored_order_gives_ranges() -> None:
    ranges = [StoredOrder(11, rank, 3) for rank in range(3)]
    assert [(part.start, part.rows) for part in ranges] == [(0, 4), (4, 4), (8, 3)]
    assert ranges[1].select(1, 3).tolist() == [5, 6]


def test_full_shuffle_is_uniform() -> None:
    # Row 0 lands on each of 4 places about equally often: 1000 draws, 5 deviations of 14.
    places = [
        int((FullShuffle(4, seed, 0, 0, 1).select(0, 4) == 0).nonzero()) for seed in range(1000)
    ]
    counts = [places.count(place) for place in range(4)]
    assert all(abs(count - 250) < 69 for count in counts)
