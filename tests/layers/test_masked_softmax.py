import pytest
import torch
from torch import Tensor

from rankloom.layers.masked_softmax import masked_softmax

MASKS = {
    "none": None,
    "full": torch.rand(3, 2, 4, 5) < 0.6,
    "one for all heads": torch.rand(3, 1, 4, 5) < 0.6,
    "of keys": torch.rand(3, 1, 1, 5) < 0.6,
    "one for all rows": torch.rand(1, 1, 4, 5) < 0.6,
    "expanded": (torch.rand(4, 5) < 0.6).expand(3, 1, 4, 5),
    "nothing": torch.zeros(3, 2, 4, 5, dtype=torch.bool),
}


def by_rows(scores: Tensor, seen: Tensor | None, axis: int) -> Tensor:
    """exp over its sum, row by row, over what is seen."""
    moved = scores.movedim(axis, -1)
    shown = torch.ones_like(scores, dtype=torch.bool) if seen is None else seen.expand_as(scores)
    shown = shown.movedim(axis, -1).flatten(0, -2)
    rows = []
    for row, real in zip(moved.flatten(0, -2), shown, strict=True):
        powers = torch.where(real, row.exp(), 0 * row)
        rows.append(powers / powers.sum() if real.any() else powers)
    return torch.stack(rows).view(moved.shape).movedim(-1, axis)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("chunk", [1, 40, 2**18])
@pytest.mark.parametrize("seen", MASKS.values(), ids=MASKS.keys())
def test_it_equals_the_quotients_row_by_row(
    seen: Tensor | None, chunk: int, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankloom.layers.masked_softmax.CHUNK", chunk)
    scores = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    given = scores.detach().clone()
    outputs = [masked_softmax(scores, seen, axis), by_rows(scores, seen, axis)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(scores)
    gradients = [torch.autograd.grad((out * weights).sum(), scores)[0] for out in outputs]
    torch.testing.assert_close(*gradients)
    assert torch.equal(scores, given)


def test_it_has_a_second_derivative() -> None:
    scores = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    seen = torch.rand(2, 1, 3, 4) < 0.7
    assert torch.autograd.gradgradcheck(lambda x: masked_softmax(x, seen), scores)


def test_exported_programs_hold_operations_of_torch_alone() -> None:
    class Weights(torch.nn.Module):
        def forward(self, scores: Tensor, seen: Tensor) -> Tensor:
            return masked_softmax(scores, seen)

    scores, seen = torch.randn(3, 2, 4, 5).double(), torch.rand(3, 1, 4, 5) < 0.6
    program = torch.export.export(Weights(), (scores, seen))
    assert "rankloom" not in str(program.graph)
    torch.testing.assert_close(program.module()(scores, seen), masked_softmax(scores, seen))


@pytest.mark.parametrize("keys", [5, 20])
def test_a_compiled_one_equals_it(keys: int) -> None:
    scores, seen = torch.randn(3, 2, 4, keys), torch.rand(3, 1, 4, keys) < 0.6
    compiled = torch.compile(masked_softmax, backend="aot_eager", fullgraph=True)
    outputs = []
    for function in (masked_softmax, compiled):
        leaf = scores.clone().requires_grad_()
        out = function(leaf, seen)
        out.square().sum().backward()
        outputs.append((out, leaf.grad))
    torch.testing.assert_close(*outputs)


def test_it_is_computed_wider_and_given_in_the_scores_precision() -> None:
    scores, seen = torch.randn(3, 2, 4, 20).bfloat16(), torch.rand(3, 1, 4, 20) < 0.6
    expected = masked_softmax(scores.float(), seen).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_softmax(scores, seen), expected)
        assert masked_softmax(scores.float(), seen).dtype == torch.float32


def test_a_nan_score_is_not_hidden() -> None:
    scores = torch.zeros(1, 1, 2, 3)
    scores[..., 0, 0] = torch.nan
    weights = masked_softmax(scores, torch.ones(1, 1, 1, 3, dtype=torch.bool))
    assert weights[..., 0, :].isnan().all()
    torch.testing.assert_close(weights[..., 1, :], torch.full((1, 1, 3), 1 / 3))


def test_no_rows() -> None:
    assert masked_softmax(torch.zeros(0, 2, 3, 4)).shape == (0, 2, 3, 4)
