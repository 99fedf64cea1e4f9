import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.spectrum import layer_inputs, spectra, spectrum


def test_two_directions_worked_by_hand() -> None:
    # About their mean (5, 5) the vectors spread by 2 along the first axis and by 1 along the other.
    vectors = torch.tensor([[7.0, 5.0], [3.0, 5.0], [5.0, 6.0], [5.0, 4.0]])
    found = spectrum(vectors, "rows")
    assert (found.view, found.vectors, found.width) == ("rows", 4, 2)
    assert found.singular_values == pytest.approx((1.0, 0.5))
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert found.participation_ratio == pytest.approx(1 / (0.8**2 + 0.2**2))
    assert found.variance_share == pytest.approx({1: 0.8, 2: 1.0})


def test_equal_directions_use_all_dimensions_and_one_direction_one() -> None:
    full = spectrum(torch.cat([torch.eye(3), -torch.eye(3)]), "tokens")
    assert full.effective_rank == pytest.approx(3)
    assert full.participation_ratio == pytest.approx(3)
    assert full.variance_share == pytest.approx({1: 1 / 3, 2: 2 / 3})
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0, -1.0]]) + 3
    flat = spectrum(line, "rows")
    assert flat.effective_rank == pytest.approx(1, abs=1e-6)
    assert flat.participation_ratio == pytest.approx(1)


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (9, 9), (1 + 4, 4)])
def test_equals_the_singular_values_of_the_centred_matrix(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    vectors = torch.randn(shape, generator=generator) @ torch.randn(
        shape[1], shape[1], generator=generator
    )
    found = spectrum(vectors, "rows")
    x = vectors.double().numpy()
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p, v = values / values.sum(), values**2 / (values**2).sum()
    assert len(found.singular_values) == min(shape)
    np.testing.assert_allclose(found.singular_values, values / values[0], atol=1e-7)
    p = p[p > 1e-12]
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert found.participation_ratio == pytest.approx(1 / (v**2).sum())
    for k, share in found.variance_share.items():
        assert share == pytest.approx(v[:k].sum())
    assert list(found.variance_share) == [2**n for n in range(len(values)) if 2**n <= len(values)]


@pytest.mark.parametrize("vectors", [torch.full((5, 3), 0.1), torch.zeros(4, 2), torch.ones(1, 4)])
def test_what_never_changes_has_no_rank(vectors: Tensor) -> None:
    found = spectrum(vectors, "rows")
    assert set(found.singular_values) == {0.0}
    assert math.isnan(found.effective_rank)
    assert math.isnan(found.participation_ratio)
    assert all(math.isnan(share) for share in found.variance_share.values())


def test_rounding_about_a_constant_is_no_direction() -> None:
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 1e-9
    assert math.isnan(spectrum(1 + noise.double(), "rows").effective_rank)
    assert not math.isnan(spectrum(noise.double(), "rows").effective_rank)


def test_views() -> None:
    inputs = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1))
    rows, tokens = spectra(inputs)
    assert rows == spectrum(inputs.reshape(6, 6), "rows")
    assert tokens == spectrum(inputs.reshape(18, 2), "tokens")
    assert [found.view for found in spectra(inputs[:, 0])] == ["rows"]
    further = spectra(inputs[:, :, None])[1]
    assert further == tokens


def test_wrong_vectors() -> None:
    with pytest.raises(ValueError, match=r"a spectrum needs vectors; got shape \(0, 3\)"):
        spectrum(torch.zeros(0, 3), "rows")
    with pytest.raises(ValueError, match="a spectrum needs finite values"):
        spectrum(torch.tensor([[1.0, math.inf]]), "rows")


class Inner(nn.Module):
    """A model with a module called twice, one never called, and inputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Identity()
        self.ids = nn.Identity()
        self.twice = nn.Linear(2, 2)
        self.mean = nn.Identity()
        self.unused = nn.Linear(2, 2)
        self.named = Named()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2, 1)

    def forward(self, batch: Batch) -> Tensor:
        x = self.read(batch).numeric
        self.ids(batch.categorical)
        x = self.dropout(self.twice(self.twice(x)))
        self.mean(x.mean(0, keepdim=True))
        return self.head(self.named(scale=2.0, x=x))


class Named(nn.Module):
    def forward(self, scale: float, x: Tensor) -> Tensor:
        return scale * x


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            categorical=torch.zeros(size, 1, dtype=torch.int32),
            numeric=torch.randn(size, 2, generator=generator),
            labels=torch.zeros(size, 1),
        )
        for size in sizes
    ]


def test_layer_inputs() -> None:
    model = Inner()
    model.head.eval()
    given = batches(4, 3)
    modules = dict(model.named_modules())
    found = layer_inputs(model, modules, given)
    assert list(found) == ["twice", "named", "dropout", "head"]  # in the order of `modules`
    x = torch.cat([batch.numeric for batch in given])
    assert torch.equal(found["twice"], x)  # the first of its two calls
    with torch.no_grad():
        second = model.twice(model.twice(x))
    torch.testing.assert_close(found["dropout"], second)
    torch.testing.assert_close(found["named"], second)  # nothing dropped, found by its name
    torch.testing.assert_close(found["head"], 2 * second)
    assert model.training
    assert not model.head.training
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_hooks_leave_after_an_error() -> None:
    model = Inner()
    broken = Batch(categorical=torch.zeros(2, 1, dtype=torch.int32), numeric=torch.zeros(2, 5))
    with pytest.raises(RuntimeError):
        layer_inputs(model, dict(model.named_modules()), [broken])
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_inputs_are_what_the_model_gives_in_float32() -> None:
    model = Inner()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer_inputs(model, {"head": model.head}, batches(5))
    expected = layer_inputs(model, {"head": model.head}, batches(5))
    assert torch.equal(found["head"], expected["head"])
