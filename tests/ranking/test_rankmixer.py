import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.experts import TokenExperts
from rankloom.layers.losses import ranking_loss
from rankloom.layers.routing import gate_size
from rankloom.ranking.rankmixer import RankMixer, RankMixerConfig

SCHEMA = example_schema(num_tasks=2)
PLAIN = example_schema(num_categorical=3, num_numeric=0, sequences=False, vectors=False)
SIZES = {
    "embedding_dim": 3,
    "dim": 8,
    "tokens": {"num_tokens": 4},
    "expansion": 2,
    "head": {"hidden": [5]},
}
EXPERTS = {"network": {"kind": "relu_experts", "num_experts": 3}}


def build(schema=SCHEMA, **settings) -> RankMixer:
    model = RankMixer(parse_config(RankMixerConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(rows: int, schema=SCHEMA) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def mixed_by_loops(row: Tensor) -> Tensor:
    pieces = [vector.chunk(len(row)) for vector in row]
    return torch.stack([torch.cat([p[head] for p in pieces]) for head in range(len(row))])


def pffn_by_loops(sublayer: nn.Module, row: Tensor) -> Tensor:
    expand, reduce = sublayer.network.network.expand, sublayer.network.network.reduce
    tokens = []
    for t, vector in enumerate(row):
        hidden = functional.gelu(vector @ expand.weight[t] + expand.bias[t, 0])
        tokens.append(hidden @ reduce.weight[t] + reduce.bias[t, 0])
    return torch.stack(tokens)


@pytest.mark.parametrize("connection", ["post_norm", "identity"])
def test_it_equals_the_paper_one_row_and_token_at_a_time(connection: str) -> None:
    model, batch = build(connection={"kind": connection}), double_batch(3)
    post = connection == "post_norm"
    rows = []
    for row in model.tokens(batch).x:
        for number, layer in enumerate(model.stack.layers):
            if post:
                mixing, networks = model.stack.layers[2 * number : 2 * number + 2]
                first, second = model.stack.connection.norms[2 * number : 2 * number + 2]
                row = first(row + mixed_by_loops(row))
                row = second(row + pffn_by_loops(networks, row))
                if 2 * number + 2 == len(model.stack.layers):
                    break
            else:
                mixing, networks = layer.sublayers
                row = row + mixed_by_loops(mixing.norm(row))
                row = row + pffn_by_loops(networks, networks.norm(row))
        head = model.head[1]
        rows.append(head(model.stack.norm(row).mean(0)))
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_layers_have_as_many_parameters_as_the_paper_counts() -> None:
    model = build(num_layers=3)
    layers, tokens, dim, k = 3, 4, 8, 2
    weights = 2 * k * layers * tokens * dim**2
    biases = layers * tokens * (k * dim + dim)
    norms = layers * 2 * 2 * dim
    assert sum(p.numel() for p in model.stack.parameters()) == weights + biases + norms


def test_the_tokens_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"got dim=8, num_heads=3; nearest dim that works: 6 or 9"):
        build(tokens={"num_tokens": 3})
    fields = build().tokens.embedding.num_fields
    with pytest.raises(ValueError, match=f"num_heads={fields}"):
        build(tokens={"kind": "per_field"}, dim=fields + 1)
    assert build(tokens={"kind": "per_field"}, dim=fields).tokens.num_fields == fields


@pytest.mark.parametrize("kind", ["per_field", "slices", "auto_split"])
def test_its_loss_without_experts_is_that_of_its_logits(kind: str) -> None:
    fields = build().tokens.embedding.num_fields
    count = {} if kind == "per_field" else {"num_tokens": 2}
    model = build(tokens={"kind": kind} | count, dim=2 * fields)
    batch = double_batch(4)
    loss, expected = model.loss(batch), ranking_loss(model(batch), batch)
    assert torch.equal(loss.total, expected.total)
    assert loss.parts.keys() == expected.parts.keys()


def routed_by_loops(sublayer: nn.Module, row: Tensor, router: int) -> tuple[Tensor, Tensor]:
    """What the experts give for one row, and the sum of its gates."""
    routed = sublayer.network
    experts, project = routed.experts, routed.routers[router].project
    tokens, opened = [], row.new_zeros(())
    for t, vector in enumerate(row):
        gates = functional.relu(vector @ project.weight[t] + project.bias[t, 0])
        opened = opened + gates.sum()
        out = torch.zeros_like(vector)
        for e, gate in enumerate(gates):
            hidden = functional.gelu(experts.expand[t, e] @ vector + experts.expand_bias[t, e])
            out = out + gate * (hidden @ experts.reduce[t, e] + experts.reduce_bias[t, e])
        tokens.append(out)
    return torch.stack(tokens), opened


def logits_by_loops(model: RankMixer, batch: Batch, router: int) -> tuple[Tensor, Tensor]:
    """Logits, and the mean over rows of all gates' sum."""
    rows, opened = [], []
    for row in model.tokens(batch).x:
        total = row.new_zeros(())
        for number, sublayer in enumerate(model.stack.layers):
            if number % 2:
                update, sizes = routed_by_loops(sublayer, row, router)
                total = total + sizes
            else:
                update = mixed_by_loops(row)
            row = model.stack.connection.norms[number](row + update)
        rows.append(model.head[1](row.mean(0)))
        opened.append(total)
    return torch.stack(rows), torch.stack(opened).mean()


def test_routed_loss_equals_the_equations_one_expert_at_a_time() -> None:
    model, batch = build(**EXPERTS), double_batch(4)
    model.budget.weight.fill_(0.03)
    parameters = list(model.parameters())
    loss = model.loss(batch)
    assert model.budget.weight.item() != pytest.approx(0.03)
    (serving, opened), (training, _) = (logits_by_loops(model, batch, r) for r in (0, 1))
    labels = [ranking_loss(logits, batch).total for logits in (serving, training)]
    expected = sum(labels) + 0.03 * opened
    actual = [loss.parts[name] for name in ("serving", "training", "gates")]
    for part, value in zip(actual, [*labels, 0.03 * opened], strict=True):
        torch.testing.assert_close(part, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(total, parameters) for total in (loss.total, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.any()


def test_evaluation_uses_the_serving_router_and_training_both() -> None:
    model, batch = build(**EXPERTS), double_batch(4)
    serving, training = (logits_by_loops(model, batch, router)[0] for router in (0, 1))
    torch.testing.assert_close(model.eval()(batch), serving)
    torch.testing.assert_close(model.train()(batch), (serving + training) / 2)
    assert not torch.allclose(serving, training)


def test_experts_run_for_chosen_rows_at_evaluation_only() -> None:
    ways = []

    class Watched(TokenExperts):
        def run_all(self, x, gates):
            ways.append("all")
            return super().run_all(x, gates)

        def run_chosen(self, x, gates):
            ways.append("chosen")
            return super().run_chosen(x, gates)

    for sparse, mode, expected in (
        (True, True, ["all"] * 4),
        (True, False, ["chosen"] * 2),
        (False, False, ["all"] * 2),
    ):
        ways.clear()
        model = build(network=EXPERTS["network"] | {"sparse": sparse})
        for sublayer in model.stack.layers[1::2]:
            sublayer.network.experts.__class__ = Watched
        model.train(mode)(double_batch(3))
        assert ways == expected


def test_training_closes_gates_to_the_budget() -> None:
    network = EXPERTS["network"] | {"num_experts": 4, "active_share": 0.25}
    config = parse_config(RankMixerConfig, SIZES | {"network": network, "num_layers": 1}, "test")
    model = RankMixer(config, PLAIN).train()
    batch = random_batch(PLAIN, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    shares = []
    for _ in range(150):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        shares.append(loss.parts["open_share"].item())
    assert shares[0] > 0.4
    assert sum(shares[-50:]) / 50 == pytest.approx(0.25, abs=0.1)
    # The training router is not penalised.
    routed = model.stack.layers[1].network
    tokens = model.tokens(batch).x
    serving, training = (gate_size(router(tokens)) for router in routed.routers)
    assert training > 2 * serving


def test_the_routed_loss_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    config = parse_config(RankMixerConfig, SIZES | EXPERTS | {"num_layers": 1}, "test")
    model, batch = RankMixer(config, PLAIN), random_batch(PLAIN, 5)
    before = model.budget.weight.item()
    expected = model.loss(batch).total
    after = model.budget.weight.item()
    model.budget.weight.fill_(before)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    with torch.no_grad():  # the contract tests compile backward
        torch.testing.assert_close(compiled(batch).total, expected)
    assert model.budget.weight.item() == pytest.approx(after)
    assert after != before
