from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.mlp import MLP
from rankloom.layers.tokens.fields import (
    AutoSplitTokens,
    GroupTokens,
    PerFieldTokens,
    SliceTokens,
    WithGlobalToken,
)
from rankloom.layers.tokens.pooling import JoinedTokens, MeanTokens, OneToken, SumTokens

GROUPS = [[3, 0], [1], [4, 2]]


def per_field(module: PerFieldTokens, row: Tensor) -> list[Tensor]:
    project = module.project
    assert project.bias is not None
    return [row[i] @ project.weight[i] + project.bias[i, 0] for i in range(5)]


def by_group(module: GroupTokens, row: Tensor) -> list[Tensor]:
    """Each group's fields side by side through its two matrices."""
    tokens = []
    for number, group in enumerate(GROUPS):
        joined = torch.cat([row[place] for place in group])
        first = torch.cat([module.expand.weight[place] for place in group])
        hidden = nn.functional.gelu(joined @ first + module.bias[number, 0])
        assert module.reduce.bias is not None
        tokens.append(hidden @ module.reduce.weight[number] + module.reduce.bias[number, 0])
    return tokens


def by_slice(module: SliceTokens, row: Tensor) -> list[Tensor]:
    """10 units, 3 tokens: pieces of 4, the last filled up with two zeros."""
    joined = torch.cat([row.flatten(), torch.zeros(2)])
    assert module.project.bias is not None
    pieces = [joined[4 * i : 4 * i + 4] for i in range(3)]
    return [pieces[i] @ module.project.weight[i] + module.project.bias[i, 0] for i in range(3)]


def by_split(module: AutoSplitTokens, row: Tensor) -> list[Tensor]:
    out = module.network(row.flatten()[None])[0]
    return [out[3 * i : 3 * i + 3] for i in range(4)]


def with_global(module: WithGlobalToken, row: Tensor) -> list[Tensor]:
    inner = module.tokens
    assert isinstance(inner, PerFieldTokens)
    return [module.network(row.flatten()[None])[0], *per_field(inner, row)]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., list[Tensor]]]] = {
    "per_field": (lambda: PerFieldTokens(5, 2, 3), per_field),
    "groups": (lambda: GroupTokens(GROUPS, 2, 3, 6), by_group),
    "slices": (lambda: SliceTokens(5, 2, 3, 3), by_slice),
    "auto_split": (lambda: AutoSplitTokens(MLP(10, [7], out_features=12), 4), by_split),
    "global": (
        lambda: WithGlobalToken(PerFieldTokens(5, 2, 3), 5, MLP(10, [4], out_features=3)),
        with_global,
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_tokens_equal_the_loops_forward_and_gradient(kind: str) -> None:
    make, reference = CASES[kind]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 5, 2, requires_grad=True)
    weights = torch.randn(4, module.num_tokens, 3)
    results = []
    for compute in (
        lambda: module(x),
        lambda: torch.stack([torch.stack(reference(module, row)) for row in x]),
    ):
        module.zero_grad()
        x.grad = None
        out = compute()
        (out * weights).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in module.parameters())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("rows", [0, 1])
def test_any_number_of_rows(kind: str, rows: int) -> None:
    module = CASES[kind][0]()
    assert module(torch.randn(rows, 5, 2)).shape == (rows, module.num_tokens, 3)


def test_groups_start_like_a_linear_layer_of_their_size() -> None:
    module = GroupTokens([list(range(60)), [60]], 8, 4, 100)
    large, small = module.expand.weight[:60].std().item(), module.expand.weight[60].std().item()
    assert large == pytest.approx((2 / (480 + 100)) ** 0.5, rel=0.05)
    assert small == pytest.approx((2 / (8 + 100)) ** 0.5, rel=0.1)


def test_groups_hold_no_weight_that_nothing_reads() -> None:
    sizes = [len(group) * 2 * 6 + 6 + 6 * 3 + 3 for group in GROUPS]
    assert sum(p.numel() for p in GroupTokens(GROUPS, 2, 3, 6).parameters()) == sum(sizes)


@pytest.mark.parametrize("groups", [[[0], [0, 1]], [[0], [2]], [[0, 1], []]])
def test_groups_take_every_field_once(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="every field belongs to one group"):
        GroupTokens(groups, 2, 3, 4)


def test_slices_that_hold_nothing_are_refused_with_a_number_that_works() -> None:
    with pytest.raises(ValueError, match="20 units.*num_tokens=16 pieces of 2, leave 6.*=10$"):
        SliceTokens(5, 4, 16, 3)
    assert SliceTokens(5, 4, 10, 3).missing == 0


def test_pooling_worked_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]])
    expected: dict[nn.Module, list[float]] = {
        MeanTokens(2): [3.0, 5.0],
        SumTokens(2): [9.0, 15.0],
        JoinedTokens(2, 3): [1.0, 2.0, 3.0, 4.0, 5.0, 9.0],
        OneToken(2, 3, 0): [1.0, 2.0],
        OneToken(2, 3, -1): [5.0, 9.0],
    }
    for pooling, values in expected.items():
        assert pooling(x).tolist() == [values]
        assert pooling.out_dim == len(values)
        assert pooling(x[:0]).shape == (0, len(values))


@pytest.mark.parametrize("index", [3, -4])
def test_a_token_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"from -3 to 2; got index={index} for 3 tokens"):
        OneToken(2, 3, index)
