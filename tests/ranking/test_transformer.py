import torch
from torch import Tensor
from torch.nn import functional

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.transformer import Transformer, TransformerConfig

SCHEMA = example_schema(num_categorical=2, num_numeric=1, num_tasks=2)
SIZES = {"embedding_dim": 3, "dim": 8, "num_layers": 2, "num_heads": 2, "expansion": 2}


def build(**settings: object) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.model_validate(SIZES | settings), SCHEMA).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * gain


def slow_attention(layer: torch.nn.Module, x: Tensor, real: Tensor) -> Tensor:
    """Attention of one row's tokens [tokens, dim], loop by loop."""
    query, key, value = (x @ w.T for w in layer.attend.project.weight.chunk(3))
    out = torch.zeros_like(x)
    for head in (slice(0, 4), slice(4, 8)):
        for token in range(len(x)):
            scores = (key[:, head] @ query[token, head]) / 2  # sqrt(4)
            weights = scores.masked_fill(~real, -torch.inf).softmax(0)
            out[token, head] = weights @ value[:, head]
    return out @ layer.out.weight.T


def test_follows_its_equations() -> None:
    model = build()
    batch = random_batch(SCHEMA, rows=5, seed=1)
    batch = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    tokens = model.tokens(batch)
    assert tokens.mask is not None
    rows = []
    for x, real in zip(tokens.x, tokens.mask, strict=True):
        for layer in model.stack.layers:
            attention, network = layer.sublayers
            x = x + slow_attention(attention, norm(x, attention.norm.weight), real)
            hidden = network.network.expand(norm(x, network.norm.weight))
            x = x + network.network.reduce(functional.gelu(hidden))
        fields = norm(x, model.stack.norm.weight)[tokens.num_events :]
        rows.append(model.head[1](fields.mean(0)[None])[0])
    slow = torch.stack(rows)
    fast = model(batch)
    assert torch.allclose(fast, slow)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(fast.square().sum(), parameters)
    theirs = torch.autograd.grad(slow.square().sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other)
