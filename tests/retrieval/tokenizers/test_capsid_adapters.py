import numpy as np
import pytest
import torch

from rankloom.retrieval.protocols import TokenizerItems
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.capsid import CapsID, CapsIDConfig
from rankloom.retrieval.tokenizers.capsid_adapters import add_adapters, new_ids
from rankloom.retrieval.tokenizers.state import load_state


def trained(vectors: torch.Tensor) -> CapsID:
    tokenizer = CapsIDConfig(dim=6, num_codes=8, num_levels=3).build(6)
    tokenizer.start(TokenizerItems(vectors), torch.Generator().manual_seed(0))
    return tokenizer


def vectors_of(num_items: int) -> torch.Tensor:
    return torch.randn(num_items, 6, generator=torch.Generator().manual_seed(1))


def test_adapters_change_nothing_at_first_and_alone_are_learned() -> None:
    vectors = vectors_of(80)
    tokenizer = trained(vectors)
    before = tokenizer.assign(vectors)
    torch.manual_seed(0)
    parameters = add_adapters(tokenizer, 2)
    np.testing.assert_array_equal(tokenizer.assign(vectors).codes, before.codes)
    learned = [p for p in tokenizer.parameters() if p.requires_grad]
    assert {id(p) for p in learned} == {id(p) for p in parameters}
    assert len(parameters) == 6
    # A generator reads the codes softly, by their weights; its loss reaches the adapters.
    routings = tokenizer.route(tokenizer.normalise(vectors))
    sum(routing.weights[:, 0].sum() for routing in routings).backward()  # type: ignore[union-attr]
    for level in tokenizer.levels:
        assert level.adapter.up.grad is not None  # type: ignore[union-attr]
        assert bool((level.adapter.up.grad != 0).any())  # type: ignore[union-attr]


def test_moved_adapters_give_new_ids_that_load_again() -> None:
    vectors = vectors_of(80)
    tokenizer = trained(vectors)
    merges = np.array([[3, 11]], np.int32)
    ids = SemanticIds(tokenizer.assign(vectors).codes, tokenizer.level_sizes, merges, "capsid")
    parameters = add_adapters(tokenizer, 2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    moved = new_ids(tokenizer, vectors, ids)
    assert (moved.codes != ids.codes).any()
    np.testing.assert_array_equal(moved.merges, merges)
    assert moved.tokenizer == "capsid"
    again = tokenizer.config.build(6)
    load_state(again, tokenizer.state_dict())
    np.testing.assert_array_equal(again.assign(vectors).codes, moved.codes)


def test_ids_of_other_levels() -> None:
    vectors = vectors_of(10)
    ids = SemanticIds(np.zeros((10, 1), np.int32), (4,))
    with pytest.raises(ValueError, match="resolve collisions anew"):
        new_ids(trained(vectors), vectors, ids)
