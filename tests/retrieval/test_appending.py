import numpy as np
import pytest
import torch
from test_collisions import NO_VECTORS, Coded, Residual, codes_of

from rankloom.retrieval.appending import append_items
from rankloom.retrieval.collisions import DedupConfig, group_sizes
from rankloom.retrieval.protocols import Assignment
from rankloom.retrieval.semantic_ids import SemanticIds


def test_new_codes_are_taken_as_assigned_and_published_ids_stay() -> None:
    published = SemanticIds(codes_of([[0, 1], [1, 1]], 2), (2, 2), items_hash="old")
    longer = append_items(
        published, Assignment(codes_of([[0, 0]], 2)), Coded((2, 2)), NO_VECTORS, items_hash="new"
    )
    assert longer.codes.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert longer.items_hash == "new"
    assert longer.level_sizes == published.level_sizes


def test_taken_codes_become_the_free_ones_of_least_cost() -> None:
    tokenizer = Residual([torch.tensor([[0.0], [1.0], [3.0], [9.0]])])
    published = SemanticIds(tokenizer.assign(torch.tensor([[0.1], [3.2]])).codes, (4,))
    vectors = torch.tensor([[0.2], [2.9], [0.3]])  # nearest: 0, 2, 0; free: 1 and 3
    with pytest.raises(ValueError, match=r"no id is left for 1 new items with the codes \[[02]\]"):
        append_items(published, tokenizer.assign(vectors), tokenizer, vectors)
    longer = append_items(published, tokenizer.assign(vectors[:2]), tokenizer, vectors[:2])
    # .2 -> 1 and 2.9 -> 9 cost .64 + 37.21, the other way round 3.61 + 77.44.
    assert longer.codes[:, 0].tolist() == [0, 2, 1, 3]
    same = append_items(published, tokenizer.assign(vectors), tokenizer, vectors, unique=False)
    assert same.codes[:, 0].tolist() == [0, 2, 0, 2, 0]


def test_deeper_codes_come_first() -> None:
    published = SemanticIds(codes_of([[0], [0, 1], [1]], 3), (3, 3, 3))
    codes = codes_of([[0], [0], [2]], 3)
    deeper = codes_of([[0, 1, 2], [0, 2, 2], [2, 0, 0]], 3)
    longer = append_items(
        published, Assignment(codes, alternatives=deeper), Coded((3, 3, 3)), NO_VECTORS
    )
    assert longer.codes[3:].tolist() == [[0, 1, 2], [0, 2, -1], [2, -1, -1]]


def test_free_digits_come_last() -> None:
    first = codes_of([[0], [0], [1], [0]], 1)
    tokenizer = Coded((2,))
    resolved = DedupConfig(spare_digits=1).resolve(Assignment(first), tokenizer, NO_VECTORS)
    published = SemanticIds(resolved.codes, resolved.level_sizes)
    assert published.level_sizes == (2, 3)
    new = codes_of([[1], [0], [1], [1]], 1)
    longer = append_items(published, Assignment(new), tokenizer, NO_VECTORS)
    assert longer.codes[4:].tolist() == [[1, 0], [0, 2], [1, 1], [1, 2]]
    with pytest.raises(ValueError, match=r"no id is left for 1 new items with the codes \[0\]"):
        append_items(longer, Assignment(new[1:2]), tokenizer, NO_VECTORS)


@pytest.mark.parametrize("seed", range(3))
def test_published_ids_never_move_and_new_ones_are_unique(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokenizer = Residual([torch.randn(4, 2, generator=generator) for _ in range(2)])
    vectors = torch.randn(60, 2, generator=generator)
    resolved = DedupConfig(spare_digits=20).resolve(
        tokenizer.assign(vectors[:30]), tokenizer, vectors
    )
    published = SemanticIds(resolved.codes, resolved.level_sizes, np.array([[3, 7]], np.int32))
    before = published.codes.copy()
    for part in (vectors[30:45], vectors[45:], vectors[:1]):
        longer = append_items(published, tokenizer.assign(part), tokenizer, part)
        assert (longer.codes[: len(before)] == before).all()
        assert longer.level_sizes == published.level_sizes
        assert (longer.tokens[: len(before)] == published.tokens).all()
        assert group_sizes(longer.codes).max() == 1
        published, before = longer, longer.codes.copy()
    assert longer.num_items == 61


def test_ids_of_another_tokenizer_are_refused() -> None:
    published = SemanticIds(codes_of([[0, 1]], 2), (2, 2))
    with pytest.raises(ValueError, match="made by another tokenizer"):
        append_items(published, Assignment(codes_of([[0]], 1)), Coded((5,)), NO_VECTORS)


def test_no_new_items() -> None:
    published = SemanticIds(codes_of([[0, 1]], 2), (2, 2))
    none = Assignment(np.empty((0, 2), np.int32))
    assert append_items(published, none, Coded((2, 2)), NO_VECTORS).codes.tolist() == [[0, 1]]
