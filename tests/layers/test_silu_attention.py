"""HSTU's attention against loops over heads, queries and keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.silu_attention import EPS, SiLUAttention

TOKENS, DIM, HEADS, HEAD_DIM = 4, 5, 2, 3


class FixedBias(nn.Module):
    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(num_tokens, num_tokens, generator=generator).double()

    def forward(self, gaps: None) -> Tensor:
        return self.weight


def layer(num_bias_tokens: int = TOKENS, first_query: int = 0) -> SiLUAttention:
    torch.manual_seed(2)
    made = SiLUAttention(
        DIM, HEADS, HEAD_DIM, FixedBias(num_bias_tokens), first_query=first_query
    ).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def test_it_is_the_published_layer() -> None:
    made = layer()
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.float64).tril() / TOKENS
    out = made(x, visible)
    for row in range(2):
        normal = functional.layer_norm(x[row], (DIM,), eps=EPS)
        u, q = functional.silu(made.asking(normal)).chunk(2, dim=-1)
        k, v = functional.silu(made.asked(normal)).chunk(2, dim=-1)
        for i in range(TOKENS):
            heads = []
            for h in range(HEADS):
                part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
                total = torch.zeros(HEAD_DIM, dtype=torch.float64)
                for j in range(i + 1):
                    score = q[i, part] @ k[j, part] + made.bias(None)[i, j]
                    total += functional.silu(score) / TOKENS * v[j, part]
                heads.append(total)
            width = HEADS * HEAD_DIM
            attended = functional.layer_norm(torch.cat(heads), (width,), eps=EPS)
            torch.testing.assert_close(out[row, i], made.out(u[i] * attended))


def test_later_queries_alone_are_the_last_rows() -> None:
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.float64) / TOKENS
    torch.testing.assert_close(layer(first_query=3)(x, visible), layer()(x, visible)[:, 3:])


def test_fewer_tokens_take_the_first_biases() -> None:
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.float64)
    large, small = layer(7), layer()
    small.bias.weight = large.bias.weight[:TOKENS, :TOKENS]
    torch.testing.assert_close(large(x, visible), small(x, visible))
