"""What every retrieval model of the catalog keeps to."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rankloom.catalog import ENTRIES, build_model, lookup
from rankloom.config import parse_config, to_toml
from rankloom.data.examples import example_schema
from rankloom.protocols import HasLoss
from rankloom.retrieval.decoding import score_all
from rankloom.retrieval.histories import Histories, HistoryBatch, pad_histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import Generator, ItemScorer
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.trie import Trie

SMALL = {"dim": 16, "num_layers": 1, "num_heads": 2}
SMALL_CAUSAL = {**SMALL, "dropout": 0.0, "network": {"kind": "swiglu", "hidden_dim": 64}}
SMALL_ENCDEC = {**SMALL, "dropout": 0.0, "head_dim": 8, "hidden_dim": 64}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "popularity": [{}],
    "item_knn": [{}, {"num_neighbours": 3, "recency": 0.5}],
    "gru4rec": [{"dim": 16}, {"dim": 16, "loss": {"kind": "bpr_max", "num_negatives": 8}}],
    "sasrec": [
        {**SMALL},
        {**SMALL, "loss": {"kind": "bce"}},
        {**SMALL, "loss": {"kind": "sampled_softmax", "num_negatives": 8}},
    ],
    "bert4rec": [{**SMALL, "expansion": 2, "last_only_share": 0.5, "dropout": 0.0}],
    "famae": [{**SMALL}],
    "sequential_hstu": [{**SMALL, "head_dim": 8}],
    "decoder": [SMALL_CAUSAL, {**SMALL_CAUSAL, "adapters": {"rank": 2}, "num_user_tokens": 3}],
    "encdec": [SMALL_ENCDEC, {**SMALL_ENCDEC, "num_user_tokens": 3}],
    "cobra": [{**SMALL_CAUSAL, "dense_hidden": 8}],
    "rpg": [SMALL_CAUSAL],
}
"""Settings to be checked, small ones: two and more where parts can be exchanged."""

NUM_ITEMS, NUM_USERS = 20, 9
CODES = np.stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4], 1).astype(np.int32)
IDS = SemanticIds(CODES, (5, 5))
TRIE = Trie.build(IDS)


def random_vectors(rows: int) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(7))


SCHEMA = ItemSchema(
    num_items=NUM_ITEMS,
    num_users=NUM_USERS,
    ids=IDS,
    vectors=random_vectors(NUM_ITEMS),
    code_vectors=random_vectors(IDS.vocabulary_size),
)
RETRIEVAL = [entry for entry in ENTRIES if entry.family == "retrieval"]


@dataclass(frozen=True)
class Case:
    """One model config."""

    name: str
    settings: dict[str, Any]

    def build(self, seed: int = 0) -> nn.Module:
        config = parse_config(lookup(self.name).config, self.settings, self.name)
        torch.manual_seed(seed)
        return build_model(self.name, config, SCHEMA)


def cases(counted: bool | None = None) -> Iterator[Any]:
    for entry in RETRIEVAL:
        for number, settings in enumerate(VARIANTS[entry.name]):
            if counted is None or counted == hasattr(entry.build, "fit"):
                yield pytest.param(Case(entry.name, settings), id=f"{entry.name}-{number}")


every_model = pytest.mark.parametrize("case", list(cases()))
every_learned_model = pytest.mark.parametrize("case", list(cases(counted=False)))


def histories(rows: int, seed: int = 0) -> list[np.ndarray]:
    """Histories of one to eight items."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, rows)
    return [generator.integers(1, NUM_ITEMS + 1, length) for length in lengths]


def context(rows: int, seed: int = 0) -> HistoryBatch:
    users = torch.arange(rows) % (NUM_USERS + 1)
    return HistoryBatch(pad_histories(histories(rows, seed), 8), users=users)


def chain(rows: int) -> HistoryBatch:
    """Training rows whose every next item is the item before plus one, around the catalogue."""
    start = torch.arange(rows)[:, None] % NUM_ITEMS
    items = (start + torch.arange(6)) % NUM_ITEMS + 1
    return HistoryBatch(items, items % NUM_ITEMS + 1, torch.arange(rows) % NUM_USERS + 1)


def training_batch(model: nn.Module, rows: int) -> HistoryBatch:
    """The chain as the rows that the model is trained on."""
    batch = chain(rows)
    if model.training_rows == "users":
        return batch
    assert batch.targets is not None
    targets = torch.zeros_like(batch.targets)
    targets[:, -1] = batch.targets[:, -1]
    return HistoryBatch(batch.items, targets, batch.users)


def prepared(case: Case, seed: int = 0) -> nn.Module:
    """A model with parameters of ordinary size, or counts."""
    model = case.build(seed)
    if hasattr(model, "fit"):
        model.fit(Histories.from_lists(histories(30, seed), NUM_ITEMS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def scores(model: nn.Module, batch: HistoryBatch) -> Tensor:
    """[batch, items], of a generator the likelihood of the items' ids."""
    model.eval()
    if isinstance(model, ItemScorer):
        return model.score_items(batch)
    assert isinstance(model, Generator)
    return score_all(model, batch, TRIE)[:, TRIE.item_leaf[1:].long()]


def test_every_model_is_checked_and_said_of_completely() -> None:
    assert VARIANTS.keys() == {entry.name for entry in RETRIEVAL}
    for entry in RETRIEVAL:
        assert entry.idea.endswith(".")
        assert str(entry.year) in entry.paper
        assert entry.build.__doc__


@every_model
def test_config_survives_toml(case: Case) -> None:
    config = parse_config(lookup(case.name).config, case.settings, case.name)
    assert parse_config(type(config), tomllib.loads(to_toml(config)), "toml") == config


@every_model
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_finite_scores_of_all_items_at_any_batch_size(case: Case, rows: int) -> None:
    found = scores(prepared(case), context(rows))
    assert found.shape == (rows, NUM_ITEMS)
    assert found.isfinite().all()


@every_model
def test_an_empty_history_has_finite_scores(case: Case) -> None:
    model = prepared(case)
    empty = HistoryBatch(torch.zeros(2, 1, dtype=torch.int64))
    found = scores(model, empty)
    assert found.isfinite().all()
    mixed = HistoryBatch(pad_histories([[], [3, 4, 5]], 8))
    torch.testing.assert_close(scores(model, mixed)[0], found[0], rtol=1e-4, atol=1e-5)


@every_model
def test_more_padding_changes_nothing(case: Case) -> None:
    model = prepared(case)
    batch = context(6)
    wider = torch.nn.functional.pad(batch.items, (0, 3))
    found = scores(model, HistoryBatch(wider, users=batch.users))
    torch.testing.assert_close(found, scores(model, batch), rtol=1e-4, atol=1e-5)


@every_model
def test_rows_do_not_depend_on_their_neighbours(case: Case) -> None:
    model = prepared(case)
    batch = context(9)
    order = torch.tensor([4, 0, 8])
    assert batch.users is not None
    some = HistoryBatch(batch.items[order], users=batch.users[order])
    torch.testing.assert_close(
        scores(model, some), scores(model, batch)[order], rtol=1e-4, atol=1e-5
    )


@every_model
def test_targets_do_not_enter_the_scores(case: Case) -> None:
    model = prepared(case)
    batch = chain(5)
    plain = HistoryBatch(batch.items, users=batch.users)
    torch.testing.assert_close(scores(model, batch), scores(model, plain))


@every_model
def test_saved_weights_give_equal_scores(case: Case, tmp_path: Path) -> None:
    model = prepared(case)
    path = tmp_path / "model.safetensors"
    state = {name: value.clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path)
    other = prepared(case, seed=5)
    batch = context(6)
    assert not torch.equal(scores(other, batch), scores(model, batch))
    other.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(scores(other, batch), scores(model, batch))


@every_learned_model
def test_same_seed_same_weights_and_another_seed_others(case: Case) -> None:
    first, second, other = (case.build(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_model
def test_two_models_share_no_tensor(case: Case) -> None:
    def addresses(model: nn.Module) -> set[int]:
        return {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}

    first, second = case.build(), case.build()
    assert addresses(first)
    assert not addresses(first) & addresses(second)


@every_learned_model
def test_gradients_reach_every_parameter(case: Case) -> None:
    model = prepared(case).train()
    assert isinstance(model, HasLoss)
    torch.manual_seed(0)
    for rows in (2, 64):  # the smallest batch must be trainable
        model.zero_grad()
        batch = training_batch(model, rows)
        if rows > 2:  # rows of all lengths up to the model's, so that every position is used
            batch = every_length(model)
        total = model.loss(batch).total
        assert total.isfinite()
        total.backward()
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []


def every_length(model: nn.Module) -> HistoryBatch:
    """Rows of every length up to fifty, each item in some of them."""
    lengths = torch.arange(1, 51).repeat(2)
    items = (torch.arange(100)[:, None] * 7 + torch.arange(50)) % NUM_ITEMS + 1
    inside = torch.arange(50) < lengths[:, None]
    targets = torch.where(inside, items % NUM_ITEMS + 1, 0)
    if model.training_rows == "prefixes":
        last = torch.arange(50) == lengths[:, None] - 1
        targets = torch.where(last, targets, 0)
    return HistoryBatch(torch.where(inside, items, 0), targets, torch.arange(100) % NUM_USERS + 1)


COURSES = {"cobra": 225, "sasrec": 200}
"""Steps of models that learn the chain in more than a hundred."""


@every_learned_model
def test_learns_a_planted_signal(case: Case) -> None:
    model = case.build()
    batch = training_batch(model, NUM_ITEMS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(0)
    for _ in range(COURSES.get(case.name, 100)):
        model.train()
        loss = model.loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = scores(model, HistoryBatch(batch.items, users=batch.users)).argmax(1) + 1
    assert (found == batch.items[:, -1] % NUM_ITEMS + 1).float().mean() >= 0.9


def test_models_are_built_for_the_schema_of_their_kind() -> None:
    rows = example_schema()
    with pytest.raises(ValueError, match="sasrec retrieves items; it is built for an ItemSchema"):
        build_model("sasrec", lookup("sasrec").config(), rows)
    with pytest.raises(ValueError, match="lr scores rows; it is built for a Schema"):
        build_model("lr", lookup("lr").config(), SCHEMA)


@pytest.mark.parametrize("name", [entry.name for entry in RETRIEVAL if entry.requires])
def test_models_without_their_ids_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="needs the items' semantic ids; make them with|vectors"):
        build_model(name, lookup(name).config(), ItemSchema(num_items=NUM_ITEMS))
