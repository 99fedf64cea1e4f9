import pytest
import torch
from generator_cases import (
    all_tokens,
    histories,
    small_schema,
    stepwise_log_likelihood,
    variable_ids,
    whole_sequences,
)

from rankloom.retrieval.decoding import Decoded, score_all
from rankloom.retrieval.generators.beam_fusion import fuse_beams
from rankloom.retrieval.generators.causal import FeedForward
from rankloom.retrieval.generators.cobra import Cobra, CobraConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import END
from rankloom.retrieval.trie import Trie

SMALL = CobraConfig(
    dim=16, num_heads=2, network=FeedForward(hidden_dim=20), max_length=5, dense_hidden=12
)
IDS = variable_ids(30)  # several items share an id


def cobra(config: CobraConfig = SMALL) -> Cobra:
    torch.manual_seed(0)
    model = Cobra(config, small_schema(IDS))
    with torch.no_grad():
        model.tokens.token.weight.mul_(10)
        model.tokens.place.weight.mul_(10)
    return model.eval()


@torch.no_grad()
def test_stepwise_decoding_gives_the_teacher_forced_likelihood() -> None:
    model = cobra()
    batch = histories([3, 1, 7, 2], [5], [])
    tokens = all_tokens(IDS, batch.size)
    forced = model.id_log_likelihood(batch, tokens)
    torch.testing.assert_close(stepwise_log_likelihood(model, batch, tokens), forced)


@torch.no_grad()
def test_the_dense_vector_is_read_where_an_id_ends() -> None:
    model = cobra()
    seen: list[torch.Tensor] = []
    model.tokens.transformer.layers[0].register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    model.start(histories([7, 3]))
    tokens = [*IDS.tokens[6], *IDS.tokens[2]]
    tokens = [int(token) for token in tokens if token]
    ends = [place + 1 for place, token in enumerate(tokens) if token == END]
    part = model.tokens
    for item, end, place in ((7, ends[0], 1), (3, ends[1], 2)):
        level = int((IDS.tokens[item - 1] > 0).sum()) - 1
        vector = model.dense(torch.tensor(item))
        expected = part.token.weight[END] + part.place.weight[place] + part.level.weight[level]
        torch.testing.assert_close(seen[0][0, end], expected + vector)
    code = part.token.weight[tokens[0]] + part.place.weight[1] + part.level.weight[0]
    torch.testing.assert_close(seen[0][0, 1], code)


@torch.no_grad()
def test_the_loss_is_that_of_codes_and_of_cosines_within_the_batch() -> None:
    model = cobra(SMALL.model_copy(update={"dense_weight": 0.5}))
    batch = whole_sequences([3, 1, 7, 2], [5, 7])
    loss = model.loss(batch)
    states, labels, items = model.tokens.train_states(batch)
    assert items[labels == END].tolist() == [1, 7, 2, 7]
    vectors = model.dense(torch.tensor([1, 2, 7]))
    terms = []
    for state, item in zip(states[labels == END], [0, 2, 1, 2], strict=True):
        cosines = torch.cosine_similarity(model.query(state)[None], vectors) / 0.2
        terms.append(-cosines.log_softmax(0)[item])
    torch.testing.assert_close(loss.parts["dense"], torch.stack(terms).mean())
    sparse = torch.nn.functional.cross_entropy(model.logits(states), labels)
    torch.testing.assert_close(loss.parts["sparse"], sparse)
    torch.testing.assert_close(loss.total, sparse + 0.5 * torch.stack(terms).mean())
    nothing = HistoryBatch(batch.items, torch.zeros_like(batch.items))
    assert model.loss(nothing).total.item() == 0


@torch.no_grad()
def test_beam_fusion_is_the_probability_of_the_id_times_that_of_the_item_in_it() -> None:
    model, trie = cobra(), Trie.build(IDS)
    batch = histories([3, 1, 7], [])
    items, scores = model.recommend(batch, trie, count=30, beams=trie.leaves)
    likelihood = score_all(model, batch, trie)  # [batch, leaves]
    unit = torch.nn.functional.normalize(model.item_vectors(), dim=1)
    table = IDS.token_table()
    for row, history in enumerate(([3, 1, 7], [])):
        fused = {}
        for leaf in range(trie.leaves):
            group = trie.leaf_items[trie.leaf_offsets[leaf] : trie.leaf_offsets[leaf + 1]].long()
            states, written = model.tokens(histories(history), table[group[:1]])
            of_id = (written.items[0] == len(history)) & (written.tokens[0] == END)
            query = model.query(states[0, of_id][-1])
            within = (16 * torch.cosine_similarity(query[None], unit[group])).log_softmax(0)
            of_leaf = (0.9 * likelihood[row]).log_softmax(0)[leaf]
            fused |= dict(zip(group.tolist(), (of_leaf + within).tolist(), strict=True))
        assert sorted(items[row].tolist()) == list(range(1, 31))
        expected = torch.tensor([fused[item] for item in items[row].tolist()])
        torch.testing.assert_close(scores[row], expected)
        assert (scores[row].diff() <= 0).all()
    assert (trie.group_sizes > 1).any()


@torch.no_grad()
def test_few_beams_blocked_items_and_blocks_of_users() -> None:
    model, trie = cobra(), Trie.build(IDS)
    batch = histories([3, 1, 7], [5], [2, 2])
    everything, _ = model.recommend(batch, trie, count=30, beams=trie.leaves)
    blocked = everything[:, :1]
    items, _ = model.recommend(batch, trie, count=30, beams=trie.leaves, blocked=blocked)
    assert (items != blocked).all()
    assert ((items > 0).sum(1) == 29).all()
    one, scores = model.recommend(batch, trie, count=30, beams=1)
    sizes = (one > 0).sum(1)
    assert (sizes < 30).all()
    assert (sizes > 0).all()
    assert (scores[one == 0] == -torch.inf).all()
    in_blocks, again = model.recommend(batch, trie, count=30, beams=1, memory_bytes=1)
    assert torch.equal(one, in_blocks)
    torch.testing.assert_close(scores, again)


def test_a_missing_beam_gives_no_item() -> None:
    trie = Trie.build(IDS)
    decoded = Decoded(torch.tensor([[0, -1]]), torch.tensor([[-1.0, -torch.inf]]))
    items, scores = fuse_beams(
        decoded, torch.ones(1, 2, 4), torch.ones(31, 4), trie, count=31, tau=1.0, psi=1.0
    )
    group = trie.leaf_items[: int(trie.leaf_offsets[1])]
    assert sorted(items[items > 0].tolist()) == sorted(group.tolist())
    # Equal cosines share the id's probability, which is all there is.
    assert scores[items > 0].exp().sum().item() == pytest.approx(1.0)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="cobra needs the items' vectors"):
        Cobra(SMALL, ItemSchema(30, ids=IDS))
    with pytest.raises(ValueError, match="cobra needs the items' semantic ids"):
        Cobra(SMALL, ItemSchema(30, vectors=torch.ones(30, 2)))
