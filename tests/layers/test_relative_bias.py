import math

import pytest
import torch

from rankloom.layers.relative_bias import PairBias, PositionBias, TimeGapBias, time_gap_buckets


def test_position_bias_is_a_number_per_distance() -> None:
    bias = PositionBias(3)
    bias.weight.data = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])  # its own distance
    expected = torch.tensor([[0.0, -1.0, -2.0], [1.0, 0.0, -1.0], [2.0, 1.0, 0.0]])
    assert torch.equal(bias(), expected)
    bias().sum().backward()
    assert torch.equal(bias.weight.grad, torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]))


def test_pair_bias_is_a_number_per_ordered_pair() -> None:
    bias = PairBias(3)
    assert torch.equal(bias(), bias.weight)
    assert bias.weight.shape == (3, 3)
    assert len(bias.weight.unique()) == 9


def test_biases_start_small() -> None:
    for bias in (PairBias(100), PositionBias(5000), TimeGapBias(10_000)):
        assert bias.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_gap_falls_into_the_bucket_of_its_logarithm() -> None:
    time = torch.tensor([[0, 0, 1, 2, 60, 3_600, 86_400, 31_536_000, 1_700_000_000]])
    buckets = time_gap_buckets(time, 128)[0]
    for i, a in enumerate(time[0].tolist()):
        for j, b in enumerate(time[0].tolist()):
            assert buckets[i, j] == int(math.log(max(1, abs(a - b))) / 0.301)
    assert buckets[0].tolist() == [0, 0, 0, 2, 13, 27, 37, 57, 70]
    assert buckets.dtype == torch.int64


def test_the_last_bucket_takes_all_longer_gaps() -> None:
    time = torch.tensor([[0, 1, 2, 100, 10**9]])
    assert time_gap_buckets(time, 3)[0, 0].tolist() == [0, 0, 2, 2, 2]


def test_gap_bias_is_a_number_per_bucket() -> None:
    bias = TimeGapBias(4)
    bias.weight.data = torch.tensor([[0.5], [1.0], [2.0], [3.0]])
    buckets = torch.tensor([[[0, 3], [3, 0]], [[0, 1], [1, 0]]])
    expected = torch.tensor([[[0.5, 3.0], [3.0, 0.5]], [[0.5, 1.0], [1.0, 0.5]]])
    assert torch.equal(bias(buckets), expected)
    bias(buckets).sum().backward()
    assert bias.weight.grad.squeeze().tolist() == [4.0, 2.0, 0.0, 2.0]
