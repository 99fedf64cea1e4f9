import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.layers.attention import SelfAttention, attention, attention_of_heads


@pytest.fixture(
    autouse=True, params=[(0, 0), (64, 0), (64, 16)], ids=["torch's kernel", "plain", "keys first"]
)
def few_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways to compute it."""
    few, vector = request.param
    monkeypatch.setattr("rankloom.layers.attention.FEW_KEYS", few)
    monkeypatch.setattr("rankloom.layers.attention.VECTOR_KEYS", vector)


def by_loops(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scaled: bool, mask: Tensor | None = None
) -> Tensor:
    """One row, one head and one query at a time; `mask` is [batch, heads, queries, keys]."""
    width, value_width = q.shape[2] // num_heads, v.shape[2] // num_heads
    rows = []
    for row in range(q.shape[0]):
        queries = []
        for query in range(q.shape[1]):
            heads = []
            for head in range(num_heads):
                piece = slice(head * width, (head + 1) * width)
                value_piece = slice(head * value_width, (head + 1) * value_width)
                weights = []
                for key in range(k.shape[1]):
                    product = (q[row, query, piece] * k[row, key, piece]).sum()
                    weight = torch.exp(product / (math.sqrt(width) if scaled else 1))
                    if mask is not None and not mask[row, head, query, key]:
                        weight = 0 * weight
                    weights.append(weight)
                total = sum(weights)
                share = [w / total if total > 0 else w for w in weights]
                heads.append(sum(a * v[row, key, value_piece] for key, a in enumerate(share)))
            queries.append(torch.cat(heads))
        rows.append(torch.stack(queries))
    return torch.stack(rows)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def equal_with_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(actual)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (actual, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_worked_by_hand() -> None:
    # Products 0 and ln 3: the weights are 1/4 and 3/4.
    q = torch.tensor([[[1.0, 0.0]]])
    k = torch.tensor([[[0.0, 5.0], [math.log(3.0), 7.0]]])
    v = torch.tensor([[[4.0, 8.0, 0.0], [0.0, 4.0, -4.0]]])
    torch.testing.assert_close(attention(q, k, v, scaled=False), torch.tensor([[[1.0, 5.0, -3.0]]]))
    # A width of two divides the products by sqrt(2).
    scaled = attention(math.sqrt(2) * q, k, v)
    torch.testing.assert_close(scaled, torch.tensor([[[1.0, 5.0, -3.0]]]))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_equals_the_loops(num_heads: int, scaled: bool) -> None:
    q, k, v = random(3, 2, 4), random(3, 5, 4), random(3, 5, 6)
    actual = attention(q, k, v, num_heads=num_heads, scaled=scaled)
    equal_with_gradients(actual, by_loops(q, k, v, num_heads, scaled), [q, k, v])


def test_masks_of_every_axis_equal_the_loops() -> None:
    q, k, v = random(2, 3, 4), random(2, 5, 4), random(2, 5, 4)
    full = torch.rand(2, 2, 3, 5) < 0.6
    full[..., 0] = True
    for mask in (full, full[:, :1], full[:, :1, :1], full[:1]):
        actual = attention(q, k, v, num_heads=2, mask=mask)
        expected = by_loops(q, k, v, 2, True, mask.expand(2, 2, 3, 5))
        equal_with_gradients(actual, expected, [q, k, v])


def test_a_query_without_keys_gives_zeros_and_finite_gradients() -> None:
    q, k, v = random(2, 3, 4), random(2, 5, 4), random(2, 5, 4)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[0] = False
    out = attention(q, k, v, num_heads=2, mask=mask)
    assert not out[0].any()
    torch.testing.assert_close(out[1], attention(q, k, v, num_heads=2)[1])
    for gradient in torch.autograd.grad(out.sum(), [q, k, v]):
        assert gradient.isfinite().all()


def test_hidden_keys_change_nothing() -> None:
    q, k, v = random(2, 3, 4), random(2, 5, 4), random(2, 5, 4)
    mask = torch.tensor([True, True, True, False, False]).reshape(1, 1, 1, 5)
    torch.testing.assert_close(
        attention(q, k, v, mask=mask), attention(q, k[:, :3], v[:, :3], num_heads=1)
    )


def test_causal_attention_is_that_of_a_lower_triangle() -> None:
    q, k, v = (random(2, 3, 5, 4) for _ in range(3))
    before = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    equal_with_gradients(
        attention_of_heads(q, k, v, causal=True),
        attention_of_heads(q, k, v, mask=before),
        [q, k, v],
    )


def test_a_bias_is_added_to_the_products() -> None:
    q, k, v, bias = random(2, 3, 4, 6), random(2, 3, 5, 6), random(2, 3, 5, 6), random(1, 3, 4, 5)
    hidden = torch.zeros(4, 5, dtype=torch.bool)
    hidden[0, 1:] = hidden[2, 0] = True
    expected = ((q @ k.mT + bias).masked_fill(hidden, -torch.inf)).softmax(-1) @ v
    equal_with_gradients(
        attention_of_heads(q, k, v, scaled=False, bias=bias.masked_fill(hidden, -torch.inf)),
        expected,
        [q, k, v, bias],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [20, 100])
def test_low_precision_agrees_with_double(dtype: torch.dtype, keys: int) -> None:
    q, k, v = (torch.randn(2, 3, keys, 8).to(dtype) for _ in range(3))
    mask = torch.rand(2, 1, keys, keys) < 0.7
    exact = attention_of_heads(q.double(), k.double(), v.double(), mask=mask)
    error = (attention_of_heads(q, k, v, mask=mask).double() - exact).abs().max()
    assert error < 16 * torch.finfo(dtype).eps  # scores are several times one


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    q, k = torch.zeros(4000, 1, 2), torch.zeros(4000, 4, 2)
    v = torch.eye(4).expand(4000, 4, 4)
    weights = attention(q, k, v, dropout=0.5)  # each 1/4, dropped or doubled
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    torch.testing.assert_close(weights.mean(), torch.tensor(0.25), atol=0.01, rtol=0)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_any_number_of_rows_and_one_token(rows: int) -> None:
    x = torch.randn(rows, 1, 4)
    # One token attends to itself alone.
    torch.testing.assert_close(attention(x, x, x, num_heads=2), x)


@pytest.mark.parametrize("bias", [False, True])
def test_self_attention_is_torchs_without_its_last_projection(bias: bool) -> None:
    ours = SelfAttention(6, 6, 3, bias=bias)
    theirs = nn.MultiheadAttention(6, 3, bias=bias, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project.weight)
        if bias:
            theirs.in_proj_bias.copy_(ours.project.bias.normal_())
        theirs.out_proj.weight.copy_(torch.eye(6))
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    hidden = torch.tensor([False, False, True, True])
    expected = theirs(x, x, x, key_padding_mask=hidden.expand(5, 4), need_weights=False)[0]
    torch.testing.assert_close(ours(x, ~hidden.reshape(1, 1, 1, 4)), expected)


@pytest.mark.parametrize("in_dim", [3, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_self_attention_equals_its_projections(in_dim: int, residual: bool) -> None:
    layer = SelfAttention(in_dim, 4, 2, scaled=False, residual=residual).double()
    x = random(3, 5, in_dim)
    projected = residual and in_dim != 4
    assert layer.project.weight.shape == (16 if projected else 12, in_dim)
    q, k, v = (x @ layer.project.weight[4 * i : 4 * i + 4].T for i in range(3))
    expected = by_loops(q, k, v, 2, scaled=False)
    if residual:
        expected = expected + (x @ layer.project.weight[12:].T if projected else x)
    equal_with_gradients(layer(x), expected, [x, *layer.parameters()])


@pytest.mark.parametrize("bias", [False, True])
def test_streams_of_their_own_are_projected_by_their_own_weights(bias: bool) -> None:
    layer = SelfAttention(6, 4, num_heads=2, bias=bias).double()
    if bias:
        nn.init.normal_(layer.project.bias)
    q, k, v = random(2, 5, 6), random(2, 5, 6), random(2, 5, 6)
    mask = torch.rand(2, 1, 5, 5) > 0.3
    projected = [layer.project(x).chunk(3, dim=-1)[n] for n, x in enumerate((q, k, v))]
    expected = attention(*projected, num_heads=2, mask=mask)
    equal_with_gradients(layer.of_streams(q, k, v, mask), expected, [q, k, v, *layer.parameters()])
    torch.testing.assert_close(layer.of_streams(q, q, q, mask), layer(q, mask))


def test_every_projection_starts_as_a_matrix_of_its_own() -> None:
    layer = SelfAttention(64, 128, 2, residual=True)
    for weight in layer.project.weight.chunk(4):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 128)), rel=0.05)


def test_self_attention_drops_in_training_only() -> None:
    layer = SelfAttention(4, 4, 2, dropout=0.5)
    x = torch.randn(6, 5, 4)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    whole = SelfAttention(4, 4, 2)
    whole.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), whole(x))


def test_autocast_stays_close() -> None:
    layer = SelfAttention(8, 8, 2, residual=True)
    x = torch.randn(30, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x).float()
    exact = layer(x)
    assert (rounded - exact).abs().max() / exact.abs().max() < 2**-6


def test_what_queries_may_attend_to_is_said_once() -> None:
    q = torch.randn(1, 1, 3, 4)
    everywhere = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="exclude each other"):
        attention_of_heads(q, q, q, mask=everywhere, causal=True)
    with pytest.raises(ValueError, match="exclude each other"):
        attention_of_heads(q, q, q, bias=torch.zeros(1, 1, 3, 3), causal=True)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads must divide dim; got dim=64, num_heads=5"):
        SelfAttention(3, 64, 5)
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"num_heads must divide dim; got dim=3, num_heads=2"):
        attention(x, x, x[..., :3], num_heads=2)
