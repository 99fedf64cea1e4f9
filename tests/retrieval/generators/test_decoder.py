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

from rankloom.retrieval.decoding import beam_search, score_all
from rankloom.retrieval.generators.adapters import LowRankAdapters
from rankloom.retrieval.generators.causal import FeedForward
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.trie import Trie

SMALL = DecoderConfig(
    dim=16, num_layers=2, num_heads=2, network=FeedForward(hidden_dim=20), max_length=5
)


def decoder(config: DecoderConfig = SMALL, *, spread: float = 10.0) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config, small_schema(variable_ids()))
    with torch.no_grad():  # far from uniform, so that a mistake would show
        for table in (model.tokens.token, model.tokens.place, model.tokens.level):
            table.weight.mul_(spread)
    return model.eval()


def test_stepwise_decoding_gives_the_teacher_forced_likelihood() -> None:
    model = decoder(SMALL.model_copy(update={"num_user_tokens": 3, "temperature": 0.7}))
    batch = histories([3, 1, 7, 2], [5], [], [1, 2, 3, 4, 5, 6, 7], users=[1, 0, 4, 5])
    tokens = all_tokens(variable_ids(), batch.size)
    forced = model.id_log_likelihood(batch, tokens)
    assert forced.std() > 0.5
    torch.testing.assert_close(stepwise_log_likelihood(model, batch, tokens), forced)


def test_exact_scores_of_the_trie_are_the_teacher_forced_likelihood() -> None:
    model, ids = decoder(), variable_ids()
    batch = histories([3, 1, 7, 2], [5], [])
    trie = Trie.build(ids)
    scores = score_all(model, batch, trie)  # [batch, leaves]
    forced = model.id_log_likelihood(batch, all_tokens(ids, batch.size))
    torch.testing.assert_close(scores[:, trie.item_leaf[1:].long()], forced)
    found = beam_search(model, batch, trie, beams=trie.leaves)
    torch.testing.assert_close(found.scores, scores.gather(1, found.leaves))


def test_the_loss_is_the_mean_over_the_tokens_of_all_targets() -> None:
    model, ids = decoder(), variable_ids()
    rows = [[3, 1, 7, 2], [5, 6], [9, 9, 4]]
    total, count = 0.0, 0
    for row in rows:
        for end in range(1, len(row)):
            target = ids.token_table()[row[end]].view(1, 1, -1)
            total -= model.id_log_likelihood(histories(row[:end]), target).item()
            count += int((target > 0).sum())
    assert model.loss(whole_sequences(*rows)).total.item() == pytest.approx(total / count, rel=1e-5)


def test_prefix_rows_train_their_last_position_alone() -> None:
    model = decoder()
    whole = model.loss(whole_sequences([3, 1, 7], [5, 6])).total
    assert model.loss(prefixes([3, 1, 7], [5, 6])).total.item() == pytest.approx(
        whole.item(), rel=1e-5
    )


def test_the_first_item_is_predicted_on_request() -> None:
    model = decoder(SMALL.model_copy(update={"first_item": True}))
    ids = variable_ids()
    row = [3, 1]
    forced = [
        model.id_log_likelihood(histories(row[:end]), ids.token_table()[row[end]].view(1, 1, -1))
        for end in range(2)
    ]
    count = int((ids.token_table()[row] > 0).sum())
    loss = model.loss(whole_sequences(row)).total.item()
    assert loss == pytest.approx(-(forced[0] + forced[1]).item() / count, rel=1e-5)


def test_only_the_newest_items_are_read() -> None:
    model = decoder()
    torch.testing.assert_close(
        model.start(histories([9, 8, 1, 2, 3, 4, 5]))[0], model.start(histories([1, 2, 3, 4, 5]))[0]
    )
    long, short = whole_sequences([9, 8, 1, 2, 3, 4, 5, 6]), whole_sequences([1, 2, 3, 4, 5, 6])
    # The window keeps five items of the history with the five targets after them.
    long_targets = model.loss(long).total
    kept = HistoryBatch(torch.tensor([[8, 1, 2, 3, 4, 5, 6]])[:, 1:-1], short.targets)
    torch.testing.assert_close(long_targets, model.loss(kept).total)


def test_a_position_without_target_carries_no_loss() -> None:
    model = decoder()
    batch = whole_sequences([3, 1, 7], [5, 6, 2])
    targets = batch.targets.clone()
    targets[1] = 0
    part = model.loss(HistoryBatch(batch.items, targets)).total
    torch.testing.assert_close(part, model.loss(whole_sequences([3, 1, 7])).total)
    nothing = model.loss(HistoryBatch(batch.items, torch.zeros_like(targets))).total
    assert nothing.item() == 0


def test_label_smoothing_moves_the_loss_towards_uniform() -> None:
    batch = whole_sequences([3, 1, 7])
    model = decoder()
    states, labels, items = model.tokens.train_states(batch)
    logp = model.tokens.logits(states).log_softmax(-1)
    hard = -logp.gather(1, labels[:, None]).mean()
    model.tokens.label_smoothing = 0.2
    expected = 0.8 * hard - 0.2 * logp.mean()
    torch.testing.assert_close(model.loss(batch).total, expected)
    assert items.unique().tolist() == [1, 7]


def test_logits_of_some_tokens_are_those_of_all() -> None:
    model = decoder(SMALL.model_copy(update={"temperature": 0.5}))
    hidden = torch.randn(2, 3, 16)
    tokens = torch.randint(0, 15, (2, 3, 4))
    expected = model.logits(hidden).gather(2, tokens)
    torch.testing.assert_close(model.logits_of(hidden, tokens), expected)


def test_an_adapter_reads_items_only_after_they_were_written() -> None:
    model = decoder(SMALL.model_copy(update={"adapters": LowRankAdapters(rank=2)}))
    batch = whole_sequences([3, 1, 7, 2])
    adapter, before = model.tokens.item_part, model.loss(batch).total
    model.tokens.item_part = None
    assert torch.equal(before, model.loss(batch).total)  # it starts at no correction
    model.tokens.item_part = adapter
    torch.nn.init.normal_(adapter.up.weight)
    states, _, items = model.tokens.train_states(batch)
    with torch.no_grad():
        adapter.vectors[7] += 5.0
    moved, _, _ = model.tokens.train_states(batch)
    changed = (states != moved).any(1)
    assert not changed[(items == 1) | (items == 7)].any()  # predicted before item 7's END is read
    assert changed[items == 2].all()
    tokens = all_tokens(variable_ids(), 1)
    context = histories([3, 1, 7])
    torch.testing.assert_close(
        stepwise_log_likelihood(model, context, tokens), model.id_log_likelihood(context, tokens)
    )


def test_a_known_user_moves_the_prediction() -> None:
    model = decoder(SMALL.model_copy(update={"num_user_tokens": 2}))
    hidden, _ = model.start(histories([3], [3], [3], [3], users=[1, 2, 3, 0]))
    assert torch.equal(hidden[0], hidden[2])  # two vectors: users 1 and 3 share one
    assert not torch.equal(hidden[0], hidden[1])
    torch.testing.assert_close(hidden[3:], model.start(histories([3]))[0])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="decoder needs the items' semantic ids"):
        Decoder(SMALL, ItemSchema(3))
    with pytest.raises(ValueError, match="adapters with a rank needs the items' vectors"):
        Decoder(
            SMALL.model_copy(update={"adapters": LowRankAdapters(rank=2)}),
            ItemSchema(12, ids=variable_ids()),
        )
    with pytest.raises(ValueError, match="num_heads must divide dim; got dim=16, num_heads=3"):
        decoder(SMALL.model_copy(update={"num_heads": 3}))
    with pytest.raises(ValueError, match="got targets=None"):
        decoder().loss(histories([1, 2]))
    with pytest.raises(ValueError, match="targets must be the items that follow"):
        decoder().loss(HistoryBatch(torch.tensor([[1, 2]]), torch.tensor([[3, 4]])))
