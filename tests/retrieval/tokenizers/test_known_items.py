import torch

from rankloom.retrieval.tokenizers.known_items import KnownItems, fingerprints
from rankloom.retrieval.tokenizers.state import load_state


def test_equal_vectors_and_no_others_have_equal_fingerprints() -> None:
    vectors = torch.randn(5000, 3)
    vectors[1] = vectors[0]
    vectors[2] = vectors[0].flip(0)
    vectors[3] = -vectors[0]
    prints = fingerprints(vectors)
    assert prints[0] == prints[1]
    assert len(prints.unique()) == 4999
    zeros = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    assert fingerprints(zeros).unique().numel() == 2
    assert fingerprints(zeros)[0] == fingerprints(zeros)[1]


def test_codes_are_found_again_in_any_order() -> None:
    vectors, codes = torch.randn(50, 4), torch.arange(100).view(50, 2)
    known = KnownItems(2)
    known.remember(vectors, codes)
    rows = torch.randperm(50)[:20]
    assert torch.equal(known.find(vectors[rows]), codes[rows])
    assert torch.equal(known.find(torch.randn(3, 4)), torch.full((3, 2), -1))


def test_equal_vectors_find_their_codes_in_turn() -> None:
    vectors = torch.tensor([[1.0], [2.0], [1.0], [1.0]])
    known = KnownItems(1)
    known.remember(vectors, torch.tensor([[5], [6], [7], [8]]))
    found = known.find(torch.tensor([[1.0], [1.0], [2.0], [1.0], [1.0], [3.0]]))
    assert found.flatten().tolist() == [5, 7, 6, 8, 5, -1]


def test_nothing_known_and_nothing_asked() -> None:
    known = KnownItems(3)
    assert known.find(torch.ones(2, 4)).tolist() == [[-1] * 3] * 2
    known.remember(torch.ones(2, 4), torch.zeros(2, 3, dtype=torch.int64))
    assert known.find(torch.ones(0, 4)).shape == (0, 3)


def test_a_state_brings_the_codes_back() -> None:
    vectors, codes = torch.randn(9, 4), torch.arange(18).view(9, 2)
    known, again = KnownItems(2), KnownItems(2)
    known.remember(vectors, codes)
    load_state(again, known.state_dict())
    assert torch.equal(again.find(vectors), codes)
