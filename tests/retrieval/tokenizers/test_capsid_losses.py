import math

import torch

from rankloom.retrieval.tokenizers.capsid_losses import (
    LossWeights,
    entropy,
    expected_length,
    spread,
)


def test_spread_by_hand() -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    # Margin .6: the gaps are .5 and .6.
    torch.testing.assert_close(spread(weights, 0.6), torch.tensor([0.01, 0.0]))


def test_margin_grows_over_training() -> None:
    assert LossWeights().margin(0.0) == 0.2
    assert math.isclose(LossWeights().margin(0.5), 0.55)


def test_expected_length_by_hand() -> None:
    stop = torch.tensor([[0.5, 0.25, 0.9], [0.0, 0.0, 0.3], [1.0, 0.5, 0.5]])
    # Half go on to level 2; of these three quarters to level 3; the last level ends all.
    torch.testing.assert_close(expected_length(stop), torch.tensor([1.875, 3.0, 1.0]))
    assert expected_length(torch.tensor([[0.2]])).item() == 1


def test_entropy_is_largest_where_all_are_used_alike() -> None:
    torch.testing.assert_close(entropy(torch.full((4,), 0.25)), torch.tensor(math.log(4)))
    shares = torch.tensor([1.0, 0.0], requires_grad=True)
    assert entropy(shares).item() == 0
    entropy(shares).backward()
    assert shares.grad is not None
    assert bool(torch.isfinite(shares.grad).all())
