"""Decoding against the likelihood of every id, worked out one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_generator import TableGenerator, ends, likelihood, random_ids, sequences
from torch import Tensor

from rankloom.retrieval.decode_step import best
from rankloom.retrieval.decoding import Decoded, beam_search, exact_search, score_all, top_items
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.trie import Trie

USERS = HistoryBatch(torch.tensor([[4, 0], [7, 2], [0, 0]]))
"""The table knows a user by the first item; the last history is empty."""


def drawn(
    seed: int, num_items: int = 25, levels: int = 3, *, variable: bool = True
) -> tuple[SemanticIds, Trie, TableGenerator]:
    ids = random_ids(np.random.default_rng(seed), num_items, (4,) * levels, variable=variable)
    return ids, Trie.build(ids), TableGenerator(ids.vocabulary_size)


def brute_force(
    ids: SemanticIds,
    generator: TableGenerator,
    user: int,
    *,
    renormalise: bool = False,
    blocked: list[int] | None = None,
) -> list[tuple[int, float]]:
    """(leaf, score) of every id that has an item that is not blocked, best first."""
    everything = sequences(ids)
    tokens = [tuple(int(token) for token in row if token) for row in ids.tokens]
    free = {tokens[item - 1] for item in range(1, ids.num_items + 1) if item not in (blocked or [])}
    legal = [sequence for sequence in everything if sequence in free]
    scores = [
        (
            everything.index(sequence),
            likelihood(generator, user, sequence, legal if renormalise else None),
        )
        for sequence in legal
    ]
    return sorted(scores, key=lambda entry: -entry[1])


def assert_equal_to(decoded: Decoded, row: int, expected: list[tuple[int, float]]) -> None:
    beams = decoded.leaves.shape[1]
    expected = (expected + [(-1, -math.inf)] * beams)[:beams]
    assert decoded.leaves[row].tolist() == [leaf for leaf, _ in expected]
    scores = torch.tensor([score for _, score in expected])
    torch.testing.assert_close(decoded.scores[row], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("search", [beam_search, exact_search])
def test_enough_beams_give_the_exact_answer(search, variable: bool, renormalise: bool) -> None:
    ids, trie, generator = drawn(3, variable=variable)
    decoded = search(generator, USERS, trie, beams=30, renormalise=renormalise)
    assert decoded.leaves.shape == (3, 30)
    for row, user in enumerate((4, 7, 0)):
        assert_equal_to(decoded, row, brute_force(ids, generator, user, renormalise=renormalise))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_items=st.integers(1, 15),
    levels=st.integers(1, 3),
    renormalise=st.booleans(),
    blocks=st.booleans(),
)
def test_any_catalogue(
    seed: int, num_items: int, levels: int, renormalise: bool, blocks: bool
) -> None:
    ids, trie, generator = drawn(seed, num_items, levels)
    rng = np.random.default_rng(seed)
    blocked = torch.from_numpy(rng.integers(0, num_items + 1, (3, 6))) if blocks else None
    found = [
        search(generator, USERS, trie, beams=20, renormalise=renormalise, blocked=blocked)
        for search in (beam_search, exact_search)
    ]
    torch.testing.assert_close(found[0].scores, found[1].scores)
    for row, user in enumerate((4, 7, 0)):
        never = None if blocked is None else blocked[row].tolist()
        expected = brute_force(ids, generator, user, renormalise=renormalise, blocked=never)
        for decoded in found:
            assert_equal_to(decoded, row, expected)


@pytest.mark.parametrize("renormalise", [False, True])
def test_few_beams_give_ids_of_the_catalogue_with_their_likelihood(renormalise: bool) -> None:
    ids, trie, generator = drawn(5, num_items=40)
    everything = sequences(ids)
    assert all(ends(sequence) for sequence in everything)
    decoded = beam_search(generator, USERS, trie, beams=4, renormalise=renormalise)
    for row, user in enumerate((4, 7, 0)):
        expected = dict(brute_force(ids, generator, user, renormalise=renormalise))
        leaves = decoded.leaves[row].tolist()
        assert len(set(leaves)) == 4
        assert decoded.scores[row].tolist() == pytest.approx([expected[leaf] for leaf in leaves])
        assert decoded.scores[row].diff().max() <= 0


def test_beam_search_is_greedy_at_one_beam() -> None:
    """Worked by a loop: the likeliest child at each node."""
    ids, trie, generator = drawn(11, num_items=40)
    everything = sequences(ids)
    written: tuple[int, ...] = ()
    while written not in everything:
        children = sorted(
            {s[len(written)] for s in everything if s[: len(written)] == written and s != written}
        )
        logits = generator.logits_after(4, written)
        written = (*written, max(children, key=lambda token: float(logits[token])))
    decoded = beam_search(generator, USERS, trie, beams=1)
    assert decoded.leaves[0].tolist() == [everything.index(written)]


def test_probability_outside_the_catalogue_is_lost_unless_renormalised() -> None:
    _, trie, generator = drawn(2, num_items=30)
    likelihoods = score_all(generator, USERS, trie)
    shares = score_all(generator, USERS, trie, renormalise=True)
    assert (likelihoods.exp().sum(1) < 1).all()
    torch.testing.assert_close(shares.exp().sum(1), torch.ones(3))


def test_finished_beams_compete_with_longer_ids() -> None:
    """The short id is found two steps before the end and still has its place in the answer."""
    codes = np.array([[0, -1, -1], [1, 0, 0], [1, 1, 0]], np.int32)
    ids = SemanticIds(codes, (2, 2, 1))
    trie = Trie.build(ids)
    generator = TableGenerator(ids.vocabulary_size)
    user = 4
    generator.logits_after(user, ()).zero_()[[3, 4]] = torch.tensor([5.0, 6.0])
    decoded = beam_search(generator, HistoryBatch(torch.tensor([[user]])), trie, beams=3)
    assert_equal_to(decoded, 0, brute_force(ids, generator, user))
    assert sorted(decoded.leaves[0].tolist()) == [0, 1, 2]


def test_one_item() -> None:
    ids = SemanticIds(np.zeros((1, 2), np.int32), (1, 1))
    trie, generator = Trie.build(ids), TableGenerator(ids.vocabulary_size)
    for search in (beam_search, exact_search):
        decoded = search(generator, USERS, trie, beams=2)
        assert decoded.leaves.tolist() == [[0, -1]] * 3
        assert decoded.scores[0, 0].item() == pytest.approx(
            likelihood(generator, 4, sequences(ids)[0])
        )
        sure = search(generator, USERS, trie, beams=2, renormalise=True)
        assert sure.leaves.tolist() == [[0, -1]] * 3
        assert sure.scores[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_all_items_blocked() -> None:
    _, trie, generator = drawn(1, num_items=5)
    blocked = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    for search in (beam_search, exact_search):
        for renormalise in (False, True):
            decoded = search(
                generator, USERS, trie, beams=5, blocked=blocked, renormalise=renormalise
            )
            assert decoded.leaves[0].tolist() == [-1] * 5
            assert decoded.scores[0].tolist() == [-math.inf] * 5
            assert (decoded.leaves[1] >= 0).sum() == trie.leaves
            items, _ = top_items(decoded, trie, 5, blocked)
            assert items[0].tolist() == [0] * 5
            assert sorted(items[1].tolist()) == [1, 2, 3, 4, 5]
            assert sorted(items[2].tolist()) == [0, 2, 3, 4, 5]


def test_removed_items_never_come_out() -> None:
    ids, _, generator = drawn(9, num_items=20)
    trie = Trie.build(ids, removed=range(1, 11))
    items, _ = top_items(beam_search(generator, USERS, trie, beams=20), trie, 20)
    for row in items.tolist():
        assert sorted(item for item in row if item) == list(range(11, 21))


def test_merged_tokens() -> None:
    codes = random_ids(np.random.default_rng(0), 20, (3, 3, 3)).codes
    ids = SemanticIds(codes, (3, 3, 3), np.array([[3, 6], [12, 9], [7, 10]], np.int32))
    assert any(12 in sequence or 13 in sequence for sequence in sequences(ids))
    trie, generator = Trie.build(ids), TableGenerator(ids.vocabulary_size)
    decoded = beam_search(generator, USERS, trie, beams=25)
    assert_equal_to(decoded, 0, brute_force(ids, generator, 4))


def test_equal_scores_are_ordered_by_tokens() -> None:
    """Logits that say nothing: every id of one length is as likely as any other."""
    ids = random_ids(np.random.default_rng(0), 300, (5, 5, 5), variable=False)
    trie, generator = Trie.build(ids), TableGenerator(ids.vocabulary_size, spread=0.0)
    assert trie.leaves > 40
    for beams in (3, 7, 40):
        for search in (beam_search, exact_search):
            decoded = search(generator, USERS, trie, beams=beams)
            assert decoded.leaves.tolist() == [list(range(beams))] * 3


def test_equal_ids_of_different_lengths_are_ordered_by_tokens() -> None:
    """Probabilities 1/3, 1/3, 1/6, 1/6; the second id is finished before the first one."""
    codes = np.array([[0, 0, -1], [1, -1, -1], [2, 0, 0], [2, 0, 1]], np.int32)
    ids = SemanticIds(codes, (3, 1, 2))
    trie, generator = Trie.build(ids), TableGenerator(ids.vocabulary_size, spread=0.0)
    for search in (beam_search, exact_search):
        decoded = search(generator, USERS, trie, beams=4, renormalise=True)
        assert decoded.leaves.tolist() == [[0, 1, 2, 3]] * 3
        assert decoded.scores[0].exp().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize("high", [1, 2, 50])
def test_best_is_a_stable_sort(high: int) -> None:
    rng = torch.Generator().manual_seed(high)
    scores = torch.randint(-high, high + 1, (20, 30), generator=rng).float()
    scores[scores == high] = -math.inf
    scores[:, 3] = -0.0
    nodes = torch.stack([torch.randperm(1000, generator=rng)[:30] for _ in range(20)])
    for count in (1, 5, 30, 99):
        choice = best(scores, nodes, torch.arange(1000).flip(0), count)
        for row, places in enumerate(choice.tolist()):
            order = sorted(range(30), key=lambda p: (-scores[row, p], -nodes[row, p]))
            real = [place for place in order[:count] if scores[row, place] > -math.inf]
            assert places[: len(real)] == real
            assert len(places) == min(count, 30)


def test_blocks_of_users_change_nothing() -> None:
    _, trie, generator = drawn(4)
    blocked = torch.tensor([[1, 2], [3, 0], [0, 0]])
    for search in (beam_search, exact_search):
        together = search(generator, USERS, trie, beams=5, blocked=blocked)
        generator.asked.clear()
        apart = search(generator, USERS, trie, beams=5, blocked=blocked, memory_bytes=1)
        assert max(generator.asked) <= 5  # rows times beams: one user at a time
        torch.testing.assert_close(apart.scores, together.scores)
        assert torch.equal(apart.leaves, together.leaves)


def test_scores_of_nodes_in_small_parts() -> None:
    """One node at a time: every branch starts from the state of its parent, unchanged."""
    _, trie, generator = drawn(6)
    whole = score_all(generator, USERS, trie)
    torch.testing.assert_close(score_all(generator, USERS, trie, memory_bytes=1), whole)
    assert generator.asked[-1] == 1


def test_no_users() -> None:
    _, trie, generator = drawn(4)
    nobody = HistoryBatch(torch.zeros(0, 2, dtype=torch.long))
    for search in (beam_search, exact_search):
        decoded = search(generator, nobody, trie, beams=5)
        assert decoded.leaves.shape == decoded.scores.shape == (0, 5)
        assert top_items(decoded, trie, 3)[0].shape == (0, 3)


@pytest.mark.parametrize("search", [beam_search, exact_search])
def test_wrong_number_of_beams(search) -> None:
    _, trie, generator = drawn(4)
    with pytest.raises(ValueError, match="beams must be at least 1; got 0"):
        search(generator, USERS, trie, beams=0)


def test_top_items_by_hand() -> None:
    """Leaf 0: item 1; leaf 1: items 4, 2 (4 has priority); leaf 2: item 3."""
    codes = np.array([[0, 0], [0, 1], [1, -1], [0, 1]], np.int32)
    trie = Trie.build(SemanticIds(codes, (2, 2)), priority=[0, 1, 0, 2])
    decoded = Decoded(
        torch.tensor([[1, 2, 0], [2, -1, -1]]),
        torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -math.inf, -math.inf]]),
    )

    def found(count: int, blocked: Tensor | None = None) -> tuple[list[list[int]], list[list[int]]]:
        items, scores = top_items(decoded, trie, count, blocked)
        return items.tolist(), scores.tolist()

    none = -math.inf
    assert found(2) == ([[4, 2], [3, 0]], [[-1, -1], [-4, none]])
    assert found(5) == (
        [[4, 2, 3, 1, 0], [3, 0, 0, 0, 0]],
        [[-1, -1, -2, -3, none], [-4] + 4 * [none]],
    )
    blocked = torch.tensor([[4, 0], [3, 1]])
    assert found(2, blocked) == ([[2, 3], [0, 0]], [[-1, -2], [none, none]])
    assert found(4, blocked) == ([[2, 3, 1, 0], [0] * 4], [[-1, -2, -3, none], [none] * 4])


@pytest.mark.parametrize("user_tokens", [0, 3])
def test_decoder_scores_are_its_teacher_forced_likelihoods(user_tokens: int) -> None:
    """A real generator: histories of different lengths, one of them empty, with users."""
    ids = random_ids(np.random.default_rng(1), 20, (4, 4, 4))
    torch.manual_seed(0)
    config = DecoderConfig(dim=16, num_layers=2, num_heads=2, num_user_tokens=user_tokens)
    decoder = Decoder(config, ItemSchema(ids.num_items, num_users=4, ids=ids)).eval()
    with torch.no_grad():
        for weight in decoder.parameters():  # new embeddings are too small to tell ids apart
            weight.mul_(3.0)
    items = torch.tensor([[5, 3, 9, 1], [2, 0, 0, 0], [0, 0, 0, 0], [7, 7, 8, 0]])
    batch = HistoryBatch(items, users=torch.tensor([1, 2, 3, 0]))
    trie = Trie.build(ids)
    tokens = ids.token_table()[1:].expand(4, -1, -1)
    with torch.no_grad():
        expected = decoder.id_log_likelihood(batch, tokens)  # [batch, items]
    scores = score_all(decoder, batch, trie)
    torch.testing.assert_close(scores[:, trie.item_leaf[1:]], expected, rtol=1e-4, atol=1e-4)
    for search in (beam_search, exact_search):
        decoded = search(decoder, batch, trie, beams=25)
        assert (decoded.leaves[:, : trie.leaves] >= 0).all()
        leaves = decoded.leaves[:, : trie.leaves]
        torch.testing.assert_close(
            decoded.scores[:, : trie.leaves], scores.gather(1, leaves), rtol=1e-4, atol=1e-4
        )
        assert (decoded.leaves[:, trie.leaves :] == -1).all()


@pytest.mark.gpu
def test_a_gpu_gives_the_same_answers() -> None:
    ids = random_ids(np.random.default_rng(1), 50, (4, 4, 4))
    torch.manual_seed(0)
    schema = ItemSchema(ids.num_items, ids=ids)
    decoder = Decoder(DecoderConfig(dim=16, num_layers=2, num_heads=2), schema).eval()
    batch = HistoryBatch(torch.tensor([[5, 3, 9, 1], [2, 0, 0, 0]]))
    trie = Trie.build(ids)
    blocked = torch.tensor([[1, 2, 3], [0, 4, 4]])
    options = [
        (search, renormalise) for search in (beam_search, exact_search) for renormalise in (0, 1)
    ]
    answers = []
    for device in ("cpu", "cuda"):
        decoder.to(device)
        there = trie.to(device)
        for search, renormalise in options:
            decoded = search(
                decoder,
                batch.to(device),
                there,
                beams=40,
                renormalise=bool(renormalise),
                blocked=blocked.to(device),
            )
            items, _ = top_items(decoded, there, 50, blocked.to(device))
            answers.append((decoded.scores.cpu(), items.cpu().sort(1).values))
    for ours, theirs in zip(answers[:4], answers[4:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
