import pytest
import torch

from rankloom.layers.sinkhorn_codes import sinkhorn_codes


def published(distances: torch.Tensor, epsilon: float, num_steps: int) -> torch.Tensor:
    """The procedure step by step, by loops over rows and columns."""
    exact = distances.double()
    middle = (exact.max() + exact.min()) / 2
    scaled = (exact - middle) / (exact.max() - middle)
    plan = (-scaled / epsilon).exp()
    for _ in range(num_steps):
        for row in range(plan.shape[0]):
            plan[row] /= plan[row].sum()
        for column in range(plan.shape[1]):
            plan[:, column] /= plan[:, column].sum()
    largest = plan >= (1 - 1e-6) * plan.amax(1, keepdim=True)
    return torch.where(largest, exact, torch.inf).argmin(1)


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.01, 0.003])
@pytest.mark.parametrize(("items", "codes"), [(12, 5), (4, 9)])
def test_agrees_with_loops(epsilon: float, items: int, codes: int) -> None:
    distances = torch.rand(items, codes, generator=torch.Generator().manual_seed(0))
    expected = published(distances, epsilon, 30)
    assert sinkhorn_codes(distances, epsilon, 30).tolist() == expected.tolist()


def test_of_codes_that_one_item_has_alone_it_takes_the_nearest() -> None:
    # Each item is alone at its two codes.
    distances = torch.tensor([[0.3, 9, 0.1, 9], [9, 0.1, 9, 0.2]])
    assert sinkhorn_codes(distances, 0.003, 50).tolist() == [2, 1]


def test_the_form_for_small_epsilon_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = torch.rand(40, 16, generator=torch.Generator().manual_seed(0))
    scaled = sinkhorn_codes(distances, 0.003, 50)
    monkeypatch.setattr("rankloom.layers.sinkhorn_codes.SMALLEST_SCALED", 1.0)
    assert sinkhorn_codes(distances, 0.003, 50).tolist() == scaled.tolist()


@pytest.mark.parametrize("epsilon", [0.003, 0.0005])
def test_loads_are_near_equal_where_the_nearest_codes_are_not(epsilon: float) -> None:
    vectors = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    centres = 0.2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    distances = torch.cdist(vectors, centres).square()
    nearest = torch.bincount(distances.argmin(1), minlength=8)
    loads = torch.bincount(sinkhorn_codes(distances, epsilon, 500), minlength=8)
    assert int(nearest.max()) > 60
    assert int(loads.max()) < 45  # 32 each


def test_groups_are_alone() -> None:
    distances = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    together = sinkhorn_codes(distances, 0.01, 20)
    apart = [sinkhorn_codes(group, 0.01, 20).tolist() for group in distances]
    assert together.tolist() == apart


def test_items_that_are_equal_to_all_codes_and_no_items() -> None:
    assert sinkhorn_codes(torch.ones(3, 4), 0.003, 5).tolist() == [0, 0, 0]
    assert sinkhorn_codes(torch.ones(0, 4), 0.003, 5).shape == (0,)


def test_no_steps() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        sinkhorn_codes(torch.ones(2, 2), 0.1, 0)
