"""Operation counts worked by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rankloom.evaluation.cost import OperationCounter


def counted(function, *arguments, inference=False):
    guard = torch.inference_mode() if inference else torch.no_grad()
    with guard, OperationCounter() as counter:
        function(*arguments)
    return counter


def test_linear_is_2mnk_and_its_bias_and_its_bytes():
    for inference in (False, True):
        counter = counted(nn.Linear(5, 3), torch.randn(7, 5), inference=inference)
        assert counter.matmul_flops == 2 * 7 * 3 * 5
        assert counter.other_flops == 7 * 3
        assert counter.bytes_moved == 4 * (7 * 5 + 5 * 3 + 3 + 7 * 3)
    without = counted(nn.Linear(5, 3, bias=False), torch.randn(7, 5))
    assert without.flops == without.matmul_flops == 2 * 7 * 3 * 5


def test_factorisation_machine_pair_sum():
    def pairs(v):  # [batch, fields, dim]
        return 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)

    batch, fields, dim = 4, 6, 8
    counter = counted(pairs, torch.randn(batch, fields, dim))
    squares = fields * dim
    by_hand = 3 * squares + dim + dim + dim + 1  # 2 sums and squares; square; subtract; sum; half
    assert counter.flops == batch * by_hand
    assert counter.matmul_flops == 0


def test_gate_is_two_operations_per_element():
    counter = counted(lambda x, g: x * torch.sigmoid(g), torch.randn(3, 5), torch.randn(3, 5))
    assert counter.flops == 2 * 15
    assert counter.bytes_moved == 4 * 15 * (2 + 3)
    assert counter.flops_by_operation == {"sigmoid": 15, "mul": 15}


def test_layer_norm():
    x = torch.randn(6, 10)
    plain = counted(nn.LayerNorm(10, elementwise_affine=False), x)
    assert plain.flops == 6 * (5 * 10 + 2)
    assert counted(nn.LayerNorm(10), x).flops == 6 * (7 * 10 + 2)
    assert counted(nn.LayerNorm(10, bias=False), x).flops == 6 * (6 * 10 + 2)


def test_layer_norm_written_out_costs_the_same():
    def written(x):
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt((centred**2).mean(1, keepdim=True) + 1e-5)

    x = torch.randn(6, 10)
    fused = counted(nn.LayerNorm(10, elementwise_affine=False), x)
    assert counted(written, x).flops == fused.flops


def test_batch_norm_at_evaluation_and_in_training():
    x = torch.randn(12, 4)
    assert counted(nn.BatchNorm1d(4).eval(), x).flops == 12 * 4 * 4 + 2 * 4
    assert counted(nn.BatchNorm1d(4, affine=False).eval(), x).flops == 12 * 4 * 2 + 2 * 4
    layer = nn.BatchNorm1d(4)
    layer.num_batches_tracked = None  # the counter's own addition is integer work anyway
    assert counted(layer, x).flops == 12 * 4 * 7 + 2 * 4


def test_softmax_attention_by_hand_and_fused():
    batch, heads, length, dim = 2, 3, 5, 4

    def written(q, k, v):
        scores = (q @ k.transpose(-1, -2)) * dim**-0.5
        return scores.softmax(-1) @ v

    q, k, v = (torch.randn(batch, heads, length, dim) for _ in range(3))
    scores = batch * heads * length * length
    products = 2 * (2 * scores * dim)
    for inference in (False, True):
        counter = counted(written, q, k, v, inference=inference)
        assert counter.matmul_flops == products
        assert counter.other_flops == scores * (1 + 5)
        fused = counted(functional.scaled_dot_product_attention, q, k, v, inference=inference)
        assert fused.matmul_flops == products
        assert fused.other_flops == scores * (1 + 5)


def test_products_equal_torchs_own_counter():
    a, b = torch.randn(6, 5), torch.randn(5, 7)
    three, weight = torch.randn(2, 6, 5), torch.randn(2, 5, 4)
    conv = nn.Conv1d(5, 8, 3)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # with dropout
    work = {
        "mm": lambda: a @ b,
        "addmm": lambda: torch.addmm(torch.zeros(7), a, b),
        "bmm": lambda: three @ weight,
        "baddbmm": lambda: torch.baddbmm(torch.zeros(2, 6, 4), three, weight),
        "einsum": lambda: torch.einsum("btd,de->bte", three, b),
        "bilinear": lambda: torch.einsum("bid,dk,bjk->bij", three, b, torch.randn(2, 6, 7)),
        "conv": lambda: conv(three.transpose(1, 2)),
        "linear": lambda: functional.linear(three, b.T),
    }
    for name, run in work.items():
        with FlopCounterMode(display=False) as reference:
            run()
        counter = counted(run)
        assert counter.matmul_flops == reference.get_total_flops() > 0, name
    x = torch.randn(3, 4, 8)
    with FlopCounterMode(display=False) as reference:
        encoder(x)
    assert counted(encoder, x).matmul_flops == reference.get_total_flops() > 0


def test_products_with_a_vector_count_though_torch_leaves_them_out():
    a, x = torch.randn(6, 5), torch.randn(5)
    assert counted(lambda: a @ x).matmul_flops == 2 * 30
    assert counted(lambda: x @ x).matmul_flops == 2 * 5


@pytest.mark.parametrize(
    ("function", "per_element"),
    [
        (torch.exp, 1),
        (torch.tanh, 1),
        (torch.relu, 1),
        (functional.silu, 2),
        (functional.gelu, 5),
        (functional.softplus, 2),
        (lambda x: x + 1, 1),
        (lambda x: torch.add(x, x, alpha=2), 2),
        (lambda x: torch.where(x > 0, x, -x), 3),
        (lambda x: x.clone().add_(1), 1),
        (lambda x: x.masked_fill(torch.ones(2, 6, dtype=torch.bool), 0.0), 1),
        (lambda x: torch.cat([x, x]), 0),
        (lambda x: x.t().contiguous(), 0),
        (lambda x: x.to(torch.bfloat16), 0),
        (lambda x: x.sum(), 1),
        (lambda x: x.mean(1), 1),
        (lambda x: x.amax(0), 1),
        (lambda x: torch.maximum(x, x), 1),
        (lambda x: torch.max(x, x), 1),
        (lambda x: x.cumsum(1), 1),
        (lambda x: x.softmax(1), 5),
    ],
)
def test_operations_per_element(function, per_element):
    assert counted(function, torch.randn(2, 6)).flops == per_element * 12


def test_reductions_end_with_a_root_or_logarithm_per_row_and_sort_compares():
    x = torch.randn(3, 8)
    assert counted(lambda: x.log_softmax(1)).flops == 5 * 24 + 3
    assert counted(lambda: x.logsumexp(1)).flops == 4 * 24 + 3
    assert counted(lambda: x.std(1)).flops == 4 * 24 + 3
    assert counted(lambda: torch.linalg.vector_norm(x)).flops == 2 * 24 + 1
    assert counted(lambda: x.sort(1)).flops == 24 * 3


def test_integer_work_is_no_floating_point_operation_and_moves_bytes():
    ids = torch.arange(12, dtype=torch.int32).view(3, 4)
    counter = counted(lambda: ids + torch.arange(4, dtype=torch.int32))
    assert counter.flops == 0
    assert counter.bytes_moved == 4 * (12 + 4 + 12) + 4 * 4  # the arange writes its four


def test_a_gather_moves_what_it_picks_and_not_the_table():
    table, ids = torch.randn(1_000_000, 2), torch.tensor([[1, 5], [7, 7]])
    counter = counted(lambda: functional.embedding(ids, table))
    assert counter.flops == 0
    assert counter.bytes_moved == 4 * 8 + 2 * (4 * 2 * 4)
    assert counted(lambda: table.index_select(0, ids[0])).bytes_moved == 2 * 8 + 2 * (2 * 2 * 4)


def test_embedding_bag_adds_what_it_gathers():
    table = torch.randn(100, 4)
    ids, offsets = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2])

    def bag(mode, weights=None):
        return counted(
            lambda: functional.embedding_bag(
                ids, table, offsets, mode=mode, per_sample_weights=weights
            )
        )

    assert bag("sum").flops == 5 * 4
    assert bag("mean").flops == 5 * 4 + 2 * 4
    assert bag("sum", torch.rand(5)).flops == 2 * 5 * 4
    assert bag("sum").bytes_moved < 400  # the table alone is 1,600


def test_scatter_add_counts_what_it_adds():
    target, index, source = torch.zeros(50), torch.tensor([1, 1, 4]), torch.ones(3)
    assert counted(lambda: target.scatter_add(0, index, source)).flops == 3
    assert counted(lambda: target.index_add(0, index, source)).flops == 3


def test_views_cost_nothing_and_broadcast_inputs_are_read_once():
    x = torch.randn(4, 6)
    views = counted(lambda: x.view(2, 12).transpose(0, 1)[1:].unsqueeze(0).expand(5, -1, -1))
    assert (views.flops, views.bytes_moved) == (0, 0)
    wide = counted(lambda: x[0].expand(4, 6) * x)
    assert wide.bytes_moved == 4 * (6 + 24 + 24)
    assert counted(lambda: x.copy_(torch.ones(1))).bytes_moved >= 4 * 24


def test_a_backward_pass_inside_is_counted():
    x = torch.randn(6, 5, requires_grad=True)
    weight = torch.randn(5, 3, requires_grad=True)
    with OperationCounter() as counter:
        (x @ weight).sum().backward()
    assert counter.matmul_flops == 3 * 2 * 6 * 5 * 3


def test_a_transformer_layer_counts_the_same_in_training_and_at_evaluation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(3, 4, 8)
    trained = counted(layer, x)
    assert torch.backends.mha.get_fastpath_enabled()
    assert counted(layer.eval(), x).matmul_flops == trained.matmul_flops > 0


def test_recurrent_layers_count_their_gates():
    counter = counted(nn.GRU(4, 5, batch_first=True), torch.randn(2, 3, 4))
    assert counter.matmul_flops == 2 * (2 * 3) * 15 * (4 + 5)
    biases, gates = 2 * (6 * 15), 6 * 5 * 10
    # per unit and step: 2 gate additions, 2 sigmoids, product, addition, tanh, the blend's three
    assert counter.other_flops == biases + gates
