"""DenseFormer and ANCRe against their equations."""

import pytest
import torch
from connection_layers import (
    DIM,
    TOKENS,
    assert_equal_with_gradients,
    drawn,
    saved_bytes,
    small_layers,
    small_tokens,
)
from torch import Tensor

from rankloom.layers.connections.dense import ANCRe, DenseFormer
from rankloom.layers.connections.products import LayerNormProduct, RMSProduct, mixture
from rankloom.layers.connections.residual import Identity

PYRAMID = pytest.mark.parametrize("pyramid", [False, True], ids=["same tokens", "pyramid"])


def cut(x: Tensor, update: Tensor) -> Tensor:
    return x[:, x.shape[1] - update.shape[1] :]


def denseformer_by_sums(connection: DenseFormer, x: Tensor, layers, dilation: int, period: int):
    """The equation with its indices: block i mixes X_j with j <= i+1 and j = i+1 modulo k."""
    outputs, weights = {0: x}, list(connection.weights)
    for i, layer in enumerate(layers):
        update = layer(x)
        outputs[i + 1] = x = cut(x, update) + update
        if (i + 1) % period == 0:
            numbers = [j for j in range(i + 2) if (i + 1 - j) % dilation == 0]
            alpha = weights.pop(0)
            assert len(alpha) == len(numbers)
            x = sum(alpha[n] * cut(outputs[j], update) for n, j in enumerate(numbers))
    assert not weights
    return x


@PYRAMID
@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (4, 1)])
def test_denseformer_equals_its_equation(dilation: int, period: int, pyramid: bool) -> None:
    connection = drawn(DenseFormer(DIM, 4, dilation=dilation, period=period))
    layers, x = small_layers(4, pyramid=pyramid), small_tokens()
    expected = denseformer_by_sums(connection, x, layers, dilation, period)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


def test_denseformer_by_hand() -> None:
    connection = DenseFormer(1, 2)
    connection.weights[0].data = torch.tensor([2.0, 1.0])
    connection.weights[1].data = torch.tensor([1.0, 10.0, 100.0])
    # X0 = 3; X1 = 3 + 1 = 4, x1 = 2*3 + 4 = 10; X2 = 10 + 1 = 11, x2 = 3 + 40 + 1100
    assert connection(torch.full((1, 1, 1), 3.0), [torch.ones_like] * 2).item() == 1143.0


@pytest.mark.parametrize(
    ("dilation", "period", "counts"),
    [(1, 1, [2, 3, 4, 5]), (2, 1, [1, 2, 2, 3]), (4, 1, [1, 1, 1, 2]), (1, 2, [3, 5])],
)
def test_denseformer_has_as_many_weights_as_the_paper(
    dilation: int, period: int, counts: list[int]
) -> None:
    connection = DenseFormer(DIM, 4, dilation=dilation, period=period)
    assert [len(weights) for weights in connection.weights] == counts
    assert [weights.tolist() for weights in connection.weights] == [
        [0.0] * (count - 1) + [1.0] for count in counts
    ]


@pytest.mark.parametrize("settings", [{}, {"dilation": 2}, {"period": 2}])
def test_denseformer_starts_as_the_identity_connection(settings: dict[str, int]) -> None:
    layers, x = list(small_layers(4)), small_tokens()
    connection = DenseFormer(DIM, 4, **settings).double()
    torch.testing.assert_close(connection(x, layers), Identity(DIM)(x, layers))


@PYRAMID
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_ancre_equals_its_equation(temperature: float, pyramid: bool) -> None:
    connection = drawn(ANCRe(DIM, 4, temperature=temperature), std=temperature)
    layers, x = small_layers(4, pyramid=pyramid), small_tokens()
    read = [x]
    for number, layer in enumerate(layers):
        update = layer(read[-1])
        theta = connection.logits[number - 1] if number else torch.zeros(1)
        p = torch.exp(theta / temperature)
        skip = sum(p[i] / p.sum() * cut(read[i], update) for i in range(number + 1))
        read.append(update + skip)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), read[-1], inputs)


def test_ancre_starts_as_the_mean_of_what_was_read() -> None:
    x = torch.full((1, 1, 1), 2.0)
    # 2 + 1 = 3; (2 + 3)/2 + 1 = 3.5; (2 + 3 + 3.5)/3 + 1
    assert ANCRe(1, 3)(x, [torch.ones_like] * 3).item() == pytest.approx(8.5 / 3 + 1)


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_ancre_learns_a_number_for_every_pair_but_the_first(num_layers: int) -> None:
    connection = ANCRe(DIM, num_layers)
    count = sum(p.numel() for p in connection.parameters())
    assert count == num_layers * (num_layers + 1) // 2 - 1
    layers, x = list(small_layers(num_layers)), small_tokens()
    assert connection.double()(x, layers).shape == x.shape


def test_ancre_with_all_weight_on_the_newest_is_the_identity_connection() -> None:
    connection = ANCRe(DIM, 4).double()
    for logits in connection.logits:
        logits.data[-1] = 1.0  # exp(100) times the others
    layers, x = list(small_layers(4)), small_tokens()
    torch.testing.assert_close(connection(x, layers), Identity(DIM)(x, layers))


@pytest.mark.parametrize("build", [DenseFormer, ANCRe])
def test_memory_grows_with_depth_and_not_its_square(build) -> None:
    def kept(num_layers: int) -> int:
        connection, x = build(DIM, num_layers).double(), torch.randn(50, TOKENS, DIM).double()
        layers = list(small_layers(num_layers))
        return saved_bytes(lambda: connection(x, layers))

    four, eight, sixteen = kept(4), kept(8), kept(16)
    assert sixteen - eight <= 2.05 * (eight - four)


@pytest.mark.parametrize("build", [DenseFormer, ANCRe])
def test_full_graph_compiles(build) -> None:
    torch._dynamo.reset()
    connection, layers, x = drawn(build(DIM, 3), std=0.01), small_layers(3), small_tokens()

    def run(x: Tensor) -> Tensor:
        return connection(x, list(layers))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(compiled(x), run(x), inputs)


@pytest.mark.parametrize("build", [DenseFormer, ANCRe])
def test_bf16(build) -> None:
    connection, layers = build(DIM, 3), small_layers(3).float()
    x = small_tokens(torch.float32)
    exact = connection(x, list(layers))
    with torch.autocast("cpu", torch.bfloat16):
        out = connection(x, list(layers))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact, rtol=0.02, atol=0.02)
    out = connection.bfloat16()(x.bfloat16(), list(layers.bfloat16()))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("build", [DenseFormer, ANCRe])
def test_wrong_number_of_layers_is_an_error(build) -> None:
    with pytest.raises(ValueError, match="longer|shorter"):
        build(DIM, 2).double()(small_tokens(), list(small_layers(3)))


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="dilation must be between 1 and .* 2; got 0"):
        DenseFormer(DIM, 2, dilation=0)
    with pytest.raises(ValueError, match="period must be between 1 and .* 2; got 3"):
        DenseFormer(DIM, 2, period=3)
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        ANCRe(DIM, 2, temperature=0.0)
    with pytest.raises(ValueError, match="a mixture needs a value"):
        mixture([], [])


@pytest.mark.parametrize("product", [RMSProduct, LayerNormProduct])
def test_products_are_those_of_normalised_inputs(product) -> None:
    module = drawn(product(DIM, 3))
    x = (torch.randn(4, DIM, dtype=torch.float64) * 2 + 1).requires_grad_()
    centred = x - x.mean(-1, keepdim=True) if product is LayerNormProduct else x
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_equal_with_gradients(module(x), normed @ module.weight, [x, module.weight])
    assert module(x[:0]).shape == (0, 3)
