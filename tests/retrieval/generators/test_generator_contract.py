"""What holds of every model that writes or ranks ids."""

from collections.abc import Callable

import pytest
import torch
from generator_cases import fixed_ids, histories, prefixes, small_schema, whole_sequences
from torch import Tensor, nn

from rankloom.retrieval.decoding import score_all
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.causal import FeedForward, SwiGLU
from rankloom.retrieval.generators.cobra import Cobra, CobraConfig
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.generators.rpg import RPG, RPGConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import Generator, ItemScorer
from rankloom.retrieval.trie import Trie

IDS = fixed_ids(12)
TRIE = Trie.build(IDS)
NETWORK = FeedForward(hidden_dim=20)
BUILDERS: dict[str, Callable[[ItemSchema], nn.Module]] = {
    "decoder": lambda schema: Decoder(
        DecoderConfig(
            dim=16, num_layers=2, num_heads=2, network=SwiGLU(hidden_dim=20), max_length=8,
            num_user_tokens=2, adapters=LowRankAdapters(rank=3), dropout=0,
        ), schema,
    ),
    "encdec": lambda schema: EncDec(
        EncDecConfig(
            dim=16, num_layers=2, num_heads=2, head_dim=6, hidden_dim=20, max_length=8,
            num_buckets=8, max_distance=10, num_user_tokens=2, adapters=LowRankAdapters(rank=3),
            dropout=0,
        ), schema,
    ),
    "rpg": lambda schema: RPG(
        RPGConfig(dim=16, num_heads=2, network=NETWORK, max_length=8, dropout=0), schema
    ),
    "cobra": lambda schema: Cobra(
        CobraConfig(
            dim=16, num_heads=2, network=NETWORK, max_length=8, num_user_tokens=2, dense_hidden=8,
            dropout=0,
        ), schema,
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(BUILDERS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built = BUILDERS[request.param](small_schema(IDS))
    for name, value in built.named_parameters():  # what starts at zero says nothing yet
        if value.dim() > 1:
            nn.init.normal_(value, std=0.3)
        assert value.isfinite().all(), name
    return built.eval()


def scores(model: nn.Module, batch: HistoryBatch) -> Tensor:
    """[batch, items] exact scores of all items."""
    with torch.no_grad():
        if isinstance(model, ItemScorer):
            return model.score_items(batch)
        return score_all(model, batch, TRIE)[:, TRIE.item_leaf[1:].long()]


def training_batch(model: nn.Module, *rows: list[int]) -> HistoryBatch:
    return whole_sequences(*rows) if model.training_rows == "users" else prefixes(*rows)


def test_it_is_a_generator_or_a_scorer(model: nn.Module) -> None:
    assert isinstance(model, Generator) != isinstance(model, ItemScorer)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_batches_of_any_size(model: nn.Module, size: int) -> None:
    rows = [[3, 1, 7], [5], [2, 4]][:size]
    batch = HistoryBatch(histories(*rows).items, users=torch.arange(size))
    answer = scores(model, batch)
    assert answer.shape == (size, 12)
    assert answer.isfinite().all()


def test_neither_padding_nor_the_other_rows_matter(model: nn.Module) -> None:
    rows = [[3, 1, 7, 2, 9], [5], [], [2, 4]]
    together = scores(model, histories(*rows, users=[1, 2, 0, 1]))
    wide = histories(*rows, users=[1, 2, 0, 1])
    wide = HistoryBatch(torch.nn.functional.pad(wide.items, (0, 2)), users=wide.users)
    torch.testing.assert_close(scores(model, wide), together)
    for row, user in enumerate([1, 2, 0, 1]):
        alone = scores(model, histories(rows[row], users=[user]))
        torch.testing.assert_close(alone[0], together[row])
    assert together.std(0).min() > 1e-4  # the rows do differ


def test_an_empty_history_has_an_answer(model: nn.Module) -> None:
    assert scores(model, histories([])).isfinite().all()


def test_gradients_reach_every_parameter(model: nn.Module) -> None:
    batch = training_batch(model.train(), [3, 1, 7, 2, 9, 4, 12, 6], [5, 8, 10, 11])
    batch = HistoryBatch(batch.items, batch.targets, torch.arange(batch.size) % 2 + 1)
    model.loss(batch).total.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


def test_a_batch_without_targets_has_a_loss_of_zero(model: nn.Module) -> None:
    batch = training_batch(model, [3, 1, 7])
    loss = model.loss(HistoryBatch(batch.items, torch.zeros_like(batch.items))).total
    assert loss.item() == 0
    with pytest.raises(ValueError, match="got targets=None"):
        model.loss(HistoryBatch(batch.items))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_planted_signal_is_learned(name: str) -> None:
    torch.manual_seed(0)
    model = BUILDERS[name](small_schema(IDS)).train()
    cycle = [item % 12 + 1 for item in range(24)]  # every item has one that follows it
    rows = [cycle[start : start + 4] for start in range(12)]
    batch = training_batch(model, *rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(180):
        optimizer.zero_grad()
        model.loss(batch).total.backward()
        optimizer.step()
    model.eval()
    best = scores(model, histories(*[row[:3] for row in rows])).argmax(1) + 1
    assert best.tolist() == [row[3] for row in rows]


def test_bf16_training_and_decoding_run(model: nn.Module) -> None:
    batch = training_batch(model.train(), [3, 1, 7, 2, 9], [5, 8, 10])
    exact = model.loss(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(batch).total
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)
    model.eval()
    history = histories([3, 1, 7], [5], [])
    with torch.autocast("cpu", torch.bfloat16):
        half = scores(model, history)
    full = scores(model, history)
    assert (half - full).abs().max() < 0.1 * full.abs().max()


def test_state_is_all_that_was_learned(model: nn.Module) -> None:
    name = next(name for name in BUILDERS if type(model).__name__.lower() == name)
    torch.manual_seed(1)
    other = BUILDERS[name](small_schema(IDS)).eval()
    assert not any(key.endswith(("table", "vectors", "digits")) for key in model.state_dict())
    other.load_state_dict(model.state_dict())
    history = histories([3, 1, 7], [5])
    assert torch.equal(scores(other, history), scores(model, history))
