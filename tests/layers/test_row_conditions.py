from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.row_conditions import ChosenRows, GroupedRows, ScenarioBatch, SingleRows

SCHEMA = example_schema(num_scenarios=4)
MATRICES = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 10.0]]])  # [conditions, out, in]
X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def same(generated: Tensor) -> Tensor:
    return generated


def test_every_row_meets_the_matrix_of_its_condition() -> None:
    grouped = GroupedRows([2, 1], [0, 2])
    assert grouped.num_rows == 3
    expected = [[1.0], [3.0], [65.0]]
    assert grouped.product(X, MATRICES, same, ()).tolist() == expected
    assert grouped.fixed_product(X, MATRICES).tolist() == expected
    chosen = ChosenRows(torch.tensor([0, 0, 2]))
    assert chosen.product(X, MATRICES, same, ()).tolist() == expected
    assert SingleRows(3).product(X, MATRICES, same, ()).tolist() == [[1.0], [4.0], [65.0]]


def test_tokens_of_a_row_share_its_matrix() -> None:
    tokens = torch.randn(3, 4, 2)
    expected = torch.stack(
        [
            functional.linear(row, MATRICES[index])
            for row, index in zip(tokens, (1, 1, 2), strict=True)
        ]
    )
    index = torch.tensor([1, 1, 2])
    for rows, generated in (
        (GroupedRows([2, 1], [1, 2]), MATRICES),
        (ChosenRows(index), MATRICES),
        (SingleRows(3), MATRICES[index]),
    ):
        torch.testing.assert_close(rows.product(tokens, generated, same, ()), expected)


def test_matrices_of_rows_are_made_in_chunks_and_again_in_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rankloom.layers.chunked.CACHE_CHUNK", 12)
    most = 0

    def made(generated: Tensor) -> Tensor:
        nonlocal most
        most = max(most, len(generated))
        return generated.view(-1, 3, 2) * factor

    factor = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    x = torch.randn(7, 2, dtype=torch.double, requires_grad=True)
    generated = torch.randn(7, 6, dtype=torch.double, requires_grad=True)
    out = SingleRows(7).product(x, generated, made, [factor])
    plain = torch.einsum("bi,boi->bo", x, generated.view(-1, 3, 2) * factor)
    torch.testing.assert_close(out, plain)
    weights = torch.randn_like(out)
    sources = (x, generated, factor)
    found = torch.autograd.grad((out * weights).sum(), sources)
    expected = torch.autograd.grad((plain * weights).sum(), sources)
    torch.testing.assert_close(found, expected)
    assert most == 2  # 12 numbers are matrices of two rows


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("scenario", [[2, 0, 3, 2, 0, 1], [3, 3, 3], [], [0]], ids=str)
def test_batches_are_sorted_and_put_back(
    scenario: list[int], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    batch = replace(
        random_batch(SCHEMA, len(scenario)), scenario=torch.tensor(scenario, dtype=torch.int32)
    )
    found = ScenarioBatch.of(batch, 3)
    assert found.rows.num_rows == len(scenario)
    matrices = torch.arange(4.0).view(4, 1, 1)
    product = found.rows.fixed_product(torch.ones(len(scenario), 1), matrices)
    assert product.flatten().tolist() == [float(k) for k in found.batch.scenario]
    assert found.restore(product).flatten().tolist() == [float(k) for k in scenario]
    torch.testing.assert_close(found.restore(found.batch.categorical), batch.categorical)


def test_only_conditions_that_occur_are_made() -> None:
    seen = []

    def made(generated: Tensor) -> Tensor:
        seen.append(generated.flatten().tolist())
        return generated

    GroupedRows([3], [2]).product(torch.ones(3, 1), torch.arange(5.0).view(5, 1, 1), made, ())
    assert seen == [[2.0]]
