"""The catalogue of items, and the vectors that an encoder makes of it.

Items have numbers from 1 in the order of the catalogue; row i of every table here is item number
i + 1. What is computed once for a catalogue is kept under a hash of everything it depends on.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.histories import Histories

IntArray = npt.NDArray[np.int64]

CACHE_VERSION = 2
"""Raised when an encoder's vectors or its state change for the same settings: older files are then
not taken."""
_VECTORS, _FACTS, _STATE = "vectors", "facts", "state."


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items: ids, what people read, and what encoders and tokenizers know of them."""

    ids: list[str]
    """[items] the outside world's ids, all different."""
    titles: list[str]
    """[items] what a person is shown; empty where there is none."""
    texts: list[str]
    """[items] what text encoders read; empty where there is none."""
    attributes: Int[Tensor, "items fields"]
    """int64 side fields, numbers from 1; 0: missing."""
    attribute_names: tuple[str, ...] = ()
    """[fields] names of the side fields."""
    attribute_labels: tuple[tuple[str, ...], ...] = ()
    """[fields] values of each side field; number n is the label at n - 1."""
    vectors: Float[Tensor, "items width"] | None = None
    """float32 vectors that came with the items."""

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            ValueError: parts differ in length, an id is there twice, or an attribute has no label.
        """
        items, fields = len(self.ids), len(self.attribute_names)
        rows = {
            "titles": len(self.titles),
            "texts": len(self.texts),
            "attributes": self.attributes.shape[0],
            "vectors": items if self.vectors is None else self.vectors.shape[0],
        }
        for part, length in rows.items():
            if length != items:
                raise ValueError(f"a catalogue of {items:,} items has {length:,} {part}")
        if len(self._number_of) != items:
            double = next(item for item, times in Counter(self.ids).items() if times > 1)
            raise ValueError(f"item ids must differ; {double!r} is there more than once")
        if self.attributes.shape[1] != fields or len(self.attribute_labels) != fields:
            raise ValueError(
                f"{fields} attribute names need as many columns and lists of labels; got "
                f"{self.attributes.shape[1]} and {len(self.attribute_labels)}"
            )
        for field, labels in enumerate(self.attribute_labels):
            numbers = self.attributes[:, field]
            if items and not (numbers.min() >= 0 and numbers.max() <= len(labels)):
                raise ValueError(
                    f"attribute {self.attribute_names[field]} must be 0 to {len(labels)}; got "
                    f"{int(numbers.min())} to {int(numbers.max())}"
                )

    @property
    def num_items(self) -> int:
        """Items."""
        return len(self.ids)

    def after(self, first: int) -> "Catalogue":
        """The items after the first so many, with all that is known of them."""
        return replace(
            self,
            ids=self.ids[first:],
            titles=self.titles[first:],
            texts=self.texts[first:],
            attributes=self.attributes[first:],
            vectors=None if self.vectors is None else self.vectors[first:],
        )

    @cached_property
    def items_hash(self) -> str:
        """Short hash of the ids, in order: what item numbers mean."""
        return _short_hash(json.dumps(self.ids).encode())

    @cached_property
    def content_hash(self) -> str:
        """Short hash of everything that encoders read: ids, texts, attributes, vectors."""
        parts = [json.dumps([self.ids, self.texts, self.attribute_names]).encode()]
        parts.append(self.attributes.contiguous().numpy().tobytes())
        if self.vectors is not None:
            parts.append(vectors_hash(self.vectors).encode())
        return _short_hash(*parts)

    def numbers_of(self, ids: Iterable[str]) -> IntArray:
        """[ids] the number of each id; 0 where the catalogue has no such item."""
        known = self._number_of
        return np.fromiter((known.get(item, 0) for item in ids), np.int64)

    def ids_of(self, numbers: npt.ArrayLike) -> list[str]:
        """The id of each item number, any shape flattened.

        Raises:
            ValueError: a number is not in 1..num_items.
        """
        flat = np.asarray(numbers, np.int64).reshape(-1)
        if flat.size and not (flat.min() >= 1 and flat.max() <= self.num_items):
            raise ValueError(
                f"item numbers go from 1 to {self.num_items}; got {flat.min()} to {flat.max()}"
            )
        return [self.ids[number - 1] for number in flat.tolist()]

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return dict(zip(self.ids, range(1, len(self.ids) + 1), strict=True))


@runtime_checkable
class ItemEncoder(Protocol):
    """Settings that turn a catalogue into vectors."""

    def fit(self, catalogue: Catalogue, histories: Histories | None, seed: int) -> "FittedEncoder":
        """Learn from all items; the result has their float32 vectors, row i of item number i + 1.

        Args:
            catalogue: the items.
            histories: the training part of the sequences; None: there are none.
            seed: of what the encoder draws.
        """

    def transform(self, state: EncoderState, catalogue: Catalogue) -> Float[Tensor, "items width"]:
        """float32 vectors of items that `fit` has not seen, in the space of those it has."""

    def cache_key(self) -> str:
        """Everything that the vectors depend on besides catalogue, histories and seed."""


@dataclass(frozen=True, eq=False)
class FittedEncoder:
    """An encoder, the vectors of the items it was fitted on, and what it needs for others."""

    encoder: ItemEncoder
    """Its settings."""
    vectors: Float[Tensor, "items width"]
    """float32 vectors of the items it was fitted on; row i is item number i + 1."""
    state: EncoderState
    """What it has learned."""

    def transform(self, catalogue: Catalogue) -> Float[Tensor, "items width"]:
        """float32 vectors of new items, in the space of `vectors`.

        Raises:
            ValueError: the encoder cannot see new items, these lack what it reads, or the vectors
                are not finite.
        """
        return _finite(self.encoder.transform(self.state, catalogue))


def encode_items(
    encoder: ItemEncoder,
    catalogue: Catalogue,
    histories: Histories | None = None,
    *,
    cache: str | Path | None = None,
    seed: int = 0,
) -> Float[Tensor, "items width"]:
    """Vectors of all items: those of `fit_items`, with the same arguments and errors."""
    return fit_items(encoder, catalogue, histories, cache=cache, seed=seed).vectors


def fit_items(
    encoder: ItemEncoder,
    catalogue: Catalogue,
    histories: Histories | None = None,
    *,
    cache: str | Path | None = None,
    seed: int = 0,
) -> FittedEncoder:
    """An encoder fitted on all items, once for the same settings and data.

    Args:
        encoder: the encoder's settings.
        catalogue: the items.
        histories: the training part of the sequences, for encoders that learn from them.
        cache: folder of what was fitted earlier; None: fit. A damaged file there is made anew.
        seed: of what the encoder draws.

    Raises:
        ValueError: the encoder cannot be used on this catalogue, or gives vectors that are not
            finite.
    """
    if histories is not None and histories.num_items != catalogue.num_items:
        raise ValueError(
            f"the histories are of {histories.num_items:,} items, the catalogue has "
            f"{catalogue.num_items:,}"
        )
    if cache is None:
        return _fit(encoder, catalogue, histories, seed)
    learned_from = "" if histories is None else _histories_hash(histories)
    key = [CACHE_VERSION, encoder.cache_key(), catalogue.content_hash, learned_from, seed]
    path = Path(cache) / f"items-{_short_hash(json.dumps(key).encode())}.safetensors"
    known = _read(path, encoder, catalogue.num_items)
    if known is not None:
        return known
    fitted = _fit(encoder, catalogue, histories, seed)
    _write(path, fitted)
    return fitted


def vectors_hash(vectors: Float[Tensor, "items width"]) -> str:
    """Short hash of vectors: shape and values."""
    plain = vectors.detach().to("cpu", torch.float32).contiguous().numpy()
    return _short_hash(repr(plain.shape).encode(), plain.tobytes())


def _fit(
    encoder: ItemEncoder, catalogue: Catalogue, histories: Histories | None, seed: int
) -> FittedEncoder:
    fitted = encoder.fit(catalogue, histories, seed)
    return replace(fitted, vectors=_finite(fitted.vectors))


def _finite(vectors: Float[Tensor, "items width"]) -> Float[Tensor, "items width"]:
    """float32 vectors, or ValueError when they are not finite."""
    vectors = vectors.to(torch.float32).contiguous()
    if not torch.isfinite(vectors).all():
        raise ValueError("the item vectors are not all finite; look at what the encoder was given")
    return vectors


def _read(path: Path, encoder: ItemEncoder, num_items: int) -> FittedEncoder | None:
    """What is in the cache; None when there is nothing, or nothing that can be used."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        vectors, facts = tensors.pop(_VECTORS), tensors.pop(_FACTS)
    except (SafetensorError, KeyError):
        return None
    if vectors.ndim != 2 or vectors.shape[0] != num_items:
        return None
    arrays = {name.removeprefix(_STATE): array for name, array in tensors.items()}
    return FittedEncoder(
        encoder, vectors, EncoderState(arrays, json.loads(facts.numpy().tobytes()))
    )


def _write(path: Path, fitted: FittedEncoder) -> None:
    """Write the file under another name and rename it, so that it is whole or not there."""
    # Facts as bytes: the header of safetensors, which takes texts, is limited in length.
    facts = torch.frombuffer(bytearray(json.dumps(fitted.state.facts).encode()), dtype=torch.uint8)
    tensors = {_VECTORS: fitted.vectors, _FACTS: facts}
    for name, array in fitted.state.arrays.items():
        tensors[f"{_STATE}{name}"] = array.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        save_file(tensors, part)
        os.replace(part, path)


def _histories_hash(histories: Histories) -> str:
    return _short_hash(
        np.ascontiguousarray(histories.offsets).tobytes(),
        np.ascontiguousarray(histories.items).tobytes(),
    )


def _short_hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
