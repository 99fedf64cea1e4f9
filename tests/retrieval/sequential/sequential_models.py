"""Small sequential models, and a world whose next item follows from the newest one."""

import numpy as np
import torch
from torch import Tensor, nn

from rankloom.config import Config, parse_config
from rankloom.retrieval.histories import Histories, HistoryBatch, pad_histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.sequential.bert4rec import BERT4Rec, BERT4RecConfig
from rankloom.retrieval.sequential.gru4rec import GRU4Rec, GRU4RecConfig
from rankloom.retrieval.sequential.hstu import SequentialHSTU, SequentialHSTUConfig
from rankloom.retrieval.sequential.sasrec import SASRec, SASRecConfig

LEARNED: dict[str, tuple[type[Config], type[nn.Module]]] = {
    "sasrec": (SASRecConfig, SASRec),
    "hstu": (SequentialHSTUConfig, SequentialHSTU),
    "gru4rec": (GRU4RecConfig, GRU4Rec),
    "bert4rec": (BERT4RecConfig, BERT4Rec),
}
NUM_ITEMS = 20
SIZES = {"dim": 8, "max_length": 6}


def build(name: str, num_items: int = NUM_ITEMS, seed: int = 1, **settings: object) -> nn.Module:
    config_type, model_type = LEARNED[name]
    config = parse_config(config_type, SIZES | settings, "test")
    torch.manual_seed(seed)
    return model_type(config, ItemSchema(num_items))


def randomised(name: str, **settings: object) -> nn.Module:
    """In double precision, at evaluation, its parameters large enough to matter everywhere."""
    model = build(name, **settings).double().eval()
    for path, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.7)
        if path.endswith("items.weight"):
            with torch.no_grad():
                parameter[0].zero_()
    return model


def rows(*histories: list[int]) -> HistoryBatch:
    """Histories without their last item, which is the target at their last position."""
    items = pad_histories([history[:-1] for history in histories], 50)
    targets = pad_histories([history[1:] for history in histories], 50)
    return HistoryBatch(items, targets)


def contexts(*histories: list[int]) -> HistoryBatch:
    return HistoryBatch(pad_histories(histories, 50))


def markov_histories(users: int = 200, length: int = 8, seed: int = 0) -> Histories:
    """An item is followed by the next number (20 by 1), in nine cases of ten."""
    generator = np.random.default_rng(seed)
    items = np.empty((users, length), np.int64)
    items[:, 0] = generator.integers(1, NUM_ITEMS + 1, users)
    for place in range(1, length):
        random = generator.integers(1, NUM_ITEMS + 1, users)
        follows = generator.random(users) < 0.9
        items[:, place] = np.where(follows, items[:, place - 1] % NUM_ITEMS + 1, random)
    return Histories.from_lists(list(items), NUM_ITEMS)


def all_scores(model: nn.Module, batch: HistoryBatch) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model.score_items(batch)
