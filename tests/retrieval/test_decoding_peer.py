"""Beam search against Hugging Face's `generate` on the same weights, held to the same catalogue."""

import numpy as np
import torch
from table_generator import random_ids

from benchmarks.retrieval_t5 import HuggingFaceSearch
from rankloom.retrieval.decoding import beam_search
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.trie import Trie


def test_finds_what_hugging_face_finds() -> None:
    """Few beams, so that both drop the same ones on the way; ids of one length."""
    ids = random_ids(np.random.default_rng(2), 60, (6, 6, 6), variable=False)
    torch.manual_seed(0)
    config = EncDecConfig(dim=16, num_layers=2, num_heads=2, head_dim=8, hidden_dim=32)
    model = EncDec(config, ItemSchema(ids.num_items, ids=ids)).eval()
    peer = HuggingFaceSearch(model, config, ids)
    batch = HistoryBatch(torch.tensor([[5, 3, 9, 1], [2, 0, 0, 0], [7, 7, 8, 0]]))
    trie = Trie.build(ids)
    for beams in (1, 2, 4):
        decoded = beam_search(model, batch, trie, beams=beams)
        assert peer.found(batch, beams) == [set(leaves) for leaves in decoded.leaves.tolist()]
