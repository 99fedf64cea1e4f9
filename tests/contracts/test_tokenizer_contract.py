"""What every tokenizer of the catalog keeps to."""

import tomllib
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankloom.config import Config, parse_config, to_toml
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.protocols import (
    FittedTokenizer,
    Tokenizer,
    TokenizerItems,
    TrainedTokenizer,
    VectorBatch,
)
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers.catalog import TokenizerConfig, build_tokenizer
from rankloom.retrieval.tokenizers.state import load_state

WIDTH, ITEMS = 16, 60
SETTINGS: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"level_sizes": [6, 5]},
    "rq_vae": {"level_sizes": [6, 5]},
    "letter": {"network": {"level_sizes": [6, 5]}, "num_groups": 2},
    "opq": {"num_digits": 4, "num_codes": 8},
    "capsid": {"num_codes": 8, "num_levels": 3, "dim": 8},
    "gaoq": {},
    "action_piece": {
        "features": {"kind": "opq", "num_digits": 2, "num_codes": 8},
        "num_buckets": 8,
    },
    "attribute_prefix": {"attributes": ["category"], "level_sizes": [4, 4]},
}
CONFIGS = {
    config.model_fields["kind"].default: config for config in get_args(get_args(TokenizerConfig)[0])
}
every_tokenizer = pytest.mark.parametrize("kind", SETTINGS)


def config_of(kind: str) -> Config:
    return parse_config(CONFIGS[kind], {"kind": kind, **SETTINGS[kind]}, kind)


def items(rows: int = ITEMS) -> TokenizerItems:
    """Vectors around eight centres, a side field, and sequences."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(8, WIDTH, generator=generator)
    vectors = centres[torch.arange(rows) % 8] + 0.3 * torch.randn(rows, WIDTH, generator=generator)
    drawn = np.random.default_rng(0).integers(1, rows + 1, (10, 6))
    return TokenizerItems(
        vectors,
        attributes=(torch.arange(rows) % 8 // 2 + 1)[:, None],
        attribute_names=("category",),
        histories=Histories.from_lists(list(drawn), rows),
        collaborative=torch.randn(rows, 32, generator=generator),
    )


def learned(kind: str, given: TokenizerItems, seed: int = 0) -> Tokenizer:
    """The tokenizer fitted, or trained for a few steps."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(config_of(kind), given.vectors.shape[1])  # type: ignore[arg-type]
    assert isinstance(tokenizer, nn.Module)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(tokenizer, TrainedTokenizer):
        tokenizer.start(given, generator)
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-3)
        for step in range(4):
            optimizer.zero_grad()
            rows = torch.arange(given.num_items)
            tokenizer.loss(VectorBatch(rows, given.vectors, step / 4)).total.backward()
            optimizer.step()
    else:
        assert isinstance(tokenizer, FittedTokenizer)
        tokenizer.fit(given, generator)
    tokenizer.eval()
    return tokenizer


def state_of(tokenizer: Tokenizer) -> dict[str, Tensor]:
    assert isinstance(tokenizer, nn.Module)
    return {name: value.clone() for name, value in tokenizer.state_dict().items()}


def test_every_tokenizer_is_checked() -> None:
    assert SETTINGS.keys() == CONFIGS.keys()


@every_tokenizer
def test_settings_survive_toml(kind: str) -> None:

    config = config_of(kind)
    assert parse_config(type(config), tomllib.loads(to_toml(config)), "toml") == config


@every_tokenizer
@pytest.mark.parametrize("rows", [1, 3, ITEMS])
def test_codes_are_ids(kind: str, rows: int) -> None:
    given = items(rows)
    tokenizer = learned(kind, given)
    found = tokenizer.assign(given.vectors)
    ids = SemanticIds(found.codes, tuple(tokenizer.level_sizes))  # checks codes and gaps
    assert ids.num_items == rows
    assert found.codes.dtype == np.int32
    for level in range(len(tokenizer.level_sizes)):
        vectors = tokenizer.code_vectors(level)
        assert vectors is None or len(vectors) == tokenizer.level_sizes[level]
    if found.alternatives is not None:
        assert (found.alternatives >= 0).all()
        given_codes = found.codes >= 0
        width = found.codes.shape[1]
        assert (found.alternatives[:, :width][given_codes] == found.codes[given_codes]).all()


@every_tokenizer
def test_saved_state_gives_the_same_codes(kind: str) -> None:
    given = items()
    tokenizer = learned(kind, given)
    other = build_tokenizer(config_of(kind), WIDTH)  # type: ignore[arg-type]
    assert isinstance(other, nn.Module)
    load_state(other, state_of(tokenizer))
    other.eval()
    assert tuple(other.level_sizes) == tuple(tokenizer.level_sizes)
    np.testing.assert_array_equal(
        other.assign(given.vectors).codes, tokenizer.assign(given.vectors).codes
    )


@every_tokenizer
def test_the_same_seed_gives_the_same_codes(kind: str) -> None:
    given = items()
    first, second = (learned(kind, given, seed=4).assign(given.vectors).codes for _ in range(2))
    np.testing.assert_array_equal(first, second)


@every_tokenizer
def test_new_vectors_get_codes(kind: str) -> None:
    tokenizer = learned(kind, items())
    new = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(9))
    found = tokenizer.assign(new)
    SemanticIds(found.codes, tuple(tokenizer.level_sizes))
    assert tokenizer.assign(new[:0]).codes.shape == (0, found.codes.shape[1])


@every_tokenizer
def test_identical_vectors_do_not_break_anything(kind: str) -> None:
    given = items(12)
    same = TokenizerItems(
        given.vectors[:1].expand(12, -1).contiguous(),
        given.attributes,
        given.attribute_names,
        given.histories,
        given.collaborative,
    )
    tokenizer = learned(kind, same)
    SemanticIds(tokenizer.assign(same.vectors).codes, tuple(tokenizer.level_sizes))
