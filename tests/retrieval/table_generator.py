"""A generator that looks its logits up by user and written tokens, and what decoding must give."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rankloom.protocols import Loss
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.semantic_ids import END, SemanticIds

Prefix = tuple[int, ...]


class TableGenerator:
    """Logits drawn once for each first item of a history and prefix; `hidden` is their row."""

    training_rows: Literal["users", "prefixes"] = "users"

    def __init__(self, vocabulary: int, *, spread: float = 1.0) -> None:
        self.vocabulary = vocabulary
        self.spread = spread
        self.rows: dict[tuple[int, Prefix], int] = {}
        self.table: list[Tensor] = []
        self.asked: list[int] = []
        """Rows times beams of each `advance`."""

    def logits_after(self, user: int, prefix: Prefix) -> Tensor:
        row = self.rows.setdefault((user, prefix), len(self.table))
        if row == len(self.table):
            seed = abs(hash((user, prefix))) % 2**31
            drawn = torch.randn(self.vocabulary, generator=torch.Generator().manual_seed(seed))
            self.table.append(self.spread * drawn)
        return self.table[row]

    def _hidden(self, state: list[list[tuple[int, Prefix]]]) -> Tensor:
        for beams in state:
            for user, prefix in beams:
                self.logits_after(user, prefix)
        return torch.tensor([[[float(self.rows[beam])] for beam in beams] for beams in state])

    def start(self, batch: HistoryBatch) -> tuple[Tensor, list[list[tuple[int, Prefix]]]]:
        state = [[(int(items[0]), ())] for items in batch.items]
        return self._hidden(state), state

    def advance(
        self, state: list[list[tuple[int, Prefix]]], tokens: Tensor, parents: Tensor
    ) -> tuple[Tensor, list[list[tuple[int, Prefix]]]]:
        self.asked.append(tokens.numel())
        after = [
            [
                (beams[parent][0], (*beams[parent][1], token))
                for token, parent in zip(new, old, strict=True)
            ]
            for beams, new, old in zip(state, tokens.tolist(), parents.tolist(), strict=True)
        ]
        return self._hidden(after), after

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.stack(self.table)[hidden[..., 0].long()]

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.logits(hidden).gather(-1, tokens)

    def loss(self, batch: HistoryBatch) -> Loss:
        raise NotImplementedError


def sequences(ids: SemanticIds) -> list[Prefix]:
    """The distinct token sequences in order, END included."""
    return sorted({tuple(int(token) for token in row if token) for row in ids.tokens})


def likelihood(
    generator: TableGenerator, user: int, sequence: Prefix, legal: list[Prefix] | None = None
) -> float:
    """Sum of the log-softmax of each token; over the children that `legal` ids have, if given."""
    total = 0.0
    for place, token in enumerate(sequence):
        logits = generator.logits_after(user, sequence[:place])
        if legal is not None:
            children = {other[place] for other in legal if other[:place] == sequence[:place]}
            keep = torch.tensor(sorted(children))
            masked = torch.full_like(logits, -torch.inf)
            masked[keep] = logits[keep]
            logits = masked
        total += float(logits.log_softmax(0)[token])
    return total


def random_ids(
    rng: np.random.Generator, num_items: int, sizes: tuple[int, ...], *, variable: bool = True
) -> SemanticIds:
    """Ids of one code to all levels, or of all; some of them may have several items."""
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], 1).astype(np.int32)
    if variable:
        lengths = rng.integers(1, len(sizes) + 1, num_items)
        codes[np.arange(len(sizes)) >= lengths[:, None]] = -1
    return SemanticIds(codes, sizes)


def ends(sequence: Prefix) -> bool:
    """Whether END is its last token and nowhere else."""
    return sequence[-1] == END and END not in sequence[:-1]
