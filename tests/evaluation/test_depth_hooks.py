import math

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.depth_hooks import connected_stacks, measure_depth
from rankloom.layers.connections.layers import ConnectedStack
from rankloom.layers.tokens.token_set import TokenSet
from rankloom.ranking.connections import IdentityConfig, connect
from rankloom.ranking.deres_parts import DeResConnection

DIM = 4


class Scaled(nn.Module):
    """An update of the last tokens: a weight times what was read."""

    def __init__(self, num_tokens: int, factor: float) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x[:, -self.num_tokens :]


class Tokens(nn.Module):
    """Numbers [batch, 12] as three tokens; one that is all zeros is padding."""

    def forward(self, batch: Batch) -> TokenSet:
        x = batch.numeric.unflatten(1, (3, DIM))
        return TokenSet(x, 2, (x != 0).any(-1))


class Model(nn.Module):
    def __init__(self, stack: nn.Module, *, copied: bool = False) -> None:
        super().__init__()
        self.tokens = Tokens()
        self.stack = stack
        self.copied = copied

    def forward(self, batch: Batch) -> Tensor:
        x = self.tokens(batch).x
        return self.stack(x.clone() if self.copied else x).sum((1, 2))[:, None]


def batches(x: Tensor, *sizes: int) -> list[Batch]:
    rows = x.flatten(1).split(list(sizes))
    return [Batch(torch.zeros(len(part), 0, dtype=torch.int32), part) for part in rows]


def some_tokens(rows: int = 20) -> Tensor:
    """Tokens [rows, 3, 4]; the first of every third row is padding."""
    x = torch.randn(rows, 3, DIM, generator=torch.Generator().manual_seed(0))
    x[::3, 0] = 0
    return x


def plain_stack(*layers: nn.Module) -> ConnectedStack:
    return connect([[layer] for layer in layers], IdentityConfig(), DIM)


def test_layers_that_only_scale_keep_everything() -> None:
    model = Model(plain_stack(Scaled(3, 1.0), Scaled(2, -3.0), Scaled(2, 1.0)))
    x = some_tokens()
    (found,) = measure_depth(model, batches(x, 7, 13), run="a")
    assert (found.run, found.stack) == ("a", "stack")
    assert found.weights == found.gates == ()
    # Reads: x, 2 x, 2 x - 3 * 2 x = -4 x of the last two tokens.
    assert [read.layer for read in found.inputs] == [0, 1, 2]
    assert [read.tokens for read in found.inputs] == [3, 3, 2]
    assert [read.cosine for read in found.inputs] == pytest.approx([1, 1, -1])
    for read in found.inputs:
        assert 0.999 < read.r_squared <= 1


def test_padding_counts_only_where_no_mask_fits() -> None:
    x = some_tokens(30)
    masked = measure_depth(Model(plain_stack(Scaled(3, 1.0))), batches(x, 30), run="a")
    # Tokens that the model changes lose their mask: 10 of 90 tokens are zeros, with similarity 0.
    changed = Model(plain_stack(Scaled(3, 1.0)), copied=True)
    unmasked = measure_depth(changed, batches(x, 30), run="a")
    assert masked[0].inputs[0].cosine == pytest.approx(1)
    assert unmasked[0].inputs[0].cosine == pytest.approx(80 / 90)


def test_batches_of_any_size_give_the_same_halves() -> None:
    """Rows at even places are fitted, whatever batches they come in."""
    x = some_tokens(21)
    x[1::2] *= 100  # so that exchanged halves would show
    stack = plain_stack(_Noise(), Scaled(3, 0.0))
    expected = measure_depth(Model(stack), batches(x, 21), run="a")[0].inputs[1]
    for sizes in ((1,) * 21, (5, 5, 5, 5, 1), (4, 17)):
        found = measure_depth(Model(stack), batches(x, *sizes), run="a")[0].inputs[1]
        assert found.cosine == pytest.approx(expected.cosine)
        assert found.r_squared == pytest.approx(expected.r_squared)
    assert expected.r_squared < 0.99


class _Noise(nn.Module):
    """What no linear map undoes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(3 * x) - x


def deres_stack(width: str, num_layers: int = 3) -> ConnectedStack:
    connection = DeResConnection.model_validate(
        {"width": {"kind": width}, "block_size": 1, "query_std": 0.7}
    )
    # The last layer gives the last two tokens only.
    layers = [Scaled(2 if i == num_layers - 1 else 3, 0.5) for i in range(num_layers)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return connect([[layer] for layer in layers], connection, DIM)


@pytest.mark.parametrize("width", ["full", "half"])
def test_depth_weights_and_gates_are_those_of_the_tokens_that_are_real(width: str) -> None:
    stack, x = deres_stack(width), some_tokens()
    model = Model(stack)
    weights: list[Tensor] = []
    gates: list[Tensor] = []
    path, fusions = stack.connection.path, stack.connection.fusions
    handles = [w.register_forward_hook(lambda m, a, o: weights.append(o)) for w in path.weights]
    handles += [f.gate.register_forward_hook(lambda m, a, o: gates.append(o)) for f in fusions]
    with torch.no_grad():
        stack(x)
    for handle in handles:
        handle.remove()
    (found,) = measure_depth(model, batches(x, 9, 11), run="a")
    assert [len(layer.mean) for layer in found.weights] == [2, 3, 4]
    real = (x != 0).any(-1)
    for layer, expected, gate in zip(found.weights, weights, gates, strict=True):
        there = real[:, -expected.shape[1] :]
        chosen = expected[there].flatten(0, 1)  # [weights of a block, blocks]
        assert layer.mean == pytest.approx(chosen.mean(0).tolist(), abs=1e-6)
        assert layer.negative == pytest.approx(float((chosen < 0).float().mean()))
        assert found.gates[layer.layer].mean == pytest.approx(float(gate[there].mean()), abs=1e-6)
    assert any(layer.negative > 0 for layer in found.weights)
    assert [read.tokens for read in found.inputs] == [3, 3, 3]
    # In both readings layers read whole tokens.
    assert not any(math.isnan(read.cosine) for read in found.inputs)


def test_hooks_are_gone_and_the_model_is_as_it_was() -> None:
    model = Model(deres_stack("full")).train()
    measure_depth(model, batches(some_tokens(), 20), run="a")
    assert model.training
    for part in model.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_a_model_without_a_stack_is_not_run() -> None:
    assert connected_stacks(nn.Linear(2, 2)) == {}
    assert measure_depth(nn.Linear(2, 2), batches(some_tokens(), 20), run="a") == []


def test_a_stack_inside_another_is_left_out() -> None:
    model = Model(plain_stack(plain_stack(Scaled(3, 1.0)), Scaled(3, 1.0)))
    assert list(connected_stacks(model)) == ["stack"]
    (found,) = measure_depth(model, batches(some_tokens(), 20), run="a")
    assert len(found.inputs) == 2


def test_only_the_first_call_of_a_pass_counts() -> None:
    class Twice(Model):
        def forward(self, batch: Batch) -> Tensor:
            tokens = self.tokens(batch).x
            self.stack(tokens)
            return self.stack(-tokens.flip(1)).sum((1, 2))[:, None]

    once = measure_depth(Model(deres_stack("full")), batches(some_tokens(), 20), run="a")
    assert measure_depth(Twice(deres_stack("full")), batches(some_tokens(), 20), run="a") == once


def test_rows_of_one_half_only_decode_nothing() -> None:
    (found,) = measure_depth(Model(plain_stack(Scaled(3, 1.0))), batches(some_tokens(1), 1), run="")
    assert math.isnan(found.inputs[0].r_squared)
    assert found.inputs[0].cosine == pytest.approx(1)
