import numpy as np
import pytest
import torch
from torch import Tensor

from rankloom.layers.sinkhorn_codes import sinkhorn_codes
from rankloom.retrieval.protocols import TokenizerItems
from rankloom.retrieval.tokenizers import uniform_mapping as module
from rankloom.retrieval.tokenizers.rq_kmeans import RQKMeansConfig
from rankloom.retrieval.tokenizers.rq_vae import RQVAEConfig
from rankloom.retrieval.tokenizers.uniform_mapping import IntArray, uniform_mapping


class OneLevel:
    """The vectors are what the last level of two quantises."""

    def __init__(self, centres: Tensor | None) -> None:
        self.level_sizes = (2, 0 if centres is None else len(centres))
        self.centres = centres

    def last_residuals(self, vectors: Tensor) -> Tensor:
        return vectors

    def code_vectors(self, level: int) -> Tensor | None:
        return self.centres if level == 1 else torch.zeros(2, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_mapping(residuals: Tensor, centres: Tensor, codes: IntArray, rounds: int) -> IntArray:
    codes = codes.copy()
    for _ in range(rounds):
        groups: dict[tuple[int, ...], list[int]] = {}
        for item, code in enumerate(codes.tolist()):
            groups.setdefault(tuple(code), []).append(item)
        for members in groups.values():
            if len(members) > 1:
                distances = torch.cdist(residuals[members], centres).square()
                codes[members, -1] = sinkhorn_codes(distances, 0.003, 50).numpy()
    return codes


def num_distinct(codes: IntArray) -> int:
    return len(np.unique(codes, axis=0))


@pytest.mark.parametrize("block_entries", [1, 2**22])
def test_agrees_with_loops(block_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", block_entries)
    residuals, centres = (
        torch.randn(60, 3, generator=seeded()),
        torch.randn(16, 3, generator=seeded(1)),
    )
    codes = np.stack([np.arange(60) % 5, torch.cdist(residuals, centres).argmin(1)], 1)
    codes = codes.astype(np.int32)
    tokenizer = OneLevel(centres)
    for rounds in (1, 4):
        mapped = uniform_mapping(tokenizer, residuals, codes, num_rounds=rounds)
        assert np.array_equal(mapped, slow_mapping(residuals, centres, codes, rounds))


def test_items_that_do_not_collide_keep_their_codes() -> None:
    residuals = torch.tensor([[0.0], [0.4], [5.0], [0.05]])
    codes = np.array([[0, 0], [0, 0], [0, 2], [1, 0]], np.int32)
    tokenizer = OneLevel(torch.tensor([[0.0], [1.0], [2.0]]))
    mapped = uniform_mapping(tokenizer, residuals, codes)
    assert mapped[2:].tolist() == codes[2:].tolist()
    assert num_distinct(mapped) == 4
    assert codes[:2].tolist() == [[0, 0], [0, 0]]  # the input is left as it was


@pytest.mark.parametrize("config", [RQKMeansConfig, RQVAEConfig])
def test_most_collisions_of_a_tokenizer_go(config: type[RQKMeansConfig | RQVAEConfig]) -> None:
    vectors = torch.randn(300, 6, generator=seeded())
    torch.manual_seed(0)
    tokenizer = config(level_sizes=(32, 64)).build(6)
    items = TokenizerItems(vectors)
    if isinstance(config(), RQKMeansConfig):
        tokenizer.fit(items, seeded())
    else:
        tokenizer.start(items, seeded())
    codes = tokenizer.assign(vectors).codes
    mapped = uniform_mapping(tokenizer, vectors, codes)
    assert np.array_equal(mapped[:, 0], codes[:, 0])
    assert 300 - num_distinct(mapped) < 0.5 * (300 - num_distinct(codes))


def test_equal_items_stay_together_and_lone_ones_are_left() -> None:
    tokenizer = OneLevel(torch.randn(8, 2, generator=seeded()))
    same = np.zeros((3, 2), np.int32)
    assert num_distinct(uniform_mapping(tokenizer, torch.ones(3, 2), same)) == 1
    assert uniform_mapping(tokenizer, torch.ones(1, 2), same[:1]).tolist() == [[0, 0]]
    assert uniform_mapping(tokenizer, torch.ones(0, 2), same[:0]).shape == (0, 2)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="last level has code vectors"):
        uniform_mapping(OneLevel(None), torch.ones(1, 2), np.zeros((1, 2), np.int32))
    short = np.array([[0, -1]], np.int32)
    with pytest.raises(ValueError, match="some end before the last level"):
        uniform_mapping(OneLevel(torch.ones(2, 2)), torch.ones(1, 2), short)
