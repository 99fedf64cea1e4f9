from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest

from rankloom.retrieval.histories import Histories
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.set_merges import SetMergesConfig, _close_gaps, learn_set_merges

Node = list[int]


def nodes_of(sets: list[list[int]]) -> list[Node]:
    """Sets with an empty slot between each two."""
    nodes: list[Node] = []
    for tokens in sets:
        nodes += [[], list(tokens)] if nodes else [list(tokens)]
    return nodes


def weigh(nodes: list[Node]) -> dict[tuple[int, int], Fraction]:
    """All pairs of a history whose sets are the even nodes, anew."""
    found: dict[tuple[int, int], Fraction] = defaultdict(Fraction)
    for at in range(0, len(nodes), 2):
        size = len(nodes[at])
        for i in range(size):
            for j in range(i + 1, size):
                found[tuple(sorted((nodes[at][i], nodes[at][j])))] += Fraction(2, size)
        if at + 2 < len(nodes):
            slot = nodes[at + 1]
            sides = (
                [(nodes[at], slot), (slot, nodes[at + 2])] if slot else [(nodes[at], nodes[at + 2])]
            )
            for left, right in sides:
                for a in left:
                    for b in right:
                        found[tuple(sorted((a, b)))] += Fraction(1, len(left) * len(right))
    return found


def join(nodes: list[Node], a: int, b: int, made: int) -> list[Node]:
    """One merge in one history, by the description."""
    for at in range(0, len(nodes), 2):
        if a != b and {a, b} <= set(nodes[at]):
            nodes[at] = [made] + [t for t in nodes[at] if t not in (a, b)]
        if at + 2 >= len(nodes):
            break
        if nodes[at + 1]:
            for side in (at, at + 2):
                for x, y in ((a, b), (b, a)):
                    if nodes[at + 1] == [x] and y in nodes[side]:
                        nodes[side] = [t for t in nodes[side] if t != y]
                        nodes[at + 1] = [made]
        else:
            for x, y in ((a, b), (b, a)):
                if x in nodes[at] and y in nodes[at + 2] and not nodes[at + 1]:
                    nodes[at] = [t for t in nodes[at] if t != x]
                    nodes[at + 2] = [t for t in nodes[at + 2] if t != y]
                    nodes[at + 1] = [made]
    changed = True
    while changed:
        changed = False
        for at in range(2, len(nodes), 2):
            if not nodes[at] and nodes[at - 1]:
                nodes[at], nodes[at - 1] = nodes[at - 1], []
                changed = True
        for at in range(0, len(nodes) - 1, 2):
            if not nodes[at] and not nodes[at + 1]:
                del nodes[at : at + 2]
                changed = True
                break
    return nodes


def slow(histories: list[list[list[int]]], first: int, count: int) -> list[tuple[int, int]]:
    """Unordered pairs, every weight counted anew at each step."""
    corpus = [nodes_of(history) for history in histories if history]
    merges: list[tuple[int, int]] = []
    while len(merges) < count:
        total: dict[tuple[int, int], Fraction] = defaultdict(Fraction)
        for nodes in corpus:
            for pair, weight in weigh(nodes).items():
                total[pair] += weight
        if not total:
            break
        a, b = min(total, key=lambda pair: (-total[pair], pair))
        if (a, b) not in merges:
            merges.append((a, b))
        corpus = [join(nodes, a, b, first + merges.index((a, b))) for nodes in corpus]
    return merges


@pytest.mark.parametrize("seed", range(4))
def test_merges_equal_the_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (12, 3)).astype(np.int32)
    if seed % 2:
        codes[::3, 2] = -1  # items of two codes
    ids = SemanticIds(codes, (3, 3, 3))
    lists = [rng.integers(1, 13, rng.integers(0, 7)).tolist() for _ in range(15)]
    sets = [[int(c + o) for c, o in zip(row, (3, 6, 9), strict=True) if c >= 0] for row in codes]
    wanted = slow([[sets[item - 1] for item in history] for history in lists], 12, 60)
    found = learn_set_merges(ids, Histories.from_lists(lists, 12), vocabulary_size=72)
    assert [tuple(sorted(pair)) for pair in found.tolist()] == wanted
    assert len(set(wanted)) == len(wanted) > 30


def test_the_first_merge_by_hand() -> None:
    # Item 1 is {3, 5}, item 2 is {4, 6}. Histories: 1 2, 1 2, 2. Within sets a pair weighs 2 / 2:
    # 3 5 twice, 4 6 three times; across two sets 1 / 4 each, twice.
    ids = SemanticIds(np.array([[0, 0], [1, 1]], np.int32), (2, 2))
    histories = Histories.from_lists([[1, 2], [1, 2], [2], []], 2)
    found = learn_set_merges(ids, histories, vocabulary_size=10)
    # Then {3, 5} {7}: 3 5 weighs 2 as before, 3 7 and 5 7 each 2 / 2; then {8} {7}.
    assert found.tolist() == [[4, 6], [3, 5], [7, 8]]
    assert learn_set_merges(ids, histories, vocabulary_size=8).tolist() == [[4, 6]]
    assert learn_set_merges(ids, histories, vocabulary_size=7).shape == (0, 2)
    assert SetMergesConfig(vocabulary_size=8).learn(ids, histories).tolist() == [[4, 6]]


def test_the_token_of_the_lower_level_comes_first_so_that_ids_merge() -> None:
    # One item of three codes: 3 4 5 all weigh the same; 3 4 is merged first, then it with 5.
    ids = SemanticIds(np.zeros((1, 3), np.int32), (1, 1, 1))
    found = learn_set_merges(ids, Histories.from_lists([[1]], 1), vocabulary_size=100)
    assert found.tolist() == [[3, 4], [6, 5]]
    merged = SemanticIds(ids.codes, ids.level_sizes, found)
    assert merged.tokens.tolist() == [[7, 1]]


def test_long_histories_are_cut_from_the_newest_on() -> None:
    ids = SemanticIds(np.arange(4, dtype=np.int32)[:, None], (4,))
    histories = Histories.from_lists([[1, 2, 3]], 4)
    whole = learn_set_merges(ids, histories, vocabulary_size=9, max_items=3)
    cut = learn_set_merges(ids, histories, vocabulary_size=9, max_items=2)
    # Uncut, the set {4} is between {3} and {5}; the token of 3 4 then joins 5.
    assert whole.tolist() == [[3, 4], [5, 7]]
    assert cut.tolist() == [[4, 5]]


def test_an_emptied_set_takes_the_token_of_the_slot_before_it() -> None:
    sets, slots = [[], [], [5]], [7, 0]
    _close_gaps(sets, slots)
    assert (sets, slots) == ([[7], [5]], [0])


def test_histories_of_another_catalogue_are_refused() -> None:
    ids = SemanticIds(np.zeros((1, 1), np.int32), (1,))
    with pytest.raises(ValueError, match="of one catalogue; got 2 and 1 items"):
        learn_set_merges(ids, Histories.from_lists([[1]], 2), vocabulary_size=10)
