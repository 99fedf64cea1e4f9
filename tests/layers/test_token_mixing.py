import pytest
import torch

from rankloom.layers.token_mixing import TokenMixing


def test_pieces_of_all_tokens_worked_by_hand() -> None:
    x = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]])
    assert TokenMixing(4, 2)(x).tolist() == [[[1, 2, 5, 6, 9, 10], [3, 4, 7, 8, 11, 12]]]
    assert TokenMixing(4, 1)(x).tolist() == [[list(range(1, 13))]]


def test_it_equals_pieces_taken_one_by_one() -> None:
    x = torch.randn(3, 5, 12)
    mixed = TokenMixing(12, 4)(x)
    assert mixed.shape == (3, 4, 15)
    for row in range(3):
        for head in range(4):
            pieces = [x[row, token, 3 * head : 3 * head + 3] for token in range(5)]
            assert torch.equal(mixed[row, head], torch.cat(pieces))


def test_mixing_twice_changes_nothing_with_as_many_heads_as_tokens() -> None:
    x = torch.randn(3, 4, 12)
    mix = TokenMixing(12, 4)
    assert not torch.equal(mix(x), x)
    assert torch.equal(mix(mix(x)), x)


@pytest.mark.parametrize(("tokens", "heads"), [(5, 4), (3, 12), (7, 1), (1, 6)])
def test_mixing_the_mixed_tokens_gives_the_tokens_back(tokens: int, heads: int) -> None:
    x = torch.randn(2, tokens, 12)
    mixed = TokenMixing(12, heads)(x)
    assert torch.equal(TokenMixing(mixed.shape[2], tokens)(mixed), x)


def test_no_rows() -> None:
    assert TokenMixing(12, 4)(torch.zeros(0, 5, 12)).shape == (0, 4, 15)


@pytest.mark.parametrize(
    ("dim", "heads", "message"),
    [
        (64, 39, r"got dim=64, num_heads=39; nearest dim that works: 39 or 78$"),
        (4, 6, r"got dim=4, num_heads=6; nearest dim that works: 6$"),
    ],
)
def test_heads_must_divide_the_width(dim: int, heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenMixing(dim, heads)
