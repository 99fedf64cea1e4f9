import pytest
import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dlf_code import DLFCode, DLFCodeConfig
from rankloom.ranking.network import Network
from rankloom.ranking.wukong import Wukong, WukongConfig

SCHEMA = example_schema(
    num_categorical=4, num_numeric=0, sequences=False, vectors=False
)  # with item: five fields
BLOCK = Network(hidden=(6,), batch_norm=True)
HEAD = Network(hidden=(5,), batch_norm=True)
SIZES = {"embedding_dim": 4, "num_layers": 3, "rank": 2, "block": BLOCK, "head": HEAD}


def test_without_raw_branch_and_attention_it_is_wukong_without_its_final_relu() -> None:
    ours = DLFCode(DLFCodeConfig(num_tokens=3, raw_branch=False, **SIZES), SCHEMA)
    sizes = {"num_factorized_tokens": 3, "num_compressed_tokens": 3, **SIZES}
    wukong = Wukong(WukongConfig(final_relu=False, **sizes), SCHEMA)
    names = {
        "branches.0.block": "factorization",
        "branches.1.tokens": "compression",
    }
    state = {}
    for key, value in ours.state_dict().items():
        for name, other in names.items():
            key = key.replace(name, other)
        state[key] = torch.randn_like(value) if value.is_floating_point() else value
    ours_state = dict(zip(ours.state_dict(), state.values(), strict=True))
    ours.load_state_dict({k: v.abs() if "running_var" in k else v for k, v in ours_state.items()})
    wukong.load_state_dict({k: v.abs() if "running_var" in k else v for k, v in state.items()})
    batch = random_batch(SCHEMA, 16)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(batch), wukong.train(training)(batch))
    with_relu = Wukong(WukongConfig(**sizes), SCHEMA)
    assert [type(layer.factorization.network).__name__ for layer in with_relu.layers] == (
        ["Sequential"] * 3
    )


def test_raw_branch_crosses_with_the_embeddings_not_with_the_input() -> None:
    torch.manual_seed(0)
    model = DLFCode(DLFCodeConfig(num_tokens=3, **SIZES), SCHEMA).eval()
    second = model.layers[1]
    x, x0 = torch.randn(2, 9, 4), torch.randn(2, 5, 4)
    raw = second.branches[1]
    left = torch.einsum("mn,bnd->bmd", raw.project.weight, x0)
    products = torch.einsum("bnd,bmd->bnm", left, x) @ raw.block.compress.weight.T
    expected = raw.block.network(raw.block.norm(products.flatten(1))).reshape(2, 3, 4)
    torch.testing.assert_close(raw(x, x0), expected)


def test_attention_is_unscaled_and_by_heads() -> None:
    torch.manual_seed(0)
    model = DLFCode(DLFCodeConfig(num_tokens=3, num_heads=2, **SIZES), SCHEMA).eval()
    attention = model.layers[0].branches[-1]
    x = torch.randn(2, 5, 4)
    q, k, v = attention.project(x).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        weights = torch.softmax(q[..., head] @ k[..., head].mT, dim=-1)
        heads.append(weights @ v[..., head])
    met = torch.cat(heads, dim=-1).flatten(1)
    expected = attention.network(attention.norm(met)).reshape(2, 3, 4)
    torch.testing.assert_close(attention(x, x), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads must divide embedding_dim; got num_heads=3"):
        DLFCode(DLFCodeConfig(embedding_dim=4, num_heads=3), SCHEMA)
