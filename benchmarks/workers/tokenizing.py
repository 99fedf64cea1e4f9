"""One tokenizer: fitted on a sample of synthetic vectors, then run over many in blocks."""

import json
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.worker import serve

CENTRES = 1000
"""Clusters of the vectors."""
SPREAD = 0.5
"""Standard deviation inside a cluster; centres have 1."""
BATCH_SIZE = 1024
COLLABORATIVE_WIDTH = 32
"""Of the vectors that LETTER's codes are drawn to: the width that its codes have by default."""


def main(arguments: SimpleNamespace) -> None:
    from pydantic import TypeAdapter

    from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems, VectorBatch
    from rankloom.retrieval.tokenizers.catalog import TokenizerConfig, build_tokenizer

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = TypeAdapter(TokenizerConfig).validate_python(arguments.config)
    tokenizer = build_tokenizer(config, arguments.width)
    assert isinstance(tokenizer, torch.nn.Module)
    centres = torch.randn(CENTRES, arguments.width)

    def vectors(items: int) -> Iterator[Tensor]:
        """Blocks of vectors around random centres, the same ones at every call."""
        rng = torch.Generator().manual_seed(1)
        for start in range(0, items, arguments.block):
            size = min(arguments.block, items - start)
            chosen = centres[torch.randint(CENTRES, (size,), generator=rng)]
            yield chosen + SPREAD * torch.randn(size, arguments.width, generator=rng)

    def fit() -> dict[str, Any]:
        sample = torch.cat(list(vectors(arguments.sample)))
        items = TokenizerItems(vectors=sample, collaborative=sample[:, -COLLABORATIVE_WIDTH:])
        rng = torch.Generator().manual_seed(2)
        start = time.perf_counter()
        if isinstance(tokenizer, FittedTokenizer):
            tokenizer.fit(items, rng)
        else:
            train(items, rng)
        tokenizer.eval()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "level_sizes": list(tokenizer.level_sizes)}

    def train(items: TokenizerItems, rng: torch.Generator) -> None:
        tokenizer.start(items, rng)
        learned = [part for part in tokenizer.parameters() if part.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=1e-3)
        tokenizer.train()
        for step in range(arguments.steps):
            rows = torch.randint(items.num_items, (BATCH_SIZE,), generator=rng)
            batch = VectorBatch(rows, items.vectors[rows], step / arguments.steps)
            optimizer.zero_grad()
            tokenizer.loss(batch).total.backward()
            optimizer.step()

    def tokenize(items: int) -> dict[str, Any]:
        codes, seconds = [], 0.0
        for block in vectors(items):  # making the vectors is not measured
            start = time.perf_counter()
            codes.append(tokenizer.assign(block).codes)
            seconds += time.perf_counter() - start
        return {"seconds": seconds, "shape": list(np.concatenate(codes).shape)}

    serve({"fit": fit, "tokenize": tokenize})


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
