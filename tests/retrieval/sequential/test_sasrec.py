"""SASRec against a slow reference, and its positions."""

import math

import torch
from torch.nn import functional

from tests.retrieval.sequential.sequential_models import all_scores, contexts, randomised


def test_it_is_the_paper_s_block_by_block() -> None:
    model = randomised("sasrec", num_heads=2, expansion=3)
    history = [3, 1, 4, 1]
    dim = 8
    table, positions = model.embed.items.weight, model.embed.positions
    x = torch.stack(
        [math.sqrt(dim) * table[item] + positions[3 - place] for place, item in enumerate(history)]
    )
    for block in model.blocks:
        normal = block.attention_norm(x)
        q, k, v = (normal @ w.T for w in block.attend.project.weight.chunk(3))
        attended = torch.zeros_like(x)
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(4):
                scores = torch.stack([q[i, head] @ k[j, head] / 2 for j in range(i + 1)])
                attended[i, head] = scores.softmax(0) @ v[: i + 1, head]
        x = x + attended @ block.out.weight.T
        hidden = functional.relu(block.network.expand(block.network_norm(x)))
        x = x + block.network.reduce(hidden)
    expected = model.norm(x)[3] @ table[1:].T
    torch.testing.assert_close(all_scores(model, contexts(history))[0], expected.float())


def test_positions_are_counted_from_the_newest_item() -> None:
    model = randomised("sasrec")
    before = all_scores(model, contexts([5], [6, 5]))
    with torch.no_grad():
        model.embed.positions[1, 0] += 1
    after = all_scores(model, contexts([5], [6, 5]))
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
