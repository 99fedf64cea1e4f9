import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rankloom.batch import Batch
from rankloom.config import to_toml
from rankloom.evaluation.cost import (
    Cost,
    OperationCounter,
    measure_cost,
    peak_memory_bytes,
    saved_bytes,
)
from rankloom.layers.masked_softmax import masked_softmax
from rankloom.layers.sinkhorn import sinkhorn_of_many
from rankloom.layers.table import Table
from rankloom.protocols import Loss


class Model(nn.Module):
    """A table, a gate, a normalisation with a buffer, dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.table = Table(50, 4)
        self.gate = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 1, bias=False)

    def forward(self, batch):
        x = self.table(batch.categorical).flatten(1)  # [batch, 8]
        gated = x * torch.sigmoid(self.gate(x))
        return self.head(self.dropout(self.norm(gated)))


class NumericModel(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, batch):
        return self.part(batch.numeric)


def rows(size=16, numeric=8, labels=None):
    generator = torch.Generator().manual_seed(0)
    return Batch(
        categorical=torch.randint(0, 50, (size, 2), generator=generator, dtype=torch.int32),
        numeric=torch.randn(size, numeric, generator=generator),
        labels=labels,
    )


def test_cost_by_hand():
    cost = measure_cost(Model(), rows(16))
    assert cost.embedding_parameters == 50 * 4
    assert cost.dense_parameters == 8 * 8 + 8 + 8 + 8 + 8
    assert cost.parameters == 200 + 96
    assert cost.matmul_flops_per_row == 2 * 8 * 8 + 2 * 8
    # bias 8, gate 16, batch norm 4 * 8 and twice 8 for the whole batch
    assert cost.flops_per_row == cost.matmul_flops_per_row + 8 + 16 + 32 + 2 * 8 / 16
    assert cost.bytes_moved_per_row > 4 * 8 * 6
    assert cost.batch_rows == 16


def test_matrix_products_equal_torchs_counter():
    model, batch = Model().eval(), rows(8)
    with FlopCounterMode(display=False) as reference, torch.no_grad():
        model(batch)
    assert measure_cost(model, batch).matmul_flops_per_row * 8 == reference.get_total_flops()


def test_cost_per_row_does_not_depend_on_the_batch_but_for_shared_work():
    small, large = (measure_cost(Model(), rows(size)) for size in (10, 1000))
    assert small.matmul_flops_per_row == large.matmul_flops_per_row
    assert small.flops_per_row > large.flops_per_row
    assert small.flops_per_row - large.flops_per_row == pytest.approx(16 / 10 - 16 / 1000)


def test_measuring_leaves_the_model_as_it_was():
    model = Model().train()
    model.gate.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure_cost(model, rows())
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.gate.training, model.norm.training) == (True, False, True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cost_under_bf16_has_the_same_operations_and_its_own_memory():
    batch = rows(256, numeric=64)
    model = NumericModel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)))
    full, half = (measure_cost(model, batch, precision=kind) for kind in ("float32", "bf16"))
    assert half.precision == "bf16"
    assert half.flops_per_row == full.flops_per_row
    # float32 keeps the hidden layer; bf16 keeps it at half the width, and the casts of the input
    # and of the head's weight.
    assert full.saved_bytes_per_row * 256 == 256 * 64 * 4
    assert half.saved_bytes_per_row * 256 == 256 * 64 * 2 + 256 * 64 * 2 + 64 * 2


def test_cost_is_a_config_that_records_can_hold():
    cost = measure_cost(Model(), rows())
    assert Cost.model_validate_json(cost.model_dump_json()) == cost
    assert "flops_per_row" in to_toml(cost)


def test_cost_needs_rows():
    with pytest.raises(ValueError, match="on a batch with rows; got one of 0 rows"):
        measure_cost(Model(), rows(0))


def test_saved_bytes_by_hand():
    # x sigmoid(x): sigmoid keeps its output, the product keeps it again and x, which is the batch.
    batch = rows(16, numeric=8)
    gate = NumericModel(lambda x: x * torch.sigmoid(x))
    assert saved_bytes(gate, batch) == 0  # nothing asks for a gradient
    scale = nn.Linear(8, 8)

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, batch):
            x = self.scale(batch.numeric)
            return x * torch.sigmoid(x)

    # The linear layer keeps batch and weight, which are there anyway; then x and sigmoid(x).
    assert saved_bytes(Gate(), batch) == 2 * 16 * 8 * 4


def test_views_of_one_storage_are_saved_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(8, 8)

        def forward(self, batch):
            x = self.scale(batch.numeric)
            return (x[:, :4] * x[:, 4:]).exp().log()

    # x whole (both halves are views of it) and exp's output, which log keeps as its input.
    assert saved_bytes(Shared(), rows(16)) == 16 * 8 * 4 + 16 * 4 * 4


def test_saved_bytes_follow_the_models_own_loss():
    class WithLoss(Model):
        def loss(self, batch):
            return Loss(functional.softplus(self(batch)).exp().sum() + batch.labels.sum())

    labelled = rows(16, labels=torch.ones(16, 1))
    model = WithLoss()
    # softplus keeps the logits, exp its own output: 16 values each.
    assert saved_bytes(model, labelled) - saved_bytes(model, rows(16)) == 2 * 16 * 4


def test_compiled_models_are_counted_as_they_are_written():
    model = NumericModel(nn.Linear(8, 1))
    plain = measure_cost(model, rows())
    model.part = torch.compile(model.part, backend="aot_eager")
    assert measure_cost(model, rows()) == plain


def test_operations_of_our_own_are_counted_by_what_they_do():
    scores = torch.randn(3, 2, 4, 20)
    with OperationCounter() as ours:
        weights = masked_softmax(scores)
    with OperationCounter() as torchs:
        expected = scores.softmax(-1)
    torch.testing.assert_close(weights, expected)
    assert ours.flops == torchs.flops == 5 * scores.numel()
    with OperationCounter() as counter:
        sinkhorn_of_many(torch.randn(7, 4, 4), 20)
    assert counter.flops > 20 * 4 * 7 * 4 * 4  # a step multiplies and adds twice


def test_the_counter_adds_up_over_several_calls():
    with torch.no_grad(), OperationCounter() as counter:
        for _ in range(3):
            torch.ones(4).exp()
    assert counter.flops == 12


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_kernels_high_water_mark_in_bytes():
    reported = peak_memory_bytes()
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    assert reported == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)


@pytest.mark.gpu
def test_cost_and_peak_memory_on_cuda():
    model, batch = Model().cuda(), rows(64).to("cuda")
    assert measure_cost(model, batch).flops_per_row == measure_cost(Model(), rows(64)).flops_per_row
    assert peak_memory_bytes("cuda") > 0
