"""Semantic ids: the codes of every item of a catalogue, and the tokens a generator writes them in.

An item's id is its codes of levels 1, 2 ...; ids may differ in length. As tokens every level has
codes of its own in one vocabulary, merged pairs (SemanticBPE) have tokens of their own, and an id
ends with END, so that no id is the beginning of another one:

    0 padding, 1 END, 2 START, 3 ... level 1, level 2 ..., merges in the order they were learned
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from rankloom.config import Config, parse_config, read_json_values
from rankloom.retrieval.merged_tokens import apply_merges

IntArray = npt.NDArray[np.int32]

PADDING, END, START = 0, 1, 2
"""Special tokens."""
FIRST_CODE = 3
"""Token of code 0 of level 1."""
FORMAT_VERSION = 1
CODES_FILE, FACTS_FILE = "codes.safetensors", "semantic_ids.json"


class _Facts(Config):
    format_version: int
    level_sizes: tuple[int, ...]
    tokenizer: str
    vectors_hash: str
    items_hash: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SemanticIds:
    """The ids of all items of a catalogue. Row i is of item number i + 1."""

    codes: IntArray
    """[items, levels] int32 codes from 0; -1 after an id's end. Every id has at least one code."""
    level_sizes: tuple[int, ...]
    """Codes of each level."""
    merges: IntArray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """[merges, 2] pairs of tokens that become one, in the order they were learned; merge m makes
    token `FIRST_CODE + sum(level_sizes) + m`."""
    tokenizer: str = ""
    """Name of what made them."""
    vectors_hash: str = ""
    """Hash of the item vectors they were made from."""
    items_hash: str = ""
    """Hash of the catalogue's item ids, in order."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of what made them, for the record."""

    def __post_init__(self) -> None:
        """Check the codes against the levels.

        Raises:
            ValueError: a code is beyond its level, or an id has a gap or no code at all.
        """
        codes = self.codes
        if codes.ndim != 2 or codes.shape[1] != len(self.level_sizes):
            raise ValueError(
                f"codes must be [items, levels] with {len(self.level_sizes)} levels; got shape "
                f"{codes.shape}"
            )
        if codes.size and (codes >= np.asarray(self.level_sizes)).any():
            raise ValueError(f"a code is beyond its level; sizes: {self.level_sizes}")
        present = codes >= 0
        if not present[:, :1].all() or (present[:, 1:] & ~present[:, :-1]).any():
            raise ValueError("every id needs a code of level 1 and no gap before its last code")

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.codes.shape[0]

    @cached_property
    def lengths(self) -> IntArray:
        """[items] codes of each id."""
        return (self.codes >= 0).sum(1).astype(np.int32)

    @cached_property
    def level_offsets(self) -> IntArray:
        """[levels] token of code 0 of each level."""
        sizes = np.cumsum([0, *self.level_sizes[:-1]])
        return (FIRST_CODE + sizes).astype(np.int32)

    @property
    def vocabulary_size(self) -> int:
        """Tokens in all, the special ones included."""
        return FIRST_CODE + sum(self.level_sizes) + len(self.merges)

    @cached_property
    def groups(self) -> IntArray:
        """[items] number of the distinct id of each item, from 0; equal for items that collide."""
        return np.unique(self.codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)

    @cached_property
    def tokens(self) -> IntArray:
        """[items, width] tokens of each id with its merges applied, END after it, then padding."""
        plain = np.where(self.codes >= 0, self.codes + self.level_offsets, PADDING)
        first_merge = FIRST_CODE + sum(self.level_sizes)
        merged = apply_merges(plain.astype(np.int32), self.merges, first_merge)
        lengths = (merged != PADDING).sum(1)
        width = int(lengths.max(initial=0)) + 1
        tokens = np.zeros((self.num_items, width), np.int32)
        tokens[:, : width - 1] = merged[:, : width - 1]
        tokens[np.arange(self.num_items), lengths] = END
        return tokens

    def token_table(self) -> Int[Tensor, "items_plus_one width"]:
        """`tokens` to be looked up by item number: row 0, of padding, is all padding."""
        table = np.zeros((self.num_items + 1, self.tokens.shape[1]), np.int64)
        table[1:] = self.tokens
        return torch.from_numpy(table)

    @property
    def content_hash(self) -> str:
        """Short hash of codes, levels and merges: what a trie and a generator were built for."""
        digest = hashlib.sha256(repr(self.level_sizes).encode())
        digest.update(np.ascontiguousarray(self.codes).tobytes())
        digest.update(np.ascontiguousarray(self.merges).tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write the ids into a folder.

        Raises:
            OSError: the folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        arrays = {
            "codes": np.ascontiguousarray(self.codes, dtype=np.int32),
            "merges": np.ascontiguousarray(self.merges, dtype=np.int32),
        }
        save_file(arrays, path / CODES_FILE)
        facts = _Facts(
            format_version=FORMAT_VERSION,
            level_sizes=self.level_sizes,
            tokenizer=self.tokenizer,
            vectors_hash=self.vectors_hash,
            items_hash=self.items_hash,
            settings=dict(self.settings),
        )
        # Written last: without it the folder holds no ids.
        text = json.dumps(facts.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (path / FACTS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "SemanticIds":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no semantic ids.
            ValueError: they are damaged or of another format.
        """
        path = Path(folder)
        if not (path / FACTS_FILE).is_file():
            raise FileNotFoundError(f"no semantic ids in {path}; make them with rankloom tokenize")
        facts = parse_config(_Facts, read_json_values(path / FACTS_FILE), str(path / FACTS_FILE))
        if facts.format_version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: semantic ids of format {facts.format_version}; this rankloom reads "
                f"format {FORMAT_VERSION}: tokenize again"
            )
        try:
            arrays = load_file(path / CODES_FILE)
        except SafetensorError as error:
            raise ValueError(
                f"{path / CODES_FILE} is damaged: {error}; tokenize again with --fresh"
            ) from None
        return cls(
            arrays["codes"],
            facts.level_sizes,
            arrays["merges"],
            facts.tokenizer,
            facts.vectors_hash,
            facts.items_hash,
            facts.settings,
        )
