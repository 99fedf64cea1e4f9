import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.hiformer import HiFormer, HiFormerConfig

SCHEMA = example_schema(
    num_categorical=1, num_numeric=1, sequences=False, vectors=False, num_tasks=2
)
"""Three fields and two tasks: five tokens."""
SIZES = {"embedding_dim": 2, "dim": 4, "num_heads": 2, "expansion": 2, "head": {"hidden": [5]}}
PROJECTIONS = ["per_token", "composite", "low_rank"]


def build(schema=SCHEMA, **settings) -> HiFormer:
    model = HiFormer(parse_config(HiFormerConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(rows: int, schema=SCHEMA) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def projected(part: nn.Module, tokens: list[Tensor], token: int, head: int, first: int) -> Tensor:
    """Head `head` of token `token`'s query, key or value; `first` is the first token with one."""
    if hasattr(part, "narrow"):
        joined, head_dim = torch.cat(tokens), part.shape[1]
        rank = part.heads[1]
        a = part.narrow.weight[head * rank : (head + 1) * rank].T
        b = part.widen.weight[head].split(head_dim, dim=1)[token - first]
        return joined @ a @ b
    if hasattr(part, "shape"):
        matrix = part.project.weight.split(part.shape[1])[token - first]
        return (matrix @ torch.cat(tokens)).chunk(2)[head]
    return (tokens[token] @ part.project.weight[token - first]).chunk(2)[head]


def layer_by_loops(attend: nn.Module, tokens: list[Tensor], first: int) -> list[Tensor]:
    """Attention of the tokens from `first` on, one row, one head, one pair at a time."""
    outputs = []
    for i in range(first, len(tokens)):
        heads = []
        for head in range(2):
            q = projected(attend.query, tokens, i, head, first)
            scores = torch.stack(
                [q @ projected(attend.key, tokens, j, head, 0) for j in range(len(tokens))]
            )
            shares = torch.softmax(scores / 2**0.5, 0)
            values = [projected(attend.value, tokens, j, head, 0) for j in range(len(tokens))]
            heads.append(sum(a * v for a, v in zip(shares, values, strict=True)))
        outputs.append(torch.cat(heads) @ attend.out.weight[i - first])
    return outputs


def network_by_loops(network: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    outputs = []
    for i, token in enumerate(tokens):
        hidden = token @ network.expand.weight[i] + network.expand.bias[i, 0]
        reduced = functional.gelu(hidden) @ network.reduce.weight[i] + network.reduce.bias[i, 0]
        outputs.append(reduced)
    return outputs


def model_by_loops(model: HiFormer, row: Tensor) -> Tensor:
    """Logits of one row's field tokens [fields, dim], post-norm, as the paper writes it."""
    tokens = [*row, *model.task_tokens]
    norms = iter(model.stack.connection.norms)
    sublayers = list(model.stack.layers)
    for number in range(0, len(sublayers), 2):
        attend, network = sublayers[number], sublayers[number + 1][1]
        first = len(row) if number == len(sublayers) - 2 else 0
        attended = layer_by_loops(attend, tokens, first)
        norm = next(norms)
        tokens = [norm(x + o) for x, o in zip(tokens[first:], attended, strict=True)]
        norm = next(norms)
        reduced = network_by_loops(network, tokens)
        tokens = [norm(x + o) for x, o in zip(tokens, reduced, strict=True)]
    heads = zip(model.head.networks, tokens, strict=True)
    return torch.cat([head(token) for head, token in heads])


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_it_equals_the_paper_one_row_and_token_at_a_time(kind) -> None:
    projection = {"kind": kind} | ({"rank": 3} if kind == "low_rank" else {})
    model, batch = build(projection=projection), double_batch(3)
    rows = [model_by_loops(model, row) for row in model.tokens(batch).x]
    outputs = [model(batch), torch.stack(rows)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_per_token_is_composite_with_matrices_on_the_diagonal() -> None:
    plain, full, batch = build(projection={"kind": "per_token"}), build(), double_batch(4)
    state = plain.state_dict()
    num_tokens = 5
    for name, wide in full.state_dict().items():
        if name.endswith(".project.weight") and ".layers." in name:
            own = state[name]  # [out_tokens, in, out]
            matrix = torch.zeros_like(wide).view(len(own), 4, num_tokens, 4)
            for number, weight in enumerate(own):
                matrix[number, :, num_tokens - len(own) + number] = weight.T
            state[name] = matrix.view_as(wide)
    full.load_state_dict(state)
    torch.testing.assert_close(full(batch), plain(batch))


def test_the_last_layer_computes_the_tasks_alone() -> None:
    model, batch = build(num_layers=2), double_batch(3)
    seen = []
    for sublayer in model.stack.layers:
        sublayer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    model(batch)
    assert [out.shape[1] for _, out in seen] == [5, 5, 2, 2]
    assert seen[2][0].shape[1] == 5  # its keys and values are those of all tokens


def test_pre_norm_connections_normalise_inside() -> None:
    model = build(connection={"kind": "identity"}, num_layers=1)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    attend, network = model.stack.layers[0].sublayers
    bare = build(num_layers=1)
    bare.stack.layers[0].load_state_dict(
        {k: v for k, v in attend.state_dict().items() if not k.startswith("norm")}
    )
    z = x[:, 3:] + bare.stack.layers[0](attend.norm(x))
    expected = z + network[1](network[0](z))
    torch.testing.assert_close(model.stack(x), model.stack.norm(expected))


def test_a_task_has_a_head_of_its_own() -> None:
    model, batch = build(), double_batch(3)
    before = model(batch)
    with torch.no_grad():
        model.head.networks[1].layers[0].weight.add_(1.0)
    after = model(batch)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_one_field_and_one_task() -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    model = build(schema)
    assert model.tokens.num_fields == 1
    assert model(double_batch(3, schema)).shape == (3, 1)


def test_parameters_of_low_rank_projections() -> None:
    """Per head and projection (L d + L d_k) r in place of L d * L d_k; 2 task tokens query last."""

    def count(**settings) -> int:
        model = build(num_layers=1, **settings)
        attend = model.stack.layers[0]
        return sum(p.numel() for part in (attend.query, attend.key) for p in part.parameters())

    assert count() == 20 * 2 * 4 + 20 * 20
    low_rank = {"kind": "low_rank", "rank": 3}
    assert count(projection=low_rank) == 2 * 3 * (20 + 2 * 2) + 2 * 3 * (20 + 5 * 2)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads must divide dim; got dim=4, num_heads=3"):
        build(num_heads=3)


def test_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pooling has no effect: a task's logit is read from its"):
        build(pooling={"kind": "concat"})
