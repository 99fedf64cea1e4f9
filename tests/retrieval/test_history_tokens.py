import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from rankloom.retrieval.histories import pad_histories
from rankloom.retrieval.history_tokens import (
    ActionPieceTokens,
    HistoryTokens,
    HistoryTokensConfig,
    IdTokens,
    TokenizedHistories,
)
from rankloom.retrieval.semantic_ids import SemanticIds

# Level 1 has tokens 3 to 5, level 2 tokens 6 to 8, level 3 tokens 9 to 11.
UNEVEN = SemanticIds(
    np.array([[0, 1, -1], [2, -1, -1], [1, 0, 2]], np.int32), level_sizes=(3, 3, 3)
)


def slow(table: list[list[int]], histories: list[list[int]]) -> TokenizedHistories:
    """Token by token; `table` lists the tokens of each item number."""
    rows, items, places, last = [], [], [], []
    for history in histories:
        row, item, place, ends = [], [], [], []
        for at, number in enumerate(history):
            for step, token in enumerate(table[number]):
                row.append(token)
                item.append(at)
                place.append(step)
            ends.append(max(len(row) - 1, 0))
        rows.append(row)
        items.append(item)
        places.append(place)
        last.append(ends)
    padded = [pad_histories(part, 1000) for part in (rows, items, places)]
    return TokenizedHistories(padded[0], padded[1], padded[2], torch.tensor(last))


def test_ids_one_after_another_by_hand() -> None:
    tokens = IdTokens(UNEVEN)
    found = tokens.encode(torch.tensor([[2, 1, 0], [3, 0, 0], [0, 0, 0]]))
    assert found.tokens.tolist() == [[5, 1, 3, 7, 1], [4, 6, 11, 1, 0], [0, 0, 0, 0, 0]]
    assert found.items.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert found.places.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0], [0, 0, 0, 0, 0]]
    assert found.last.tolist() == [[1, 4, 4], [3, 3, 3], [0, 0, 0]]
    assert tokens.max_tokens == 4
    assert tokens.of_items(torch.tensor([[2, 0]])).tolist() == [[[5, 1, 0, 0], [0, 0, 0, 0]]]


def test_ids_equal_the_slow_reference() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 40)
    codes = np.where(np.arange(4) < lengths[:, None], rng.integers(0, 6, (40, 4)), -1)
    ids = SemanticIds(codes.astype(np.int32), (6, 6, 6, 6))
    histories = [rng.integers(1, 41, rng.integers(0, 9)).tolist() for _ in range(17)]
    items = pad_histories(histories, 9)
    table = [[int(t) for t in row if t] for row in ids.token_table()]
    padded = [history + [0] * (items.shape[1] - len(history)) for history in histories]
    found, wanted = IdTokens(ids).encode(items), slow(table, padded)
    for name in ("tokens", "items", "places", "last"):
        width = getattr(wanted, name).shape[1]
        assert torch.equal(getattr(found, name)[:, :width], getattr(wanted, name)), name
        assert not getattr(found, name)[:, width:].any()


def test_empty_batches_and_empty_histories() -> None:
    for tokens in (IdTokens(UNEVEN), ActionPieceTokens(UNEVEN)):
        assert isinstance(tokens, HistoryTokens)
        assert tokens.tokens(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 1)
        assert tokens.tokens(torch.zeros(2, 1, dtype=torch.int64)).tolist() == [[0], [0]]
        assert tokens.state_dict() == {}


# Two features; merge 7 joins code 0 of level 1 with code 0 of level 2, merge 8 joins code 1 of
# level 2 with code 0 of level 1, merge 9 joins token 7 with code 1 of level 1.
SETS = SemanticIds(
    np.array([[0, 0], [1, 1], [0, 1]], np.int32),
    level_sizes=(2, 2),
    merges=np.array([[3, 5], [3, 6], [4, 7]], np.int32),
)


def test_sets_merge_within_and_across_items_by_hand() -> None:
    tokens = ActionPieceTokens(SETS).eval()
    # Item 1 is 3 5 -> 7; item 2 is 4 6; 7 4 -> 9 (either order): 9 6. The token made of both items
    # ends in the second.
    found = tokens.encode(torch.tensor([[1, 2], [3, 0], [2, 3]]))
    # 4 6 3 6: the first of the two pairs 6 3 and 3 6 is merged.
    assert found.tokens.tolist() == [[9, 6, 0], [8, 0, 0], [4, 8, 6]]
    assert found.items.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert found.places.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert found.last.tolist() == [[0, 1], [0, 0], [0, 2]]
    alone = ActionPieceTokens(SETS, across_items=False).eval()
    assert alone.causal
    assert not tokens.causal
    assert alone.tokens(torch.tensor([[1, 2], [2, 3]])).tolist() == [[7, 4, 6], [4, 6, 8]]


def test_without_merges_each_draw_is_an_order_of_the_codes() -> None:
    tokens = ActionPieceTokens(UNEVEN)
    items = torch.tensor([[3, 2, 1, 3]])
    draws = {tuple(tokens.tokens(items)[0].tolist()) for _ in range(60)}
    assert len(draws) > 30  # of 6 * 2 * 6
    for draw in draws:
        assert sorted(draw[:3]) == [4, 6, 11]
        assert draw[3] == 5
        assert sorted(draw[4:6]) == [3, 7]
        assert sorted(draw[6:]) == [4, 6, 11]


def test_orders_follow_the_generator_and_evaluation_draws_none() -> None:
    tokens = ActionPieceTokens(UNEVEN).eval()
    items = torch.tensor([[3, 2, 1, 3, 3, 3]])
    seeded = [tokens.tokens(items, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    state = torch.get_rng_state()
    assert tokens.tokens(items).tolist()[0][:6] == [4, 6, 11, 5, 3, 7]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "causal"), [("ids", True), ("action_piece", False)])
def test_configs_build_them(kind: str, causal: bool) -> None:
    config = TypeAdapter(HistoryTokensConfig).validate_python({"kind": kind})
    assert config.build(UNEVEN).causal is causal
