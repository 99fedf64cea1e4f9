import torch
from torch import nn

from rankloom.layers.packing import PackedTokens, PaddedTokens, TokenPacking, without_packing

MASK = torch.tensor([[False, True, True], [False, False, False], [False, False, True]])


def test_real_tokens_of_all_rows_are_one_row_and_go_back_to_their_places():
    x = torch.arange(9.0).view(3, 3, 1)
    tokens = PackedTokens(MASK)
    assert tokens.take(x).tolist() == [[[1.0], [2.0], [8.0]]]
    assert tokens.put_back(tokens.take(x)).squeeze(2).tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 8]]
    assert tokens.real is None
    padded = PaddedTokens(MASK)
    assert padded.take(x) is x
    assert padded.real is MASK


def test_heads_are_spread_and_gathered_token_by_token():
    heads = torch.randn(1, 2, 3, 4)
    tokens = PackedTokens(MASK)
    spread = tokens.spread(heads)
    assert spread.shape == (3, 2, 3, 4)
    for number, (row, place) in enumerate(MASK.nonzero().tolist()):
        assert torch.equal(spread[row, :, place], heads[0, :, number])
    assert torch.equal(spread.transpose(1, 2)[~MASK], torch.zeros(6, 2, 4))
    assert torch.equal(tokens.gather(spread), heads)


def test_gradients_go_to_real_tokens_alone():
    x = torch.ones(3, 3, 2, requires_grad=True)
    PackedTokens(MASK).take(x).sum().backward()
    assert torch.equal(x.grad, MASK.unsqueeze(2).float().expand_as(x))


def test_padding_is_left_out_where_there_is_enough_of_it():
    packing = TokenPacking()
    full = torch.ones(4, 5, dtype=torch.bool)
    assert type(packing(full)) is PaddedTokens
    full[0, 0] = False  # one in twenty
    assert type(packing(full)) is PaddedTokens
    assert type(packing(MASK)) is PackedTokens
    assert type(TokenPacking(enabled=False)(MASK)) is PaddedTokens


def test_packing_is_off_inside_the_block_and_as_before_after_it():
    model = nn.ModuleList([TokenPacking(), TokenPacking(enabled=False)])
    with without_packing(model):
        assert [part.enabled for part in model] == [False, False]
    assert [part.enabled for part in model] == [True, False]
