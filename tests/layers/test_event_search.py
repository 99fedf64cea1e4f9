import math

import pytest
import torch

from rankloom.layers.event_search import RandomPlanes, best_events, events_at


def by_sorting(scores: list[float], allowed: list[bool], count: int) -> list[int]:
    """Places of the events found in one row."""
    places = [place for place, may in enumerate(allowed) if may]
    return sorted(places, key=lambda place: (-scores[place], -place))[:count]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_best_events_are_found_and_of_equal_ones_the_latest(count) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (50, 9), generator=generator) / 3
    scores[0] = torch.tensor([0.0, -0.0, 0.0, -0.0, -1e-30, 1e-30, -1e30, 1e30, -math.inf])
    allowed = torch.rand(50, 9, generator=generator) < 0.6
    allowed[0] = True
    allowed[1] = False
    index, mask = best_events(scores, allowed, count)
    assert index.shape == mask.shape == (50, min(count, 9))
    for row in range(50):
        expected = by_sorting(scores[row].tolist(), allowed[row].tolist(), count)
        assert index[row][mask[row]].tolist() == expected
        # What is not found stands behind what is.
        assert mask[row].tolist() == [place < len(expected) for place in range(mask.shape[1])]
    assert by_sorting(scores[0].tolist(), [True] * 9, 6) == [7, 5, 3, 2, 1, 0]


def test_no_rows_and_double_precision() -> None:
    index, mask = best_events(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool), 2)
    assert index.shape == mask.shape == (0, 2)
    assert events_at(index, torch.zeros(0, 4, 3)).shape == (0, 2, 3)
    index, _ = best_events(torch.tensor([[0.1, 0.3, 0.2]]).double(), torch.ones(1, 3).bool(), 2)
    assert index.tolist() == [[1, 2]]


def test_events_are_taken_row_by_row_and_their_gradient_returns() -> None:
    values = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    index = torch.tensor([[3, 0], [1, 1]])
    found = events_at(index, values)
    assert found[:, :, 0].tolist() == [[9.0, 0.0], [15.0, 15.0]]
    found.sum().backward()
    assert values.grad is not None
    assert values.grad[:, :, 1].tolist() == [[1, 0, 0, 1], [0, 2, 0, 0]]


def test_distances_count_the_planes_between_two_vectors() -> None:
    planes = RandomPlanes(3, 2)
    planes.normals = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    events = torch.tensor([[[2.0, 1, 5], [2, -1, 5], [-2, 1, 0], [-1, -1, 1], [0, 0, 0]]])
    target = torch.tensor([[1.0, 1.0, -7.0]])
    assert planes.distances(events, target).tolist() == [[0, 1, 1, 2, 2]]
    assert planes(target).tolist() == [[True, True]]
    with torch.autocast("cpu", torch.bfloat16):
        assert planes.distances(events, target).tolist() == [[0, 1, 1, 2, 2]]


def test_distances_do_not_round_under_autocast() -> None:
    """In bf16 a count above 256 is off by one or more."""
    torch.manual_seed(0)
    planes = RandomPlanes(4, 999)
    events, target = torch.randn(2, 5, 4), torch.randn(2, 4)
    by_hand = (planes(events) != planes(target).unsqueeze(1)).sum(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert planes.distances(events, target).tolist() == by_hand.tolist()
    assert by_hand.max() > 300


def test_planes_part_vectors_as_often_as_their_angle_says() -> None:
    torch.manual_seed(0)
    planes = RandomPlanes(2, 40_000)
    angles = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) * math.pi
    events = torch.stack([angles.cos(), angles.sin()], dim=1).unsqueeze(0)
    share = planes.distances(events, torch.tensor([[1.0, 0.0]])) / 40_000
    torch.testing.assert_close(share[0], angles / math.pi, atol=0.01, rtol=0)


def test_nearest_codes_are_the_nearest_vectors_the_more_bits_the_better() -> None:
    torch.manual_seed(0)
    events, target = torch.randn(64, 100, 8), torch.randn(64, 8)
    everything = torch.ones(64, 100, dtype=torch.bool)
    exact, _ = best_events(
        torch.cosine_similarity(events, target.unsqueeze(1), dim=2), everything, 10
    )

    def recall(num_bits: int) -> float:
        distances = RandomPlanes(8, num_bits).distances(events, target)
        found, _ = best_events(-distances, everything, 10)
        return (found.unsqueeze(2) == exact.unsqueeze(1)).any(2).float().mean().item()

    recalls = [recall(bits) for bits in (2, 16, 128, 1024)]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.35
    assert recalls[-1] > 0.85


def test_planes_are_saved_and_not_trained() -> None:
    planes = RandomPlanes(3, 5)
    assert list(planes.parameters()) == []
    assert planes.state_dict()["normals"].shape == (3, 5)
    x = torch.randn(2, 4, 3, requires_grad=True)
    assert not planes(x).requires_grad
    assert not planes.distances(x, x[:, 0]).requires_grad
