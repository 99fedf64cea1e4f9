"""Small models with depths."""

from typing import Any

import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.embedding import FieldEmbedding
from rankloom.schema import Schema


class LoopedNetwork(nn.Module):
    """One layer used again and again; only all depths at once."""

    def __init__(self, schema: Schema, num_depths: int = 3, dim: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.num_depths = num_depths
        self.embedding = FieldEmbedding(schema, dim)
        self.enter = nn.Linear(self.embedding.width, dim)
        self.loop = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, schema.num_tasks)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, batch: Batch) -> Tensor:
        return self.depth_logits(batch)[-1]

    def depth_logits(self, batch: Batch, num_depths: int | None = None) -> Tensor:
        x = self.enter(self.embedding(batch).flatten(1))
        logits = [self.head(x)]
        for _ in range((num_depths or self.num_depths) - 1):
            x = x + torch.tanh(self.loop(x))
            logits.append(self.head(x))
        return torch.stack(logits)


class SteppedNetwork(LoopedNetwork):
    """The same, a depth at a time; it notes how many rows every depth computed."""

    def start_depths(self, batch: Batch) -> Tensor:
        self.rows = [batch.size]
        return self.enter(self.embedding(batch).flatten(1))

    def next_depth(self, state: Tensor) -> Tensor:
        self.rows.append(len(state))
        return state + torch.tanh(self.loop(state))

    def select_rows(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]

    def state_logits(self, state: Any) -> Tensor:
        return self.head(state)
