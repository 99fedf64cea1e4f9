"""MUDD against its equations."""

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
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.connections.mudd import MUDD
from rankloom.layers.connections.residual import Identity


class StreamLayer(nn.Module):
    """Mixes its four inputs in ways that tell them apart; gives the last tokens."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))
        self.num_tokens = num_tokens

    def forward(self, x: Tensor, *, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        streams = (query, key, value, x)
        q, k, v, r = (linear(s) for linear, s in zip(self.linears, streams, strict=True))
        return (torch.sigmoid(q * k) * v + torch.tanh(r))[:, x.shape[1] - self.num_tokens :]


def stream_layers(num_layers: int, *, pyramid: bool = False) -> nn.ModuleList:
    torch.manual_seed(2)
    return nn.ModuleList(StreamLayer(TOKENS - n * pyramid) for n in range(num_layers)).double()


def layers_for(num_streams: int, num_layers: int, *, pyramid: bool = False) -> nn.ModuleList:
    build = stream_layers if num_streams == 4 else small_layers
    return build(num_layers, pyramid=pyramid)


def by_tokens(connection: MUDD, x: Tensor, layers: nn.ModuleList, num_streams: int) -> Tensor:
    """The equations, one token, stream and earlier output at a time."""
    outputs, streams = [x], [x] * num_streams
    for weights, layer in zip(connection.weights, layers, strict=True):
        skip = streams[-1]
        if num_streams == 4:
            update = layer(skip, query=streams[0], key=streams[1], value=streams[2])
        else:
            update = layer(skip)
        kept = update.shape[1]
        newest = skip[:, skip.shape[1] - kept :] + update
        outputs = [output[:, output.shape[1] - kept :] for output in outputs] + [newest]
        made = len(weights.bias)
        rows = []
        for b in range(len(x)):
            tokens = []
            for t in range(kept):
                h = newest[b, t]
                normed = h / (h.square().mean() + 1e-6).sqrt()
                hidden = functional.gelu(normed @ weights.hidden.weight)
                w = (weights.weight @ hidden).view(made, len(outputs)) + weights.bias
                tokens.append(
                    torch.stack(
                        [
                            sum(w[c, j] * outputs[j][b, t] for j in range(len(outputs)))
                            for c in range(made)
                        ]
                    )
                )
            rows.append(torch.stack(tokens))
        streams = list(torch.stack(rows).unbind(2))
    return streams[0]


@pytest.mark.parametrize("pyramid", [False, True], ids=["same tokens", "pyramid"])
@pytest.mark.parametrize("num_streams", [1, 4])
def test_it_equals_the_equations_one_token_at_a_time(num_streams: int, pyramid: bool) -> None:
    connection = drawn(MUDD(DIM, 3, num_streams=num_streams, hidden_multiple=4))
    layers, x = layers_for(num_streams, 3, pyramid=pyramid), small_tokens()
    expected = by_tokens(connection, x, layers, num_streams)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_it_starts_as_the_identity_connection(num_streams: int) -> None:
    layers, x = layers_for(num_streams, 4), small_tokens()
    plain = [lambda t, f=f: f(t, query=t, key=t, value=t) for f in layers]
    expected = Identity(DIM)(x, plain if num_streams == 4 else list(layers))
    connection = MUDD(DIM, 4, num_streams=num_streams).double()
    torch.testing.assert_close(connection(x, list(layers)), expected)


def test_the_first_layer_reads_the_input_and_the_others_their_streams() -> None:
    connection = MUDD(DIM, 2, num_streams=4).double()
    connection.weights[0].bias.data = torch.eye(4, 2).double()  # q: h0, k: h1, v and r: nothing
    calls = []

    def layer(x: Tensor, **inputs: Tensor) -> Tensor:
        calls.append((x, inputs))
        return torch.ones_like(x)

    x = small_tokens()
    connection(x, [layer, layer])
    (first, first_inputs), (second, second_inputs) = calls
    assert all(stream.equal(x) for stream in (first, *first_inputs.values()))
    torch.testing.assert_close(second_inputs["query"], x)
    torch.testing.assert_close(second_inputs["key"], x + 1)
    assert not second_inputs["value"].any()
    assert not second.any()


def test_hidden_widths_are_those_of_the_public_code() -> None:
    widths = [part.weight.shape[1] for part in MUDD(DIM, 16).weights]
    # (4 (i + 2) // 64 + 1) 64, after the last layer (4 * 17 // 64 + 1) 64
    assert widths == [64] * 14 + [128, 128]
    assert [part.bias.shape for part in MUDD(DIM, 2).weights] == [(4, 2), (1, 3)]
    assert MUDD(DIM, 2, hidden_multiple=4).weights[1].weight.shape == (3, 16)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_memory_of_outputs_grows_with_depth_and_not_its_square(num_streams: int) -> None:
    """Outputs are wide here, so that the weights of all earlier ones hardly count."""
    wide = 512

    def kept(num_layers: int) -> int:
        connection = MUDD(wide, num_layers, num_streams=num_streams)
        x = torch.randn(50, TOKENS, wide, requires_grad=True)
        layers = [lambda x, **streams: torch.tanh(x)] * num_layers
        return saved_bytes(lambda: connection(x, layers)) - sum(
            4 * p.numel() for p in connection.parameters()
        )

    four, eight, sixteen = kept(4), kept(8), kept(16)
    assert sixteen - eight <= 2.2 * (eight - four)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_full_graph_compiles(num_streams: int) -> None:
    torch._dynamo.reset()
    connection = drawn(MUDD(DIM, 2, num_streams=num_streams, hidden_multiple=4))
    layers, x = layers_for(num_streams, 2), small_tokens()

    def run(x: Tensor) -> Tensor:
        return connection(x, list(layers))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(compiled(x), run(x), inputs)


def test_autocast_does_not_round_the_skip() -> None:
    connection, x = MUDD(DIM, 8), small_tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = connection(x, [lambda t, **streams: torch.zeros_like(t)] * 8)
    assert out.dtype == torch.float32
    assert out.equal(x)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="num_streams must be 1 or 4; got 3"):
        MUDD(DIM, 2, num_streams=3)
    with pytest.raises(ValueError, match="hidden_multiple must be at least 1; got 0"):
        MUDD(DIM, 2, hidden_multiple=0)
    with pytest.raises(ValueError, match="longer|shorter"):
        MUDD(DIM, 2, num_streams=1).double()(small_tokens(), list(small_layers(3)))
