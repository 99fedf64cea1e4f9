import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rankloom.layers import dropout
from rankloom.layers.dropout import FEW_UNITS, Dropout


@pytest.fixture(autouse=True)
def _masks_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors would be left to torch."""
    monkeypatch.setattr(dropout, "FEW_UNITS", 0)


@pytest.mark.parametrize(("units", "own"), [(FEW_UNITS - 1, False), (FEW_UNITS, True)])
def test_few_units_are_left_to_torch(
    units: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "FEW_UNITS", FEW_UNITS)
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(torch.ones(units), 0.5)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.5)(torch.ones(units)), expected) != own


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-3])
def test_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(1000, 1001))
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 4 * (p * (1 - p) / out.numel()) ** 0.5 + 1 / 2**17
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    assert out.double().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / 1e6) ** 0.5)


def test_units_are_drawn_apart() -> None:
    """Neighbours come from one draw of 64 bits: they must not move together."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(40_000, 4)) > 0).double()
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.025


def test_the_gradient_has_the_same_mask() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x, out)
    exact = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def seeded(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return Dropout(0.5)(value)

    assert gradcheck(seeded, exact)
    assert gradgradcheck(seeded, exact)


def test_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(100))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_what_changes_nothing() -> None:
    x = torch.randn(3, 2)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_stays(dtype: torch.dtype) -> None:
    assert Dropout(0.5)(torch.ones(9, dtype=dtype)).dtype == dtype
    out = Dropout(0.25)(torch.ones(9).as_strided((3, 3), (1, 3)))  # not contiguous
    assert out.shape == (3, 3)


def compiled_is_a_mask(backend: str) -> None:
    """Forward and backward have one mask, two calls have two, and the seed decides."""

    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Dropout(0.5)(x), Dropout(0.5)(x)

    compiled = torch.compile(twice, backend=backend, fullgraph=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        x = torch.ones(400, requires_grad=True)
        first, second = compiled(x)
        assert not torch.equal(first, second)
        assert set(first.unique().tolist()) == {0, 2}
        assert 140 < (first > 0).sum() < 260
        first.backward(torch.arange(400.0))
        torch.testing.assert_close(x.grad, first.detach() * torch.arange(400.0))
        drawn.append(first.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_compiled_programs_have_masks() -> None:
    compiled_is_a_mask("aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_compiled_by_inductor_have_masks() -> None:
    compiled_is_a_mask("inductor")


def test_exported_programs_draw_as_torch_does() -> None:
    program = torch.export.export(Dropout(0.5), (torch.ones(50),)).module()
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(torch.ones(50), 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(program(torch.ones(50)), expected)
