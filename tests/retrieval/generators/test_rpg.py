import numpy as np
import pytest
import torch
from generator_cases import fixed_ids, histories, small_schema, variable_ids, whole_sequences

from rankloom.retrieval.generators.causal import FeedForward
from rankloom.retrieval.generators.item_graph import search_graph
from rankloom.retrieval.generators.rpg import RPG, RPGConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import SemanticIds

SMALL = RPGConfig(dim=16, num_heads=2, network=FeedForward(hidden_dim=20), max_length=5)
IDS = fixed_ids(40, size=4, levels=3)


def rpg(config: RPGConfig = SMALL) -> RPG:
    torch.manual_seed(0)
    model = RPG(config, small_schema(IDS))
    torch.nn.init.normal_(model.heads, std=0.3)
    return model.eval()


@torch.no_grad()
def test_scores_are_the_mean_log_probability_of_the_digits() -> None:
    model = rpg()
    scores = model.score_items(histories([3, 1, 7], [5]))
    state = model._states(histories([3, 1, 7]))[0, 3]
    for item in (0, 17, 39):
        logs = []
        for digit, code in enumerate(IDS.codes[item]):
            head = state + torch.nn.functional.silu(model.heads[digit].T @ state)
            cosines = torch.cosine_similarity(head[None], model.embedding[digit], dim=1)
            logs.append((cosines / 0.03).log_softmax(0)[int(code)])
        assert scores[0, item].item() == pytest.approx(torch.stack(logs).mean().item(), rel=1e-4)


@torch.no_grad()
def test_cosines_are_not_rounded_under_autocast() -> None:
    model = rpg()
    states = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model._digit_logits(states)
    assert logits.dtype == torch.float32
    assert (logits.bfloat16() != logits).any()
    assert logits.abs().max() <= 1 / 0.03 + 1e-3


@torch.no_grad()
def test_the_loss_is_minus_the_mean_score_of_the_targets() -> None:
    model = rpg()
    rows = [[3, 1, 7, 2], [5, 6]]
    scores = [
        model.score_items(histories(row[:end]))[0, row[end] - 1].item()
        for row in rows
        for end in range(1, len(row))
    ]
    loss = model.loss(whole_sequences(*rows)).total.item()
    assert loss == pytest.approx(-np.mean(scores), rel=1e-4)
    batch = whole_sequences(*rows)
    nothing = HistoryBatch(batch.items, torch.zeros_like(batch.items))
    assert model.loss(nothing).total.item() == 0


@torch.no_grad()
def test_a_history_item_is_the_mean_of_its_digits() -> None:
    model = rpg()
    seen: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model._states(histories([9]))
    digits = [model.embedding[digit, int(code)] for digit, code in enumerate(IDS.codes[8])]
    expected = torch.stack(digits).mean(0) + model.place.weight[1]
    torch.testing.assert_close(seen[0][0, 1], expected)


@torch.no_grad()
def test_the_graph_holds_the_most_similar_items() -> None:
    model = rpg()
    unit = torch.nn.functional.normalize(model.embedding, dim=-1)
    similarity = torch.zeros(40, 40)
    for one in range(40):
        for other in range(40):
            for digit in range(3):
                a, b = IDS.codes[one, digit], IDS.codes[other, digit]
                cosine = unit[digit, a] @ unit[digit, b]
                similarity[one, other] += (cosine + 1) / 2 / 3
    graph = model.neighbour_graph(5)
    torch.testing.assert_close(similarity.gather(1, graph), similarity.topk(5).values)
    assert (graph == torch.arange(40)[:, None]).any(1).all()  # each item is its own neighbour


def test_decoding_on_a_complete_graph_is_exact() -> None:
    model = rpg()
    batch = histories([3, 1, 7], [5], [])
    with torch.no_grad():
        best = model.score_items(batch).topk(6)
    items, scores = model.recommend_by_graph(
        batch, model.neighbour_graph(100), count=6, num_beams=6, num_rounds=1
    )
    torch.testing.assert_close(scores, best.values)
    assert torch.equal(items, best.indices + 1)


def test_decoding_on_a_graph_is_repeated_by_its_generator_and_never_repeats_an_item() -> None:
    model = rpg()
    batch, graph = histories([3, 1, 7], [5]), model.neighbour_graph(3)

    def recommend() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return model.recommend_by_graph(
            batch, graph, count=5, num_beams=5, num_rounds=2, generator=generator
        )[0]

    items = recommend()
    assert torch.equal(items, recommend())
    for row in items.tolist():
        real = [item for item in row if item]
        assert len(set(real)) == len(real)


def test_items_that_are_not_met_are_missing() -> None:
    graph = torch.tensor([[0], [1]])  # each item knows itself alone
    items, scores = search_graph(
        lambda rows: rows.float(), graph, 1, count=3, num_beams=3, num_rounds=1
    )
    met = int((items > 0).sum())
    assert met <= 2
    assert (scores[items == 0] == -torch.inf).all()
    with pytest.raises(ValueError, match="got count=4, num_beams=3"):
        search_graph(lambda rows: rows.float(), graph, 1, count=4, num_beams=3, num_rounds=1)


def test_wrong_ids_are_named() -> None:
    with pytest.raises(ValueError, match="rpg needs the items' semantic ids"):
        RPG(SMALL, ItemSchema(3))
    with pytest.raises(ValueError, match=r"got lengths \[1, 2, 3\]"):
        RPG(SMALL, small_schema(variable_ids()))
    uneven = SemanticIds(np.zeros((2, 2), np.int32), (3, 4))
    with pytest.raises(ValueError, match=r"level sizes \(3, 4\)"):
        RPG(SMALL, small_schema(uneven))
    with pytest.raises(ValueError, match="num_neighbours must be at least 1; got 0"):
        rpg().neighbour_graph(0)
