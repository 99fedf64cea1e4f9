"""The flat trie: worked by hand, and against the sequences that it was built from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_generator import Prefix, random_ids, sequences

from rankloom.retrieval.semantic_ids import END, SemanticIds
from rankloom.retrieval.trie import Trie

CODES = np.array([[0, 0], [0, 1], [1, -1], [0, 1]], np.int32)
"""Level 1 has the tokens 3 and 4, level 2 has 5 and 6; items 2 and 4 collide."""


def small() -> SemanticIds:
    return SemanticIds(CODES, (2, 2))


def below(trie: Trie, node: int = 0, written: Prefix = ()) -> dict[Prefix, int]:
    """Sequences below a node, and the leaf of each: a walk in plain Python."""
    first = int(trie.first_child[node])
    if first == node:
        return {written: int(trie.first_leaf[node])}
    found: dict[Prefix, int] = {}
    for child in range(first, first + int(trie.num_children[node])):
        found |= below(trie, child, (*written, int(trie.token[child])))
    return found


def drawn(seed: int, num_items: int, levels: int, *, variable: bool = True) -> SemanticIds:
    return random_ids(np.random.default_rng(seed), num_items, (3,) * levels, variable=variable)


def test_small_trie_by_hand() -> None:
    trie = Trie.build(small())
    #          root  (3)  (4)  (3 5)  (3 6)  (4 END)  (3 5 END)  (3 6 END)
    assert trie.token.tolist() == [0, 3, 4, 5, 6, END, END, END]
    assert trie.first_child.tolist() == [1, 3, 5, 6, 7, 5, 6, 7]
    assert trie.num_children.tolist() == [2, 2, 1, 1, 1, 1, 1, 1]
    assert trie.first_leaf.tolist() == [0, 0, 2, 0, 1, 2, 0, 1]
    assert trie.num_leaves.tolist() == [3, 2, 1, 1, 1, 1, 1, 1]
    assert trie.leaf_offsets.tolist() == [0, 1, 3, 4]
    assert trie.leaf_items.tolist() == [1, 2, 4, 3]
    assert trie.item_leaf.tolist() == [-1, 0, 1, 2, 1]
    assert trie.max_branch == (2, 2, 1)
    assert (trie.depth, trie.num_nodes, trie.leaves, trie.vocabulary_size) == (3, 8, 3, 7)
    assert trie.group_sizes.tolist() == [1, 2, 1]
    assert trie.is_leaf(torch.arange(8)).tolist() == [False] * 5 + [True] * 3
    assert all(
        getattr(trie, name).dtype == torch.int32
        for name in ("token", "first_child", "num_children", "first_leaf", "num_leaves")
    )


def test_one_item() -> None:
    trie = Trie.build(SemanticIds(np.zeros((1, 1), np.int32), (1,)))
    assert trie.token.tolist() == [0, 3, END]
    assert trie.first_child.tolist() == [1, 2, 2]
    assert trie.max_branch == (1, 1)
    assert trie.leaves == 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_items=st.integers(1, 30),
    levels=st.integers(1, 4),
    variable=st.booleans(),
)
def test_holds_the_sequences_and_no_others(
    seed: int, num_items: int, levels: int, variable: bool
) -> None:
    ids = drawn(seed, num_items, levels, variable=variable)
    trie = Trie.build(ids)
    expected = sequences(ids)
    assert below(trie) == {sequence: leaf for leaf, sequence in enumerate(expected)}
    for item in range(1, num_items + 1):
        sequence = tuple(int(token) for token in ids.tokens[item - 1] if token)
        leaf = int(trie.item_leaf[item])
        assert expected[leaf] == sequence
        group = trie.leaf_items[trie.leaf_offsets[leaf] : trie.leaf_offsets[leaf + 1]].tolist()
        assert item in group
        assert group == sorted(group)
    for node in range(trie.num_nodes):
        first, count = int(trie.first_leaf[node]), int(trie.num_leaves[node])
        assert sorted(below(trie, node).values()) == list(range(first, first + count))


def test_merged_tokens() -> None:
    """A merged pair is one step; what it was merged from is another branch."""
    merges = np.array([[3, 6]], np.int32)  # makes token 7
    ids = SemanticIds(CODES, (2, 2), merges)
    trie = Trie.build(ids)
    assert list(below(trie)) == [(3, 5, END), (4, END), (7, END)]
    assert trie.vocabulary_size == 8


def test_priority_orders_equal_ids() -> None:
    codes = np.zeros((4, 1), np.int32)
    trie = Trie.build(SemanticIds(codes, (1,)), priority=[5, 7, 7, 9])
    assert trie.leaf_items.tolist() == [4, 2, 3, 1]


def test_removed_items_leave_the_trie() -> None:
    trie = Trie.build(small(), removed=[1, 4])
    assert list(below(trie)) == [(3, 6, END), (4, END)]
    assert trie.leaf_items.tolist() == [2, 3]
    assert trie.item_leaf.tolist() == [-1, -1, 0, 1, -1]
    trie.check(small())


def test_depth_is_that_of_the_ids_that_stay() -> None:
    trie = Trie.build(small(), removed=[1, 2, 4])
    assert list(below(trie)) == [(4, END)]
    assert trie.max_branch == (1, 1)


def test_check_sees_another_catalogue() -> None:
    trie = Trie.build(small())
    trie.check(small())
    changed = CODES.copy()
    changed[0, 1] = 1
    with pytest.raises(ValueError, match="built from other semantic ids"):
        trie.check(SemanticIds(changed, (2, 2)))


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="priority needs a value for each of 4 items"):
        Trie.build(small(), priority=[1.0])
    with pytest.raises(ValueError, match="removed items must be item numbers from 1 to 4; got 0"):
        Trie.build(small(), removed=[0])
    with pytest.raises(ValueError, match="a trie needs an item; 4 items, 5 of them removed"):
        Trie.build(small(), removed=[1, 2, 3, 3, 4])
    with pytest.raises(ValueError, match="a trie needs an item"):
        Trie.build(SemanticIds(np.empty((0, 2), np.int32), (2, 2)))
    with pytest.raises(ValueError, match=r"from 1 to 4 or 0; got 1 to 5"):
        Trie.build(small()).blocked_leaves(torch.tensor([[1, 5]]))


def test_blocked_leaves_by_hand() -> None:
    """A leaf is blocked with its last item, however often an item is named."""
    trie = Trie.build(small())
    blocked = trie.blocked_leaves(torch.tensor([[2, 0, 2], [4, 2, 2], [3, 1, 0]]))
    assert blocked.tolist() == [[3, 3, 3], [1, 3, 3], [0, 2, 3]]
    nodes = torch.arange(8).expand(3, 8)
    legal = trie.is_legal(nodes, blocked).long()
    assert legal[0].tolist() == [1] * 8
    assert legal[1].tolist() == [1, 1, 1, 1, 0, 1, 1, 0]
    assert legal[2].tolist() == [1, 1, 0, 0, 1, 0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), num_items=st.integers(1, 20), width=st.integers(0, 25))
def test_legal_nodes_against_a_walk(seed: int, num_items: int, width: int) -> None:
    ids = drawn(seed, num_items, 3)
    trie = Trie.build(ids, removed=[1] if num_items > 1 and seed % 2 else None)
    items = np.random.default_rng(seed).integers(0, num_items + 1, (2, width))
    blocked = trie.blocked_leaves(torch.from_numpy(items))
    nodes = torch.arange(trie.num_nodes).view(1, -1, 1).expand(2, -1, -1)
    legal = trie.is_legal(nodes, blocked)
    for row in range(2):
        free = {
            int(trie.item_leaf[item])
            for item in trie.leaf_items.tolist()
            if item not in items[row].tolist()
        }
        for node in range(trie.num_nodes):
            assert bool(legal[row, node, 0]) == bool(free & set(below(trie, node).values()))


def test_moves_to_a_device() -> None:
    trie = Trie.build(small()).to("meta")
    assert trie.token.device.type == "meta"
    assert trie.item_leaf.device.type == "meta"
    assert trie.max_branch == (2, 2, 1)
