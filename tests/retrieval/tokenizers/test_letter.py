import math

import numpy as np
import pytest
import torch

from rankloom.config import parse_config
from rankloom.retrieval.protocols import TokenizerItems, TrainedTokenizer, VectorBatch
from rankloom.retrieval.tokenizers.letter import (
    LETTER,
    LETTERConfig,
    collaborative_loss,
    diversity_loss,
)
from rankloom.retrieval.tokenizers.quantizer_parts import SinkhornLast
from rankloom.retrieval.tokenizers.state import load_state


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def items(num_items: int = 60) -> TokenizerItems:
    vectors = torch.randn(num_items, 8, generator=seeded())
    return TokenizerItems(vectors, collaborative=torch.randn(num_items, 4, generator=seeded(1)))


def started(given: TokenizerItems, **settings: object) -> LETTER:
    network = {"level_sizes": (12, 12), "hidden": (16,), "latent_dim": 4}
    torch.manual_seed(0)
    values = {"network": network, "num_groups": 3, **settings}
    tokenizer = parse_config(LETTERConfig, values, "test").build(8)
    tokenizer.start(given, seeded())
    return tokenizer


def batch(given: TokenizerItems, rows: list[int] | None = None) -> VectorBatch:
    chosen = torch.arange(given.num_items) if rows is None else torch.tensor(rows)
    return VectorBatch(chosen, given.vectors[chosen], 0.0)


def test_the_collaborative_loss_by_hand() -> None:
    quantized = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    collaborative = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    # Logits (1, 3) and (0, 2).
    expected = (math.log(1 + math.exp(2)) + math.log(1 + math.exp(-2))) / 2
    assert float(collaborative_loss(quantized, collaborative)) == pytest.approx(expected)


def test_items_without_a_collaborative_vector_do_not_count() -> None:
    quantized = torch.randn(5, 3, generator=seeded(), requires_grad=True)
    collaborative = torch.randn(5, 3, generator=seeded(1))
    collaborative[2] = 0
    loss = collaborative_loss(quantized, collaborative)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(loss, collaborative_loss(quantized[kept], collaborative[kept]))
    loss.backward()
    assert quantized.grad is not None
    assert torch.isfinite(quantized.grad).all()
    assert quantized.grad[2].tolist() == [0, 0, 0]
    assert float(collaborative_loss(quantized, torch.zeros(5, 3)).detach()) == 0


def test_the_diversity_loss_by_hand() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 3.0], [2.0, 1.0]])
    # Code 0 shares a group with code 1 alone; logits of the others: .5, 0, 2.
    loss = diversity_loss(codebook, torch.tensor([0, 0]), torch.tensor([0, 0, 1, 1]))
    expected = math.log(math.exp(0.5) + 1 + math.exp(2)) - 0.5
    assert float(loss) == pytest.approx(expected)


def test_the_diversity_loss_draws_all_other_codes_of_the_group() -> None:
    torch.manual_seed(0)
    codebook = torch.diag(torch.tensor([1.0, 5.0, 10.0])) + 1
    groups = torch.zeros(3, dtype=torch.int64)
    chosen = torch.tensor([0])
    logits = [float(codebook[0] @ codebook[other]) for other in (1, 2)]
    total = math.log(sum(math.exp(logit) for logit in logits))
    possible = {round(total - logit, 3) for logit in logits}
    drawn = {round(float(diversity_loss(codebook, chosen, groups)), 3) for _ in range(30)}
    assert drawn == possible


def test_codes_alone_in_their_group_have_no_diversity_loss() -> None:
    codebook = torch.randn(3, 2, requires_grad=True)
    groups = torch.tensor([0, 1, 1])
    alone = diversity_loss(codebook, torch.tensor([0, 0]), groups)
    assert float(alone.detach()) == 0
    both = diversity_loss(codebook, torch.tensor([0, 1]), groups)
    torch.testing.assert_close(both, diversity_loss(codebook, torch.tensor([1]), groups))
    both.backward()
    assert codebook.grad is not None
    assert torch.isfinite(codebook.grad).all()


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    given = items()
    tokenizer = started(given, collaborative_weight=0.3, diversity_weight=0.7)
    assert isinstance(tokenizer, TrainedTokenizer)
    loss = tokenizer.loss(batch(given))
    parts = loss.parts
    expected = parts["reconstruction"] + parts["codebook"] + 0.25 * parts["commitment"]
    expected = expected + 0.3 * parts["collaborative"] + 0.7 * parts["diversity"]
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_rows_choose_the_collaborative_vectors() -> None:
    given = items()
    tokenizer = started(given).eval()
    rows = [9, 3, 30]
    quantized = tokenizer.network(given.vectors[rows]).quantized.vectors
    assert given.collaborative is not None
    expected = collaborative_loss(quantized, given.collaborative[rows])
    actual = tokenizer.loss(batch(given, rows)).parts["collaborative"]
    torch.testing.assert_close(actual, expected)


def test_codes_are_grouped_again_after_every_epoch_of_items() -> None:
    given = items()
    tokenizer = started(given)
    rounds = []
    for _ in range(5):  # 25 items each: 60 have been seen before the fourth
        tokenizer.loss(batch(given, list(range(25))))
        rounds.append(int(tokenizer.round))
    assert rounds == [1, 1, 1, 2, 2]
    tokenizer.eval()
    for _ in range(9):
        tokenizer.loss(batch(given))
    assert int(tokenizer.round) == 2


def test_groups_have_equal_sizes() -> None:
    tokenizer = started(items())
    for level in range(2):
        assert torch.bincount(tokenizer.groups(level), minlength=3).tolist() == [4, 4, 4]
    many = started(items(), num_groups=50)
    assert torch.bincount(many.groups(0)).max() == 1


def test_its_network_by_default() -> None:
    network = LETTERConfig().network
    assert network.level_sizes == (256,) * 4
    assert network.last_level == SinkhornLast(epsilon=0.003, num_steps=50)
    assert network.balanced_start
    # Stating one setting keeps the others.
    changed = parse_config(LETTERConfig, {"network": {"latent_dim": 16}}, "test").network
    assert (changed.latent_dim, changed.balanced_start) == (16, True)


def test_codes_follow_the_collaborative_vectors() -> None:
    given = items()
    assert given.collaborative is not None

    def agreement(weight: float) -> float:
        tokenizer = started(given, collaborative_weight=weight)
        optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            tokenizer.loss(batch(given)).total.backward()
            optimizer.step()
        return float(tokenizer.eval().loss(batch(given)).parts["collaborative"].detach())

    assert agreement(1.0) < agreement(0.0) - 0.5


def test_saved_and_loaded() -> None:
    given = items()
    tokenizer = started(given)
    fresh = tokenizer.config.build(8)
    load_state(fresh, tokenizer.state_dict())
    assert np.array_equal(fresh.assign(given.vectors).codes, tokenizer.assign(given.vectors).codes)
    torch.testing.assert_close(fresh.collaborative, given.collaborative)


def test_collaborative_vectors_are_needed_and_of_the_width_of_the_codes() -> None:
    vectors = items().vectors
    with pytest.raises(ValueError, match="letter needs collaborative item vectors"):
        started(TokenizerItems(vectors))
    with pytest.raises(ValueError, match="latent_dim=4, width 9"):
        started(TokenizerItems(vectors, collaborative=torch.ones(60, 9)))
