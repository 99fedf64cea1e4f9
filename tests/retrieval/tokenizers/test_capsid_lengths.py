import numpy as np
import torch

from rankloom.retrieval.tokenizers.capsid_lengths import (
    DistinctiveLength,
    FixedLength,
    PublishedLength,
    sharing,
)

CODES = np.array([[0, 1, 2], [0, 1, 1], [0, 2, 2], [1, 1, 2], [1, 1, 2]], np.int32)
CONFIDENCE = np.array(
    [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.1], [0.82, 0.1, 0.1], [0.1, 0.1, 0.1]],
    np.float32,
)
LEFT = np.array(
    [[0.5, 0.4, 0.3], [0.5, 0.01, 0.0], [0.5, 0.08, 0.07], [0.01, 0.0, 0.0], [0.3, 0.2, 0.1]],
    np.float32,
)


def test_sharing_by_hand() -> None:
    expected = [[3, 2, 1], [3, 2, 1], [3, 1, 1], [2, 2, 2], [2, 2, 2]]
    np.testing.assert_array_equal(sharing(CODES), expected)
    assert sharing(np.empty((0, 3), np.int32)).shape == (0, 3)


def test_published_rule_by_hand() -> None:
    rule = PublishedLength()
    lengths, reasons = rule.lengths(CODES, CONFIDENCE, LEFT)
    np.testing.assert_array_equal(lengths, [1, 2, 2, 1, 3])
    np.testing.assert_array_equal(reasons, [0, 0, 1, 0, 2])  # of both, confidence


def test_distinctive_rule_waits_until_nobody_else_has_the_codes() -> None:
    rule = DistinctiveLength()
    confidence = np.full_like(CONFIDENCE, 0.9)
    lengths, reasons = rule.lengths(CODES, confidence, LEFT)
    np.testing.assert_array_equal(lengths, [3, 3, 2, 3, 3])
    np.testing.assert_array_equal(reasons, [0, 0, 0, 2, 2])
    two = DistinctiveLength(max_sharing=2)
    np.testing.assert_array_equal(two.lengths(CODES, confidence, LEFT)[0], [2, 2, 2, 1, 1])


def test_fixed_rule() -> None:
    np.testing.assert_array_equal(FixedLength().lengths(CODES, CONFIDENCE, LEFT)[0], [3] * 5)
    lengths, reasons = FixedLength(length=2).lengths(CODES, CONFIDENCE, LEFT)
    np.testing.assert_array_equal(lengths, [2] * 5)
    np.testing.assert_array_equal(reasons, [3] * 5)


def test_training_follows_the_published_rule_or_runs_all_levels() -> None:
    confidence, left = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.5, 0.01, 0.5])
    assert PublishedLength().stops(confidence, left).tolist() == [True, True, False]
    for rule in (DistinctiveLength(), FixedLength()):
        assert rule.stops(confidence, left).tolist() == [False] * 3


def test_stop_probability_by_hand() -> None:
    probability = PublishedLength().stop_probability(torch.tensor([0.82, 0.87]))
    torch.testing.assert_close(probability, torch.tensor([0.5, 0.73105858]))
    assert FixedLength().stop_probability(torch.tensor([0.99])).item() == 0
