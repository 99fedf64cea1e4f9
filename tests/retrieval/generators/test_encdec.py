import pytest
import torch
from generator_cases import (
    all_tokens,
    histories,
    prefixes,
    small_schema,
    stepwise_log_likelihood,
    variable_ids,
    whole_sequences,
)

from benchmarks.retrieval_t5 import t5_with_weights_of
from rankloom.retrieval.decoding import score_all
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.history_tokens import ActionPieceTokensConfig
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import START
from rankloom.retrieval.trie import Trie

SMALL = EncDecConfig(
    dim=16, num_layers=2, num_heads=3, head_dim=8, hidden_dim=20, max_length=5, num_buckets=8,
    max_distance=12,
)  # fmt: skip


def encdec(config: EncDecConfig = SMALL) -> EncDec:
    torch.manual_seed(0)
    return EncDec(config, small_schema(variable_ids())).eval()


@torch.no_grad()
def test_logits_are_those_of_hugging_face_t5_with_the_same_weights() -> None:
    model = encdec(SMALL.model_copy(update={"max_length": 12}))
    for norm in (part for part in model.modules() if isinstance(part, torch.nn.RMSNorm)):
        norm.weight.uniform_(0.5, 2.0)
    # Long enough that distances share buckets and reach the last one.
    batch = histories([3, 1, 7, 2, 5, 6, 9, 11, 12, 2, 1], [5, 8], [])
    tokens = torch.randint(3, 15, (3, 1, 9), generator=torch.Generator().manual_seed(1))
    read = torch.nn.functional.pad(model.history.tokens(batch.items), (1, 0), value=START)
    assert read.shape[1] > 2 * SMALL.max_distance
    theirs = t5_with_weights_of(model, SMALL)(
        input_ids=read,
        attention_mask=(read > 0).long(),
        decoder_input_ids=torch.nn.functional.pad(tokens[:, 0, :-1], (1, 0), value=START),
    ).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(
        model.forced_logits(batch, tokens)[:, 0], theirs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rank", [0, 2])
@torch.no_grad()
def test_stepwise_decoding_gives_the_teacher_forced_likelihood(rank: int) -> None:
    model = encdec(
        SMALL.model_copy(
            update={
                "num_user_tokens": 3, "temperature": 0.7, "adapters": LowRankAdapters(rank=rank)
            }
        )
    )  # fmt: skip
    if model.adapter is not None:
        torch.nn.init.normal_(model.adapter.up.weight)
    batch = histories([3, 1, 7, 2], [5], [], [1, 2, 3, 4, 5, 6, 7], users=[1, 0, 4, 5])
    tokens = all_tokens(variable_ids(), batch.size)
    forced = model.id_log_likelihood(batch, tokens)
    assert forced.std() > 0.5
    torch.testing.assert_close(stepwise_log_likelihood(model, batch, tokens), forced)


@torch.no_grad()
def test_exact_scores_of_the_trie_are_the_teacher_forced_likelihood() -> None:
    model, ids = encdec(), variable_ids()
    batch = histories([3, 1, 7, 2], [5], [])
    trie = Trie.build(ids)
    scores = score_all(model, batch, trie)[:, trie.item_leaf[1:].long()]
    forced = model.id_log_likelihood(batch, all_tokens(ids, batch.size))
    torch.testing.assert_close(scores, forced)


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_tokens_of_the_last_targets() -> None:
    model, ids = encdec(), variable_ids()
    batch = prefixes([3, 1, 7, 2], [5, 6])
    total, count = 0.0, 0
    for history, target in (([3], 1), ([3, 1], 7), ([3, 1, 7], 2), ([5], 6)):
        tokens = ids.token_table()[target].view(1, 1, -1)
        total -= model.id_log_likelihood(histories(history), tokens).item()
        count += int((tokens > 0).sum())
    assert model.loss(batch).total.item() == pytest.approx(total / count, rel=1e-5)
    whole = model.loss(whole_sequences([3, 1, 7, 2], [5, 6])).total  # last positions alone
    last = HistoryBatch(torch.tensor([[3, 1, 7], [5, 0, 0]]), torch.tensor([[0, 0, 2], [6, 0, 0]]))
    torch.testing.assert_close(whole, model.loss(last).total)
    nothing = HistoryBatch(batch.items, torch.zeros_like(batch.items))
    assert model.loss(nothing).total.item() == 0


@torch.no_grad()
def test_logits_of_some_tokens_are_those_of_all() -> None:
    model = encdec(SMALL.model_copy(update={"temperature": 0.5}))
    hidden, tokens = torch.randn(2, 3, 16), torch.randint(0, 15, (2, 3, 4))
    expected = model.logits(hidden).gather(2, tokens)
    torch.testing.assert_close(model.logits_of(hidden, tokens), expected)


@torch.no_grad()
def test_the_history_may_be_written_as_sets_of_codes() -> None:
    model = encdec(SMALL.model_copy(update={"history": ActionPieceTokensConfig()}))
    batch = histories([3, 1], [5])
    assert torch.isfinite(model.start(batch)[0]).all()
    assert model.loss(prefixes([3, 1, 7], [5, 6])).total > 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="encdec needs the items' semantic ids"):
        EncDec(SMALL, ItemSchema(3))
    with pytest.raises(ValueError, match="max_distance=4, num_buckets=8"):
        encdec(SMALL.model_copy(update={"max_distance": 4}))
    with pytest.raises(ValueError, match="got targets=None"):
        encdec().loss(histories([1, 2]))
