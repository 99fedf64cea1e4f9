from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rankloom.retrieval.appending import append_items
from rankloom.retrieval.collisions import group_sizes
from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.gaoq import GAOQ, GAOQConfig, align, orthonormal_anchors
from rankloom.retrieval.tokenizers.state import load_state


def fitted(vectors: Tensor, config: GAOQConfig, seed: int = 0) -> GAOQ:
    tokenizer = config.build(vectors.shape[1])
    tokenizer.fit(TokenizerItems(vectors), torch.Generator().manual_seed(seed))
    return tokenizer


def test_anchors_are_orthonormal_within_each_basis() -> None:
    anchors = orthonormal_anchors(7, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(anchors[:5] @ anchors[:5].T, torch.eye(5))
    torch.testing.assert_close(anchors[5:] @ anchors[5:].T, torch.eye(2))


def test_align_is_the_best_of_all_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, anchors = torch.randn(3, 4, generator=generator), torch.eye(4)
    cosines = functional.normalize(directions, dim=1)
    best = max(
        permutations(range(4), 3), key=lambda codes: sum(cosines[i, c] for i, c in enumerate(codes))
    )
    assert align(directions, anchors).tolist() == list(best)


def test_codes_point_the_same_way_in_every_parent() -> None:
    # Two far parents, each with children to its left and right, above and below.
    parents = torch.tensor([[100.0, 0.0], [-100.0, 0.0]])
    steps = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    vectors = (parents[:, None] + steps).flatten(0, 1).repeat_interleave(2, 0)
    vectors = vectors + torch.tensor([[0.01], [-0.01]]).repeat(8, 1)
    tokenizer = fitted(vectors, GAOQConfig(branching=(2, 4)))
    codes = tokenizer.assign(vectors).codes
    assert tokenizer.level_sizes == (2, 4, 2)
    first, second = codes[:8], codes[8:]
    assert (first[:, 0] != second[:, 0]).all()
    assert (first[:, 1:] == second[:, 1:]).all()
    assert group_sizes(codes).max() == 1


def test_clusters_are_of_equal_size_and_ids_unique() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(230, 8, generator=generator)
    tokenizer = fitted(vectors, GAOQConfig(branching=(5, 6)))
    assert isinstance(tokenizer, FittedTokenizer)
    assignment = tokenizer.assign(vectors)
    assert group_sizes(assignment.codes).max() == 1
    assert np.bincount(assignment.codes[:, 0]).tolist() == [46] * 5
    _, sizes = np.unique(assignment.codes[:, :2], axis=0, return_counts=True)
    assert sizes.max() == tokenizer.level_sizes[2] == 8  # ceil(46 / 6)
    for row in range(0, 230, 17):
        mates = (assignment.codes[:, :2] == assignment.codes[row, :2]).all(1)
        torch.testing.assert_close(
            assignment.reconstruction[row], vectors[torch.from_numpy(mates)].mean(0)
        )


def test_new_items_take_the_nearest_clusters_and_anchor() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(90, 6, generator=generator)
    tokenizer = fitted(vectors, GAOQConfig(branching=(3, 4), last_level_size=20))
    new = torch.randn(25, 6, generator=generator)
    codes = tokenizer.assign(new).codes
    for row, vector in enumerate(new):
        first = int((tokenizer.centroids_0[0] - vector).norm(dim=1).argmin())
        second = int((tokenizer.centroids_1[first] - vector).norm(dim=1).argmin())
        middle = tokenizer.centroids_1[first, second]
        last = int(torch.cosine_similarity(tokenizer.anchors_2, vector - middle, dim=1).argmax())
        assert codes[row].tolist() == [first, second, last]
    # Beside old ones the new ones have the same codes, and the old ones their own.
    both = tokenizer.assign(torch.cat([new[:3], vectors])).codes
    assert (both[:3] == codes[:3]).all()
    assert (both[3:] == tokenizer.assign(vectors).codes).all()
    published = SemanticIds(tokenizer.assign(vectors).codes, tokenizer.level_sizes)
    longer = append_items(published, tokenizer.assign(new), tokenizer, new)
    assert group_sizes(longer.codes).max() == 1
    assert (longer.codes[:90] == published.codes).all()


@pytest.mark.parametrize(
    "vectors",
    [
        torch.ones(1, 4),
        torch.eye(4),
        torch.ones(30, 4),
        torch.cat([torch.zeros(6, 4), torch.eye(4)]),
    ],
    ids=["one item", "fewer items than codes", "identical", "zeros"],
)
def test_hard_catalogues_get_unique_ids(vectors: Tensor) -> None:
    tokenizer = fitted(vectors, GAOQConfig(branching=(3, 5)))
    assignment = tokenizer.assign(vectors)
    assert group_sizes(assignment.codes).max() == 1
    SemanticIds(assignment.codes, tokenizer.level_sizes)  # codes are within their levels
    assert torch.isfinite(assignment.reconstruction).all()
    new = tokenizer.assign(torch.randn(5, 4))
    SemanticIds(new.codes, tokenizer.level_sizes)
    assert torch.isfinite(new.reconstruction).all()
    assert tokenizer.assign(vectors[:0]).codes.shape == (0, 3)


def test_state_brings_codes_and_sizes_back() -> None:
    vectors = torch.randn(60, 5)
    config = GAOQConfig(branching=(4, 2))
    tokenizer, again = fitted(vectors, config), config.build(5)
    load_state(again, tokenizer.state_dict())
    assert again.level_sizes == tokenizer.level_sizes
    assert (again.assign(vectors).codes == tokenizer.assign(vectors).codes).all()
    new = torch.randn(9, 5)
    assert (again.assign(new).codes == tokenizer.assign(new).codes).all()


def test_the_generator_decides() -> None:
    vectors = torch.randn(60, 5)
    config = GAOQConfig(branching=(4, 3))
    codes = [fitted(vectors, config, seed).assign(vectors).codes for seed in (1, 1, 2)]
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="last_level_size must be at least the items of the"):
        fitted(torch.randn(40, 3), GAOQConfig(branching=(2, 2), last_level_size=9))
    with pytest.raises(ValueError, match="gaoq needs at least one item; got none"):
        fitted(torch.ones(0, 3), GAOQConfig())
