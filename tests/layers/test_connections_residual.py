"""Connections that know the last output only, and the stack that holds them."""

import pytest
import torch
from connection_layers import (
    DIM,
    TOKENS,
    assert_equal_with_gradients,
    drawn,
    small_layers,
    small_tokens,
)
from torch import Tensor, nn

from rankloom.layers.connections.layers import ConnectedStack, SkippedLayers, last_tokens
from rankloom.layers.connections.residual import (
    Identity,
    Learnable,
    PostNorm,
    SiameseNorm,
)
from rankloom.layers.connections.skips import SkipKind, build_skips

PYRAMID = pytest.mark.parametrize("pyramid", [False, True], ids=["same tokens", "pyramid"])


def cut(x: Tensor, update: Tensor) -> Tensor:
    return x[:, len(x[0]) - len(update[0]) :]


def token_by_token(function, x: Tensor, update: Tensor) -> Tensor:
    """`function` of each token's vector and its update."""
    rows = zip(cut(x, update), update, strict=True)
    return torch.stack(
        [torch.stack([function(t, u) for t, u in zip(*row, strict=True)]) for row in rows]
    )


@PYRAMID
def test_identity_adds(pyramid: bool) -> None:
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()
    expected = x
    for layer in layers:
        expected = token_by_token(torch.add, expected, layer(expected))
    assert_equal_with_gradients(Identity(DIM)(x, list(layers)), expected, [x, *layers.parameters()])


def test_identity_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0]]])
    layers = [lambda t: 2 * t, lambda t: t - 1]
    assert Identity(2)(x, layers).tolist() == [[[5.0, 11.0]]]


def learnable(kind: SkipKind, num_layers: int) -> Learnable:
    return Learnable(build_skips(kind, DIM, num_layers), DIM)


@PYRAMID
@pytest.mark.parametrize(("kind", "width"), [("scalar", 1), ("vector", DIM)])
def test_scale_weighs_the_skip(kind: SkipKind, width: int, pyramid: bool) -> None:
    connection = drawn(learnable(kind, 3))
    assert sum(p.numel() for p in connection.parameters()) == 3 * width
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()
    expected = x
    for number, layer in enumerate(layers):
        scale = connection.skips[number].scale
        expected = token_by_token(lambda t, u, s=scale: s * t + u, expected, layer(expected))
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


@PYRAMID
def test_matrix_weighs_the_skip(pyramid: bool) -> None:
    connection = drawn(learnable("matrix", 3))
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()
    expected = x
    for number, layer in enumerate(layers):
        weight = connection.skips[number].weight
        expected = token_by_token(lambda t, u, w=weight: w @ t + u, expected, layer(expected))
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


@pytest.mark.parametrize("kind", ["scalar", "vector", "matrix"])
def test_learnable_starts_as_the_identity(kind: SkipKind) -> None:
    layers, x = list(small_layers(2)), small_tokens()
    torch.testing.assert_close(learnable(kind, 2).double()(x, layers), Identity(DIM)(x, layers))


@PYRAMID
def test_post_norm_normalises_every_sum(pyramid: bool) -> None:
    connection = drawn(PostNorm([nn.LayerNorm(DIM) for _ in range(3)], DIM))
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()

    def normalised(z: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = z - z.mean()
        return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias

    expected = x
    for norm, layer in zip(connection.norms, layers, strict=True):
        expected = token_by_token(
            lambda t, u, n=norm: normalised(t + u, n), expected, layer(expected)
        )
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


@PYRAMID
def test_siamese_norm_keeps_two_streams(pyramid: bool) -> None:
    norms = [nn.RMSNorm(DIM, eps=1e-6) for _ in range(4)]
    streams = [nn.RMSNorm(DIM, eps=1e-6) for _ in range(3)]
    connection = drawn(SiameseNorm(norms, streams, DIM))
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()

    def rms(z: Tensor, norm: nn.RMSNorm) -> Tensor:
        return z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    normed = raw = x
    for number, layer in enumerate(layers):
        update = layer(normed + rms(raw, norms[number]))
        normed = rms(cut(normed, update) + update, streams[number])
        raw = cut(raw, update) + update
    expected = normed + rms(raw, norms[3])
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


def test_wrong_number_of_layers_is_an_error() -> None:
    x = small_tokens()
    for connection in (
        learnable("matrix", 2).double(),
        PostNorm([nn.Identity()] * 2, DIM),
    ):
        with pytest.raises(ValueError, match="longer|shorter"):
            connection(x, list(small_layers(3)))


def test_last_tokens() -> None:
    x = torch.arange(6.0).view(1, 3, 2)
    assert last_tokens(x, x[:, :1]).tolist() == [[[4.0, 5.0]]]
    assert last_tokens(x, x) is x
    assert last_tokens(x, x[:, :0]).shape == (1, 0, 2)
    assert last_tokens(x.unsqueeze(-1), x[:, :2]).shape == (1, 2, 2, 1)


class Shifted(nn.Module):
    """Reads a context, and perhaps a query in place of its tokens; gives the last tokens."""

    def __init__(self, factor: float, num_tokens: int) -> None:
        super().__init__()
        self.factor = factor
        self.num_tokens = num_tokens

    def forward(self, x: Tensor, shift: Tensor, query: Tensor | None = None) -> Tensor:
        read = x if query is None else query
        return (torch.sin(read) * self.factor + shift)[:, read.shape[1] - self.num_tokens :]


@pytest.mark.parametrize("counts", [(5, 5, 5), (5, 3, 3), (3, 3, 2)])
def test_skipped_layers_equal_an_identity_connection(counts: tuple[int, ...]) -> None:
    sublayers = [Shifted(n + 1.0, count) for n, count in enumerate(counts)]
    shift, x = torch.tensor(0.3), small_tokens()
    update = SkippedLayers(sublayers)(x, shift)
    expected = Identity(DIM)(x, [lambda t, layer=layer: layer(t, shift) for layer in sublayers])
    torch.testing.assert_close(last_tokens(x, update) + update, expected)


def test_inputs_go_to_the_first_sublayer() -> None:
    first, second = Shifted(1.0, TOKENS), Shifted(2.0, TOKENS)
    shift, x, query = torch.tensor(0.3), small_tokens(), small_tokens() * 2
    update = first(x, shift, query)
    expected = update + second(x + update, shift)
    actual = SkippedLayers([first, second])(x, shift, query=query)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("per_sublayer", [False, True])
@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (5, 4, 3, 2)], ids=["same tokens", "pyramid"])
def test_stack_of_identities_adds_whatever_it_stands_around(
    per_sublayer: bool, counts: tuple[int, ...]
) -> None:
    a, b, c, d = (Shifted(n + 1.0, count) for n, count in enumerate(counts))
    norm = nn.RMSNorm(DIM).double()
    stack = ConnectedStack([[a, b], [c, d]], Identity(DIM), per_sublayer=per_sublayer, norm=norm)
    shift, x = torch.tensor(0.3), small_tokens()
    expected = Identity(DIM)(x, [lambda t, layer=layer: layer(t, shift) for layer in (a, b, c, d)])
    torch.testing.assert_close(stack(x, shift), norm(expected))
    assert stack.out_dim == DIM
    assert len(stack.layers) == (4 if per_sublayer else 2)


def test_a_connection_around_layers_leaves_their_inner_skips() -> None:
    a, b = Shifted(1.0, TOKENS), Shifted(2.0, TOKENS)
    scale = learnable("scalar", 1).double()
    scale.skips[0].scale.data.fill_(3.0)
    shift, x = torch.tensor(0.3), small_tokens()
    inner = x + a(x, shift)
    expected = 3 * x + a(x, shift) + b(inner, shift)
    torch.testing.assert_close(
        ConnectedStack([[a, b]], scale, per_sublayer=False)(x, shift), expected
    )
