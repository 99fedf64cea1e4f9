"""HSTU that scores items: its share per key, and its biases."""

import math

import torch
from torch.nn import functional

from tests.retrieval.sequential.sequential_models import all_scores, contexts, randomised


def test_it_is_the_published_layer_over_a_history() -> None:
    model = randomised("hstu", num_layers=1, num_heads=1, head_dim=4)
    history, dim, longest = [2, 9, 4], 8, 6
    table, positions = model.embed.items.weight, model.embed.positions
    x = torch.stack(
        [math.sqrt(dim) * table[item] + positions[2 - place] for place, item in enumerate(history)]
    )
    layer = model.layers[0]
    normal = functional.layer_norm(x, (dim,), eps=1e-6)
    u, q = functional.silu(normal @ layer.asking.weight.T).chunk(2, dim=-1)
    k, v = functional.silu(normal @ layer.asked.weight.T).chunk(2, dim=-1)
    bias = layer.bias.position.weight  # of distances -5 to 5
    total = torch.zeros(4, dtype=torch.float64)
    for j in range(3):
        total += functional.silu(q[2] @ k[j] + bias[2 - j + longest - 1]) / longest * v[j]
    gated = u[2] * functional.layer_norm(total, (4,), eps=1e-6)
    expected = model.norm(x[2] + layer.out(gated)) @ table[1:].T
    torch.testing.assert_close(all_scores(model, contexts(history))[0], expected.float())
