"""Hyper-connections against their equations, one token at a time, and against the package's."""

from collections.abc import Callable

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
from hyper_connections import HyperConnections as PackageHC
from hyper_connections.manifold_constrained_hyper_connections import mHC as PackageMHC
from torch import Tensor, nn

from rankloom.layers.connections.hyper import (
    HyperConnections,
    dynamic_hyper_connections,
    manifold_hyper_connections,
    static_hyper_connections,
)
from rankloom.layers.connections.hyper_coefficients import ManifoldCoefficients
from rankloom.layers.connections.products import EPS
from rankloom.layers.connections.residual import Identity
from rankloom.layers.sinkhorn import _scaled_plainly, sinkhorn, sinkhorn_of_many

BUILDERS: dict[str, Callable[..., HyperConnections]] = {
    "static": static_hyper_connections,
    "dynamic": dynamic_hyper_connections,
    "manifold": manifold_hyper_connections,
}
EVERY = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)

Coefficients = tuple[Tensor, Tensor, Tensor]
"""H_pre [n], H_res [n, n] and H_post [n] of one token."""


def static_of_token(part: nn.Module, streams: Tensor) -> Coefficients:
    return part.bias[0], part.bias[1:-1], part.bias[-1]


def dynamic_of_token(part: nn.Module, streams: Tensor, norm: str) -> Coefficients:
    centred = streams - streams.mean(-1, keepdim=True) if norm == "layer" else streams
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    theta = part.product.weight.T  # [2 + streams, dim]
    tanh = [[torch.tanh(row @ stream) for stream in normed] for row in theta]
    a_pre, a_res, a_post = part.scale
    n = len(streams)
    rows = [torch.stack(row) for row in tanh]
    pre = a_pre * rows[0] + part.bias[0]
    res = torch.stack([a_res * rows[1 + i] + part.bias[1 + i] for i in range(n)])
    return pre, res, a_post * rows[-1] + part.bias[-1]


def manifold_of_token(part: nn.Module, streams: Tensor, steps: int) -> Coefficients:
    n = len(streams)
    flat = streams.flatten()
    products = flat / (flat.square().mean() + EPS).sqrt() @ part.product.weight
    h_pre, h_res, h_post = products.split([n, n * n, n])
    pre, res, post = (part.parts[name] for name in ("pre", "res", "post"))
    matrix = (res.scale * h_res.view(n, n) + res.bias).exp()
    for _ in range(steps):
        matrix = torch.stack([column / column.sum() for column in matrix.T]).T
        matrix = torch.stack([row / row.sum() for row in matrix])
    return (
        torch.sigmoid(pre.scale * h_pre + pre.bias),
        matrix,
        2 * torch.sigmoid(post.scale * h_post + post.bias),
    )


def by_tokens(
    connection: HyperConnections,
    of_token: Callable[[nn.Module, Tensor], Coefficients],
    x: Tensor,
    layers: nn.ModuleList,
) -> Tensor:
    """The sum of the streams, one layer, row, token and stream at a time."""
    n = connection.num_streams
    streams = [[torch.stack([token] * n) for token in row] for row in x]
    for part, layer in zip(connection.coefficients, layers, strict=True):
        made = [[of_token(part, token) for token in row] for row in streams]
        read = [
            torch.stack([pre @ token for (pre, _, _), token in zip(*row, strict=True)])
            for row in zip(made, streams, strict=True)
        ]
        update = layer(torch.stack(read))
        kept = update.shape[1]
        new = []
        for row_made, row, row_update in zip(made, streams, update, strict=True):
            triples = zip(row_made[-kept:], row[-kept:], row_update, strict=True)
            new.append([res @ token + torch.outer(post, u) for (_, res, post), token, u in triples])
        streams = new
    return torch.stack([torch.stack([token.sum(0) for token in row]) for row in streams])


@pytest.mark.parametrize("pyramid", [False, True], ids=["same tokens", "pyramid"])
@pytest.mark.parametrize(
    ("connection", "of_token"),
    [
        (static_hyper_connections(DIM, 3, num_streams=3), static_of_token),
        (static_hyper_connections(DIM, 3, num_streams=1), static_of_token),
        (
            dynamic_hyper_connections(DIM, 3, num_streams=3, norm="rms"),
            lambda part, streams: dynamic_of_token(part, streams, "rms"),
        ),
        (
            dynamic_hyper_connections(DIM, 3, num_streams=4, norm="layer"),
            lambda part, streams: dynamic_of_token(part, streams, "layer"),
        ),
        (
            manifold_hyper_connections(DIM, 3, num_streams=3, num_steps=4),
            lambda part, streams: manifold_of_token(part, streams, 4),
        ),
    ],
    ids=["static", "one stream", "dynamic rms", "dynamic layer", "manifold"],
)
def test_it_equals_the_equations_one_token_at_a_time(connection, of_token, pyramid: bool) -> None:
    connection = drawn(connection)
    layers, x = small_layers(3, pyramid=pyramid), small_tokens()
    expected = by_tokens(connection, of_token, x, layers)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(connection(x, list(layers)), expected, inputs)


@EVERY
@pytest.mark.parametrize("num_streams", [2, 4])
def test_it_starts_as_the_identity_connection(build, num_streams: int) -> None:
    layers, x = list(small_layers(5)), small_tokens()
    plain = Identity(DIM)(x, layers)
    mean = build(DIM, 5, num_streams=num_streams, pool="mean").double()
    torch.testing.assert_close(mean(x, layers), plain)
    total = build(DIM, 5, num_streams=num_streams).double()
    torch.testing.assert_close(total(x, layers), num_streams * plain)


def test_neighbouring_layers_start_reading_different_streams() -> None:
    connection = static_hyper_connections(DIM, 5, num_streams=3)
    reads = [part.bias[0].argmax().item() for part in connection.coefficients]
    assert reads == [0, 1, 2, 0, 1]


def package_step(package: nn.Module, x: Tensor, layers: nn.ModuleList, parts) -> Tensor:
    """Layers with the package's connections, on streams it lays along the batch."""
    expand, reduce = PackageHC.get_expand_reduce_stream_functions(parts)
    streams = expand(x)
    for connection, layer in zip(package, layers, strict=True):
        read, add = connection(streams)
        streams = add(layer(read))
    return reduce(streams)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_it_equals_the_package_on_copied_weights(dynamic: bool) -> None:
    n = 4
    package = nn.ModuleList(PackageHC(n, dim=DIM, layer_index=i) for i in range(3))
    started = [connection.static_alpha.detach().clone() for connection in package]
    package = drawn(package)
    build = dynamic_hyper_connections if dynamic else static_hyper_connections
    ours = build(DIM, 3, num_streams=n, **({"norm": "rms"} if dynamic else {})).double()
    for theirs, part, start in zip(package, ours.coefficients, started, strict=True):
        assert part.bias[:-1].T.equal(start.double())
        with torch.no_grad():
            part.bias[:-1] = theirs.static_alpha.T
            part.bias[-1] = theirs.static_beta
            if dynamic:
                theta = torch.cat([theirs.dynamic_alpha_fn, theirs.dynamic_beta_fn[:, None]], 1)
                part.product.weight.copy_((theirs.norm.gamma[:, None] + 1) * theta)
                alpha, beta = theirs.dynamic_alpha_scale, theirs.dynamic_beta_scale
                part.scale.copy_(torch.stack([alpha, alpha, beta]))
            else:
                theirs.dynamic_alpha_scale.zero_()
                theirs.dynamic_beta_scale.zero_()
    layers, x = small_layers(3), small_tokens()
    expected = package_step(package, x, layers, n)
    tolerance = 1e-4 if dynamic else 1e-9  # the package's norm has no eps
    assert_equal_with_gradients(
        ours(x, list(layers)), expected, [x, *layers.parameters()], tolerance
    )


def test_manifold_form_equals_the_package_where_both_norms_are_one() -> None:
    """With streams of equal length, norms of each and of all are the same; so is Sinkhorn's limit.

    The package makes a stream's coefficients of that stream alone: blocks of phi.
    """
    n, steps = 3, 300
    theirs = drawn(PackageMHC(n, dim=DIM, sinkhorn_iters=steps), std=0.3)
    ours = ManifoldCoefficients(DIM, n, num_steps=steps).double()
    gained = (theirs.norm.gamma[:, None] + 1) * torch.cat(
        [theirs.dynamic_alpha_fn[0], theirs.dynamic_beta_fn[:, None]], 1
    )  # [dim, 1 + n + 1]
    with torch.no_grad():
        phi_pre, phi_res, phi_post = (
            piece.unflatten(0, (n, DIM)) for piece in ours.product.weight.split([n, n * n, n], 1)
        )
        for s in range(n):
            phi_pre[s, :, s] = gained[:, 0]
            phi_post[s, :, s] = gained[:, -1]
            for t in range(n):
                phi_res[s, :, t * n + s] = gained[:, 1 + t]
        ours.parts["pre"].bias.copy_(theirs.static_alpha[:, 0])
        ours.parts["res"].bias.copy_(theirs.static_alpha[:, 1:].T)
        ours.parts["post"].bias.copy_(theirs.static_beta)
        ours.parts["pre"].scale.copy_(theirs.pre_branch_scale[0])
        ours.parts["res"].scale.copy_(theirs.residual_scale[0])
        ours.parts["post"].scale.copy_(theirs.h_post_scale)
    streams = torch.randn(2, TOKENS, n, DIM, dtype=torch.float64)
    streams = streams / streams.square().mean(-1, keepdim=True).sqrt()
    mix, post = ours(streams)
    mixed = mix @ streams
    read, kept, extra = theirs.width_connection(streams.movedim(2, 1).flatten(0, 1))
    # The package computes coefficients in float32, and keeps EPS out of its norm.
    torch.testing.assert_close(mixed[:, :, 0], read, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        mixed[:, :, 1:].movedim(2, 1).flatten(0, 1), kept, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(post, extra["beta"].flatten(2), rtol=1e-4, atol=1e-5)


def test_manifold_coefficients_keep_what_they_promise() -> None:
    part = ManifoldCoefficients(DIM, 4, num_steps=20)
    part.parts["res"].bias.data.zero_()
    part = drawn(part, std=0.4)
    mix, post = part(torch.randn(2, TOKENS, 4, DIM, dtype=torch.float64))
    pre, res = mix[:, :, 0], mix[:, :, 1:]
    assert (pre > 0).all()
    assert (pre < 1).all()
    assert (post > 0).all()
    assert (post < 2).all()
    assert (res >= 0).all()
    torch.testing.assert_close(res.sum(-1), torch.ones_like(pre))
    torch.testing.assert_close(res.sum(-2), torch.ones_like(pre), rtol=0, atol=2e-3)


def test_manifold_start_is_near_the_fixed_values() -> None:
    mix, post = ManifoldCoefficients(DIM, 4)(torch.randn(1, 1, 4, DIM))
    torch.testing.assert_close(mix[0, 0, 0], torch.full((4,), 0.25))
    torch.testing.assert_close(mix[0, 0, 1:], torch.eye(4), rtol=0, atol=2e-3)
    torch.testing.assert_close(post[0, 0], torch.ones(4))


@pytest.mark.parametrize("name", ["pre", "res", "post"])
def test_fixed_mappings_are_those_of_the_ablation(name: str) -> None:
    part = drawn(ManifoldCoefficients(DIM, 4, fixed=[name]))
    mix, post = part(torch.randn(2, TOKENS, 4, DIM, dtype=torch.float64))
    found = {"pre": mix[:, :, 0], "res": mix[:, :, 1:], "post": post}
    values = {"pre": torch.full((4,), 0.25), "res": torch.eye(4), "post": torch.ones(4)}
    for mapping, value in values.items():
        expected = value.double().expand_as(found[mapping])
        assert torch.allclose(found[mapping], expected) == (mapping == name)
    assert not any(name in key for key, _ in part.named_parameters())


def test_sinkhorn_of_many_is_sinkhorn() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 3
    logits.requires_grad_()
    for steps in (1, 5):
        assert_equal_with_gradients(
            sinkhorn_of_many(logits, steps), sinkhorn(logits, steps), [logits]
        )
    assert sinkhorn_of_many(torch.zeros(0, 7, 2, 2), 3).shape == (0, 7, 2, 2)
    half = sinkhorn_of_many(logits.detach().bfloat16(), 2)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 4, 4), (7, 2, 3)])
def test_gradient_of_sinkhorn_that_is_written_out(shape: tuple[int, ...]) -> None:
    """Equal to the one that follows every operation, entries that are raised among them."""
    logits = (torch.randn(shape, dtype=torch.float64) * 20).requires_grad_()
    logits.data.flatten()[0] = -100.0
    plain = _scaled_plainly(logits.flatten(0, -3).movedim(0, -1), 6)
    assert_equal_with_gradients(
        sinkhorn_of_many(logits, 6), plain.movedim(-1, 0).reshape(shape), [logits]
    )
    gentle = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sinkhorn_of_many(x, 3), [gentle])


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_sinkhorn_of_many_stays_finite(scale: float) -> None:
    logits = (torch.randn(200, 4, 4) * scale).requires_grad_()
    out = sinkhorn_of_many(logits, 20)
    out.square().sum().backward()
    torch.testing.assert_close(out.sum(-1), torch.ones(200, 4))
    assert logits.grad.isfinite().all()


@EVERY
def test_autocast_does_not_round_the_streams(build) -> None:
    connection = build(DIM, 8, pool="mean")
    x = small_tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = connection(x, [torch.zeros_like] * 8)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x)  # bfloat16 would be wrong in the third digit


@EVERY
def test_it_stays_in_the_precision_of_its_tokens(build) -> None:
    connection = build(DIM, 2).bfloat16()
    layers = [layer.bfloat16() for layer in small_layers(2)]
    out = connection(small_tokens(torch.bfloat16), layers)
    assert out.dtype == torch.bfloat16
    out.sum().backward()


@EVERY
def test_a_token_of_zeros_has_finite_gradients(build) -> None:
    connection = drawn(build(DIM, 2))
    x = torch.zeros(1, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    connection(x, [lambda t: t, lambda t: t]).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in connection.parameters())


@EVERY
def test_memory_grows_with_depth_and_not_its_square(build) -> None:
    def kept(num_layers: int) -> int:
        connection, x = build(DIM, num_layers).double(), small_tokens()
        layers = list(small_layers(num_layers))
        return saved_bytes(lambda: connection(x, layers))

    four, eight, sixteen = kept(4), kept(8), kept(16)
    assert sixteen - eight <= 2.05 * (eight - four)


def test_sinkhorn_steps_are_not_kept() -> None:
    x = small_tokens()
    layers = list(small_layers(2))

    def kept(num_steps: int) -> int:
        connection = manifold_hyper_connections(DIM, 2, num_steps=num_steps).double()
        return saved_bytes(lambda: connection(x, layers))

    assert kept(1) == kept(20)


@pytest.mark.parametrize("build", [dynamic_hyper_connections, manifold_hyper_connections])
def test_full_graph_compiles(build) -> None:
    torch._dynamo.reset()
    settings = {"num_steps": 2} if build is manifold_hyper_connections else {}
    connection = drawn(build(DIM, 2, num_streams=2, **settings))
    layers, x = small_layers(2), small_tokens()

    def run(x: Tensor) -> Tensor:
        return connection(x, list(layers))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    inputs = [x, *layers.parameters(), *connection.parameters()]
    assert_equal_with_gradients(compiled(x), run(x), inputs)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="num_streams must be at least 1; got 0"):
        static_hyper_connections(DIM, 2, num_streams=0)
    with pytest.raises(ValueError, match="num_streams must be at least 2; got 1"):
        manifold_hyper_connections(DIM, 2, num_streams=1)
    with pytest.raises(ValueError, match="at least one of pre, post and res must be learned"):
        manifold_hyper_connections(DIM, 2, fixed=["pre", "post", "res"])
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        sinkhorn_of_many(torch.zeros(1, 2, 2), 0)
    with pytest.raises(ValueError, match="longer|shorter"):
        static_hyper_connections(DIM, 2).double()(small_tokens(), list(small_layers(3)))
