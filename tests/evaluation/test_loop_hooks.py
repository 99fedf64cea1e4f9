import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.evaluation.loop_hooks import measure_loops
from rankloom.layers.connections.hyper import dynamic_hyper_connections
from rankloom.layers.connections.hyper_coefficients import StaticCoefficients
from rankloom.layers.connections.layers import ConnectedStack
from rankloom.layers.routing import ReLURouter, TopKRouter
from rankloom.layers.tokens.token_set import TokenSet

DIM = 4


def batches(x: Tensor, *sizes: int) -> list[Batch]:
    rows = x.flatten(1).split(list(sizes))
    return [Batch(torch.zeros(len(part), 0, dtype=torch.int32), part) for part in rows]


def some_tokens(rows: int = 20) -> Tensor:
    """Tokens [rows, 3, 4]; the first of every third row is padding."""
    x = torch.randn(rows, 3, DIM, generator=torch.Generator().manual_seed(0))
    x[::3, 0] = 0
    return x


def tokens_of(batch: Batch) -> Tensor:
    return batch.numeric.unflatten(1, (3, DIM))


class Step(nn.Module):
    """A loop: a router over experts that scale, coefficients of two streams, and dropout."""

    def __init__(self, router: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.router = TopKRouter(None, DIM, 3, 2) if router is None else router
        self.coefficients = StaticCoefficients(2, 0)
        self.mix = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        routing = self.router(x)
        self.coefficients(x.unsqueeze(2))
        update = self.dropout(self.mix(x)) * routing.gates.sum(2, keepdim=True)
        return x + update


class Looped(nn.Module):
    """Tokens through a loop, at two depths."""

    num_depths = 4

    def __init__(self, how: str = "bare") -> None:
        super().__init__()
        self.loop = Step()
        self.how = how
        self.calls = 0

    def forward(self, batch: Batch) -> Tensor:
        return self.depth_logits(batch, 1)[0]

    def depth_logits(self, batch: Batch, num_depths: int | None = None) -> Tensor:
        x = tokens_of(batch)
        mask = (x != 0).any(2)
        given: dict[str, Any] = {
            "bare": {},
            "tokens": {"mask": mask},
            "attention": {"mask": mask[:, None, None, :]},
        }[self.how]
        depths = [x.sum((1, 2))]
        for _ in range((num_depths or self.num_depths) - 1):
            x = self.loop(x, **given)
            depths.append(x.sum((1, 2)))
        return torch.stack(depths).unsqueeze(2)


def states_of(model: Looped, x: Tensor) -> list[Tensor]:
    states = [x]
    with torch.no_grad():
        for _ in range(3):
            states.append(model.loop.eval()(states[-1]))
    return states


@pytest.mark.parametrize("how", ["bare", "tokens", "attention"])
def test_every_call_of_a_loop(how: str) -> None:
    model, x = Looped(how).train(), some_tokens()
    found = measure_loops(model, batches(x, 7, 13), run="a")
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    (states,) = found.states
    padding, tokens = ("none", 60) if how == "bare" else ("excluded", 53)
    assert (states.path, states.calls) == ("loop", ("loop",) * 3)
    assert (states.padding, states.tokens, states.tokens_per_row) == (padding, tokens, 3)
    real = torch.ones(20, 3, dtype=torch.bool) if how == "bare" else (x != 0).any(2)
    expected = states_of(model, x)
    for i in range(4):
        for j in range(4):
            cosine = torch.cosine_similarity(expected[i], expected[j], dim=-1)[real].mean()
            assert states.cosine[i][j] == pytest.approx(float(cosine), abs=1e-5)
    assert [row[i] for i, row in enumerate(states.cka)] == pytest.approx([1] * 4)

    (router,) = found.routers
    assert (router.router, router.padding, len(router.calls)) == ("loop.router", padding, 3)
    with torch.no_grad():
        gates = [model.loop.router(state).gates[real] for state in expected[:3]]
    for call, gate in zip(router.calls, gates, strict=True):
        assert call.tokens == tokens
        assert call.share == pytest.approx((gate != 0).double().mean(0).tolist())
        assert sum(call.share) == pytest.approx(2)
        assert call.gate == pytest.approx(gate.mean(0).tolist(), abs=1e-6)
    same = ((gates[0] != 0) & (gates[1] != 0)).sum(1) / ((gates[0] != 0) | (gates[1] != 0)).sum(1)
    assert math.isnan(router.calls[0].agreement)
    assert router.calls[1].agreement == pytest.approx(float(same.mean()))

    (coefficients,) = found.coefficients
    assert len(coefficients.calls) == 3
    assert coefficients.calls[2].pre == (1, 0)
    assert coefficients.calls[2].res == ((1, 0), (0, 1))
    assert coefficients.calls[2].post == (1, 1)


def test_batches_of_any_size_give_the_same() -> None:
    model, x = Looped("tokens"), some_tokens(21)
    whole = measure_loops(model, batches(x, 21), run="a")
    split = measure_loops(model, [*batches(x, 1, 20, 0)], run="a")
    assert split.routers[0].calls[1].share == pytest.approx(whole.routers[0].calls[1].share)
    assert split.states[0].cka[0][3] == pytest.approx(whole.states[0].cka[0][3])


class Twice(nn.Module):
    """Events and then fields through one list of layers."""

    def __init__(self, *, name: str = "layers", linked: bool = True, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        setattr(self, name, nn.ModuleList(Step(ReLURouter(None, DIM, 2)) for _ in range(count)))
        self.name = name
        self.linked = linked

    def forward(self, batch: Batch) -> Tensor:
        x = tokens_of(batch)
        events, fields = x[:, :2], x[:, 2:]
        mask = (events != 0).any(2)
        for layer in getattr(self, self.name):
            events = layer(events if self.linked else events + 0, mask)
        for layer in getattr(self, self.name):
            fields = layer(fields if self.linked else fields + 0)
        return events.sum((1, 2), keepdim=True)[:, :, 0] + fields.sum((1, 2))[:, None]


def test_kinds_of_tokens_are_told_apart() -> None:
    found = measure_loops(Twice(), batches(some_tokens(), 20), run="a")
    assert [(one.path, one.tokens_per_row, one.padding, one.tokens) for one in found.states] == [
        ("layers", 2, "excluded", 33),
        ("layers", 1, "counted", 20),
    ]
    assert found.states[0].calls == ("layers.0", "layers.1")
    assert [(one.router, one.tokens_per_row, len(one.calls)) for one in found.routers] == [
        ("layers.0.router", 2, 1),
        ("layers.1.router", 2, 1),
        ("layers.0.router", 1, 1),
        ("layers.1.router", 1, 1),
    ]


class Elsewhere(nn.Module):
    """A layer with a mask, then its router alone; and a second kind of as many tokens, unmasked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Step()
        self.exit = ReLURouter(None, DIM, 2)

    def forward(self, batch: Batch) -> Tensor:
        x = tokens_of(batch)
        x = self.layer(x, (x != 0).any(2))
        gates = self.exit(x).gates  # not inside anything that has the mask
        return gates.sum((1, 2))[:, None] + self.layer(x + 1).sum((1, 2))[:, None]


def test_masks_given_elsewhere_are_remembered() -> None:
    model, x = Elsewhere(), some_tokens()
    found = measure_loops(model, batches(x, 7, 13), run="a")
    assert [(one.router, one.padding, one.calls[0].tokens) for one in found.routers] == [
        ("layer.router", "excluded", 53),
        ("exit", "excluded", 53),
        # The layer takes masks and has none here, so these tokens are others.
        ("layer.router", "counted", 60),
    ]


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        ({"linked": False}, ["layers", "layers"]),
        ({"count": 1}, ["layers", "layers"]),
        ({"name": "units"}, ["units", "units"]),
        ({"name": "units", "linked": False}, []),
        ({"name": "units", "count": 1}, []),
    ],
)
def test_what_is_a_list_of_layers(settings: dict[str, Any], paths: list[str]) -> None:
    found = measure_loops(Twice(**settings), batches(some_tokens(), 20), run="a")
    assert [one.path for one in found.states] == paths


class Stacked(nn.Module):
    """A stack with two streams, over tokens with a mask; the last layer gives fewer tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        layers = [[nn.Linear(DIM, DIM)], [Last()]]
        connection = dynamic_hyper_connections(DIM, 2, num_streams=2)
        for parameter in connection.parameters():
            nn.init.normal_(parameter)
        self.tokens = Tokens()
        self.stack = ConnectedStack(layers, connection, per_sublayer=True)

    def forward(self, batch: Batch) -> Tensor:
        return self.stack(self.tokens(batch).x).sum((1, 2))[:, None]


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, -2:]


class Tokens(nn.Module):
    def forward(self, batch: Batch) -> TokenSet:
        x = tokens_of(batch)
        return TokenSet(x, 2, (x != 0).any(2))


def test_a_stack_and_its_coefficients() -> None:
    model, x = Stacked(), some_tokens()
    found = measure_loops(model, batches(x, 9, 11), run="a")
    (states,) = found.states
    assert (states.path, states.calls) == ("stack", ("stack.layers.0", "stack.layers.1"))
    assert (states.tokens_per_row, states.padding, states.tokens) == (2, "excluded", 40)
    assert [one.module for one in found.coefficients] == [
        "stack.connection.coefficients.0",
        "stack.connection.coefficients.1",
    ]
    with torch.no_grad():
        mix, post = model.stack.connection.coefficients[0](x.unsqueeze(2).expand(-1, -1, 2, -1))
    real = (x != 0).any(2)
    (call,) = found.coefficients[0].calls
    assert (call.tokens, found.coefficients[0].padding) == (53, "excluded")
    assert call.pre == pytest.approx(mix[real].mean(0)[0].tolist(), abs=1e-5)
    assert call.res[1] == pytest.approx(mix[real].mean(0)[2].tolist(), abs=1e-5)
    assert call.post == pytest.approx(post[real].mean(0).tolist(), abs=1e-5)


def test_a_model_without_any_of_it_is_run_on_a_few_rows_only() -> None:
    class Plain(nn.Module):
        sizes: tuple[int, ...] = ()

        def forward(self, batch: Batch) -> Tensor:
            self.sizes += (batch.size,)
            return batch.numeric[:, :1]

    model = Plain()
    assert measure_loops(model, batches(some_tokens(), 20), run="a") == ([], [], [])
    assert model.sizes == (2,)
    assert measure_loops(model, [], run="a") == ([], [], [])
