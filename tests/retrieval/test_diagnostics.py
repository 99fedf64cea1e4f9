import math
from itertools import combinations

import numpy as np
import pytest
import torch

from rankloom.config import parse_config
from rankloom.retrieval.diagnostics import (
    TokenizerDiagnostics,
    code_examples,
    collision_share,
    diagnose,
    entropy_bits,
    gini,
    intra_code_cosine,
    reconstruction_error,
    stop_shares,
)
from rankloom.retrieval.protocols import Assignment
from rankloom.retrieval.semantic_ids import SemanticIds

CODES = np.array([[0, 1], [0, 1], [0, -1], [1, 0], [2, 0]], np.int32)
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])


def test_collision_share_counts_items_not_ids() -> None:
    assert collision_share(CODES) == pytest.approx(2 / 5)
    assert collision_share(CODES[:0]) == 0
    assert collision_share(CODES[2:]) == 0


def test_gini_by_hand_and_as_a_mean_difference() -> None:
    assert gini(np.array([2, 2, 2])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)
    counts = np.random.default_rng(0).integers(0, 20, 15)
    mean_difference = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(mean_difference / (2 * counts.mean()))
    assert gini(np.zeros(3, np.int64)) == 0


def test_entropy_by_hand() -> None:
    assert entropy_bits(np.array([4, 4, 4, 4, 0])) == pytest.approx(2)
    assert str(entropy_bits(np.array([7, 0]))) == "0.0"
    assert entropy_bits(np.array([1, 3])) == pytest.approx(
        -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    )


def test_intra_code_cosine_equals_all_pairs() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, (40, 3)).astype(np.int32)
    codes[::7, 2] = -1
    codes[::9, 1:] = -1
    vectors = torch.from_numpy(rng.normal(size=(40, 5)))
    vectors[4] = 0
    found = intra_code_cosine(codes, vectors)
    for level in range(3):
        cosines = [
            float(torch.cosine_similarity(vectors[a], vectors[b], dim=0))
            for a, b in combinations(range(40), 2)
            if (codes[[a, b], level] >= 0).all()
            and (codes[a, : level + 1] == codes[b, : level + 1]).all()
        ]
        assert cosines
        assert found[level] == pytest.approx(np.mean(cosines))


def test_intra_code_cosine_by_hand() -> None:
    # Level 1: pairs of (1, 0), (0, 1) and (1, 0) again: 0, 1, 0. Level 2: (1, 0) and (0, 1).
    assert intra_code_cosine(CODES, VECTORS) == pytest.approx((1 / 3, 0.0))
    assert intra_code_cosine(CODES[3:], VECTORS[3:]) == (None, None)


def test_reconstruction_error_is_relative_to_the_variance() -> None:
    target = torch.tensor([[0.0], [2.0]])  # squared distances to the mean: 1 + 1
    assert reconstruction_error(Assignment(CODES[:2], torch.tensor([[0.5], [2.0]]), target)) == (
        pytest.approx(0.25 / 2)
    )
    assert reconstruction_error(Assignment(CODES[:2], target.mean(0).expand(2, 1), target)) == 1
    assert reconstruction_error(Assignment(CODES[:2], target, target)) == 0
    same = torch.ones(2, 1)
    assert reconstruction_error(Assignment(CODES[:2], same, same)) == 0
    assert reconstruction_error(Assignment(CODES[:2], 2 * same, same)) is None
    assert reconstruction_error(Assignment(CODES[:2])) is None


def test_stop_shares() -> None:
    stopped = np.array([0, 0, 2, 0], np.int8)
    assignment = Assignment(CODES[:4], stopped_by=stopped, stop_reasons=("sure", "small", "end"))
    assert stop_shares(assignment) == {"sure": 0.75, "small": 0.0, "end": 0.25}
    assert stop_shares(Assignment(CODES)) == {}


def test_diagnose_by_hand() -> None:
    ids = SemanticIds(CODES, (4, 2))
    found = diagnose(ids, VECTORS)
    assert found.num_items == 5
    assert found.num_ids == 4
    assert found.largest_groups == (2,)
    assert found.utilisation_by_level == (3 / 4, 1.0)
    assert found.utilisation == pytest.approx(5 / 6)
    # Counts 3, 1, 1, 0 and 2, 2: ordered 0 1 1 2 2 3, weights -5 -3 -1 1 3 5 of 6 * 9.
    assert found.gini == pytest.approx((-3 - 1 + 2 + 6 + 15) / 54)
    assert found.entropy_by_level == pytest.approx((entropy_bits(np.array([3, 1, 1])), 1.0))
    assert found.mean_length == pytest.approx(9 / 5)
    assert found.mean_tokens == pytest.approx(9 / 5)
    assert found.length_shares == pytest.approx((0.2, 0.8))
    assert found.reconstruction_error is None
    assert found.assigned_collision_share is None
    assigned = Assignment(np.array([[0], [0], [1], [2], [2]], np.int32))
    assert diagnose(ids, VECTORS, assigned).assigned_collision_share == 4 / 5
    again = parse_config(TokenizerDiagnostics, found.model_dump(mode="json"), "diagnostics")
    assert again == found


def test_one_item_and_none() -> None:
    one = diagnose(SemanticIds(np.array([[3]], np.int32), (5,)), torch.ones(1, 2))
    assert one.collision_share == 0
    assert one.largest_groups == ()
    assert one.intra_code_cosine == (None,)
    none = diagnose(SemanticIds(np.empty((0, 2), np.int32), (5, 5)), torch.ones(0, 2))
    assert none.num_ids == 0
    assert none.mean_length == none.mean_tokens == none.gini == 0


def test_examples_are_the_largest_codes_with_their_middle_first() -> None:
    ids = SemanticIds(CODES, (4, 2))
    found = code_examples(ids, ["a", "b", "c", "d", "e"], VECTORS, num_codes=2, num_titles=2)
    # Unit vectors of code 0: (1, 0), (0, 1), (1, 0); their mean is nearer to the first and third.
    assert [(e.codes, e.num_items, e.titles) for e in found] == [
        ((0,), 3, ("a", "c")),
        ((1,), 1, ("d",)),
    ]
    deeper = code_examples(ids, list("abcde"), VECTORS, depth=2, num_codes=1)
    assert deeper[0].codes == (0, 1)
    with pytest.raises(ValueError, match="one title for each item; got 1 for 5 items"):
        code_examples(ids, ["a"], VECTORS)
    with pytest.raises(ValueError, match="depth must be 1 to 2 levels; got 3"):
        code_examples(ids, list("abcde"), VECTORS, depth=3)
