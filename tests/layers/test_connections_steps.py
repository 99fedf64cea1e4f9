import pytest
import torch
from torch import Tensor

from rankloom.layers.connections.hyper import dynamic_hyper_connections
from rankloom.layers.connections.steps import OneStream, SeveralStreams, residual_streams

DIM = 4


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def last_two(x: Tensor) -> Tensor:
    return 3 * x[:, -2:]


def test_one_stream_is_the_plain_residual() -> None:
    streams = residual_streams(1)
    x = torch.randn(2, 3, DIM)
    step = streams.build_step(DIM, 0)
    assert isinstance(streams, OneStream)
    assert list(step.parameters()) == []
    torch.testing.assert_close(streams.leave(step(streams.enter(x), doubled)), 3 * x)
    torch.testing.assert_close(step(x, last_two), 4 * x[:, -2:])


@pytest.mark.parametrize("num_streams", [2, 3])
def test_several_streams_start_as_one(num_streams: int) -> None:
    streams = residual_streams(num_streams)
    x = torch.randn(2, 3, DIM)
    entered = streams.enter(x)
    assert entered.shape == (2, 3, num_streams, DIM)
    for number in range(4):
        step = streams.build_step(DIM, number)
        torch.testing.assert_close(streams.leave(step(entered, doubled)), 3 * x)
        torch.testing.assert_close(streams.leave(step(entered, last_two)), 4 * x[:, -2:])
        # It reads one stream, another than its neighbours.
        reads = step.coefficients.bias[0].tolist()
        assert reads == [float(stream == number % num_streams) for stream in range(num_streams)]


def test_steps_one_after_another_are_hyper_connections() -> None:
    streams, x = SeveralStreams(2), torch.randn(2, 3, DIM, dtype=torch.float64)
    stack = dynamic_hyper_connections(DIM, 3, num_streams=2, norm="rms", pool="mean").double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    layers = [torch.tanh, doubled, last_two]
    now = streams.enter(x)
    for number, layer in enumerate(layers):
        step = streams.build_step(DIM, number).double()
        step.coefficients.load_state_dict(stack.coefficients[number].state_dict())
        now = step(now, layer)
    torch.testing.assert_close(streams.leave(now), stack(x, layers))


def test_there_is_a_stream_at_least() -> None:
    with pytest.raises(ValueError, match=r"num_streams must be at least 1; got 0"):
        residual_streams(0)
