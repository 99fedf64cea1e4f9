import itertools

import pytest
import torch

from rankloom.layers.nearest import (
    assign_nearest,
    assign_with_margin,
    balance_prices,
    balanced_assignment,
    squared_distances,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_by_hand() -> None:
    vectors, centres = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[3.0, 0.0]])
    assert squared_distances(vectors, centres).tolist() == [[9.0], [16.0]]


@pytest.mark.parametrize("block_rows", [3, 7, 1000])
def test_the_nearest_centre_whatever_the_blocks(block_rows: int) -> None:
    vectors, centres = normal(50, 6), normal(9, 6, seed=1)
    slow = [[float((x - c).square().sum()) for c in centres] for x in vectors]
    labels, distances = assign_nearest(vectors, centres, block_rows=block_rows)
    assert labels.tolist() == [row.index(min(row)) for row in slow]
    torch.testing.assert_close(distances, torch.tensor([min(row) for row in slow]))


def test_centres_that_repeat_each_other_are_never_both_used() -> None:
    # Far from zero, where rounding would tell equal centres apart.
    points = normal(5, 33) + 100
    labels, _ = assign_nearest(points.repeat(41, 1), points.repeat(4, 1), block_rows=37)
    assert labels.tolist() == list(range(5)) * 41


def test_distances_far_from_zero_keep_their_precision() -> None:
    vectors, centres = normal(20, 4) + 1000, normal(6, 4, seed=1) + 1000
    exact = (vectors[:, None].double() - centres.double()).square().sum(2).min(1)
    labels, distances = assign_nearest(vectors, centres)
    assert labels.tolist() == exact.indices.tolist()
    torch.testing.assert_close(distances, exact.values.float(), rtol=1e-4, atol=1e-4)


def test_the_margin_by_hand() -> None:
    centres = torch.tensor([[0.0], [4.0]])
    labels, margins = assign_with_margin(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), centres)
    assert labels.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(margins, torch.tensor([1.0, 1 - 1 / 9, 0.0, 1 - 1 / 9]))


def test_the_margin_of_one_centre_and_of_equal_ones() -> None:
    vectors = normal(3, 2)
    assert assign_with_margin(vectors, vectors[:1])[1].tolist() == [1, 1, 1]
    labels, margins = assign_with_margin(torch.ones(2, 2), torch.ones(2, 2))
    assert labels.tolist() == [0, 0]
    assert margins.tolist() == [0, 0]


def test_a_price_moves_the_border() -> None:
    centres, vectors = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [1.9], [3.0]])
    prices = torch.tensor([8.0, 0.0])  # 1 + 8 = 9 + 0 at the first vector: the lower number has it
    assert assign_nearest(vectors, centres, prices=prices)[0].tolist() == [0, 1, 1]


def test_the_exact_balanced_assignment_is_the_cheapest_of_all() -> None:
    vectors, centres = normal(6, 3), normal(3, 3, seed=1)
    costs = squared_distances(vectors, centres)
    allowed = [
        labels
        for labels in itertools.product(range(3), repeat=6)
        if max(labels.count(code) for code in range(3)) <= 2
    ]
    best = min(allowed, key=lambda labels: sum(costs[i, k] for i, k in enumerate(labels)))
    assert balanced_assignment(vectors, centres).tolist() == list(best)


@pytest.mark.parametrize(("items", "codes"), [(100, 7), (96, 8), (5, 9), (1, 1)])
@pytest.mark.parametrize("exact_limit", [0, 2**20])
def test_no_centre_has_more_than_its_share(items: int, codes: int, exact_limit: int) -> None:
    # All vectors are nearest to the first centre.
    vectors = normal(items, 2) * 0.1
    centres = torch.arange(codes)[:, None] * torch.ones(1, 2)
    labels = balanced_assignment(vectors, centres, exact_limit=exact_limit, block_rows=11)
    loads = torch.bincount(labels, minlength=codes)
    assert int(loads.sum()) == items
    assert int(loads.max()) <= -(-items // codes)


def test_the_greedy_assignment_by_hand() -> None:
    # Room for two each. 0, 1 and 2 ask for the first centre; 0 would lose most by the second (100
    # against 0), then 1 (81 - 1), so 2 (64 - 4) goes to the second.
    vectors, centres = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([[0.0], [10.0]])
    assert balanced_assignment(vectors, centres, exact_limit=0).tolist() == [0, 0, 1, 1]


def test_the_greedy_assignment_comes_near_the_exact_one() -> None:
    vectors, centres = normal(200, 4), normal(10, 4, seed=1)
    costs = squared_distances(vectors, centres)
    exact = costs.gather(1, balanced_assignment(vectors, centres)[:, None]).sum()
    greedy = costs.gather(1, balanced_assignment(vectors, centres, exact_limit=0)[:, None]).sum()
    blind = costs.gather(1, (torch.arange(200) % 10)[:, None]).sum()
    assert exact <= greedy
    assert greedy - exact < 0.2 * (blind - exact)


def test_prices_even_out_the_loads() -> None:
    vectors, centres = normal(3000, 4), 0.3 * normal(20, 4, seed=1)
    prices = balance_prices(vectors, centres, block_rows=999)
    assert float(prices.min()) == 0
    without = torch.bincount(assign_nearest(vectors, centres)[0], minlength=20)
    loads = torch.bincount(assign_nearest(vectors, centres, prices=prices)[0], minlength=20)
    assert int(without.max()) > 250
    assert 100 < int(loads.min()) <= int(loads.max()) < 200  # 150 each


def test_vectors_on_their_centres_need_no_prices() -> None:
    vectors = torch.eye(3)
    assert balance_prices(vectors, vectors).tolist() == [0, 0, 0]


def test_no_centres() -> None:
    with pytest.raises(ValueError, match="needs at least one centre; got none"):
        balanced_assignment(torch.ones(2, 3), torch.ones(0, 3))
