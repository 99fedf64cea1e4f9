"""The catalogue's checks and hashes, and the cache of item vectors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.encoders import EncoderConfig, GivenConfig, TfidfConfig
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import (
    Catalogue,
    FittedEncoder,
    encode_items,
    fit_items,
    vectors_hash,
)


def build(items: int = 4) -> Catalogue:
    return Catalogue(
        ids=[f"i{number}" for number in range(items)],
        titles=[""] * items,
        texts=[f"red thing {number}." for number in range(items)],
        attributes=torch.ones(items, 1).long(),
        attribute_names=("brand",),
        attribute_labels=(("Lux",),),
        vectors=torch.arange(2.0 * items).reshape(items, 2),
    )


class CountingEncoder:
    """Vectors of the seed, and how often they were asked for."""

    def __init__(self, key: str = "a", value: float = 1.0) -> None:
        self.key, self.value, self.calls = key, value, 0

    def fit(self, catalogue: Catalogue, histories: Histories | None, seed: int) -> FittedEncoder:
        self.calls += 1
        vectors = torch.full((catalogue.num_items, 3), self.value + seed)
        state = EncoderState({"seed": torch.tensor(seed)}, {"terms": ["été", "a"]})
        return FittedEncoder(self, vectors, state)

    def transform(self, state: EncoderState, catalogue: Catalogue) -> Float[Tensor, "items width"]:
        return torch.full((catalogue.num_items, 3), self.value + int(state.arrays["seed"]))

    def cache_key(self) -> str:
        return self.key


def test_ids_and_numbers() -> None:
    catalogue = build()
    assert catalogue.numbers_of(["i2", "nothing", "i0"]).tolist() == [3, 0, 1]
    assert catalogue.ids_of([3, 1]) == ["i2", "i0"]
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="item numbers go from 1 to 4"):
            catalogue.ids_of([1, wrong])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titles": ["one"]}, "a catalogue of 4 items has 1 titles"),
        ({"vectors": torch.zeros(3, 2)}, "a catalogue of 4 items has 3 vectors"),
        ({"ids": ["a", "b", "a", "c"]}, "item ids must differ; 'a' is there more than once"),
        ({"attribute_names": ()}, "0 attribute names need as many columns"),
        ({"attributes": torch.full((4, 1), 2)}, "attribute brand must be 0 to 1; got 2 to 2"),
    ],
)
def test_parts_that_do_not_agree_are_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(build(), **changes)  # type: ignore[arg-type]


def test_items_hash_is_of_the_ids_and_content_hash_of_all_that_encoders_read() -> None:
    catalogue = build()
    text = replace(catalogue, texts=["blue."] * 4)
    turned = replace(catalogue, ids=catalogue.ids[::-1])
    assert text.items_hash == catalogue.items_hash != turned.items_hash
    others = [
        text,
        turned,
        replace(catalogue, vectors=None),
        replace(catalogue, attributes=torch.zeros(4, 1).long()),
    ]
    hashes = {catalogue.content_hash, *(other.content_hash for other in others)}
    assert len(hashes) == 5
    assert build().content_hash == catalogue.content_hash


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    catalogue, encoder = build(), CountingEncoder()
    first = encode_items(encoder, catalogue, cache=tmp_path / "cache", seed=2)
    again = encode_items(encoder, catalogue, cache=tmp_path / "cache", seed=2)
    assert torch.equal(first, again)
    assert first.tolist() == [[3.0] * 3] * 4
    assert encoder.calls == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing unfinished is left


def test_the_cache_keeps_what_was_learned(tmp_path: Path) -> None:
    catalogue, encoder = build(), CountingEncoder()
    for _ in range(2):
        fitted = fit_items(encoder, catalogue, cache=tmp_path, seed=2)
        assert fitted.state.facts == {"terms": ["été", "a"]}
        assert fitted.transform(build(2)).tolist() == [[3.0] * 3] * 2
    assert encoder.calls == 1
    with pytest.raises(ValueError, match="not all finite"):
        FittedEncoder(CountingEncoder(value=float("inf")), fitted.vectors, fitted.state).transform(
            catalogue
        )


def test_the_last_items_of_a_catalogue() -> None:
    catalogue = build()
    rest = catalogue.after(3)
    assert (rest.ids, rest.texts, rest.titles) == (["i3"], ["red thing 3."], [""])
    assert rest.vectors is not None
    assert rest.vectors.tolist() == [[6.0, 7.0]]
    assert rest.attributes.tolist() == [[1]]
    assert rest.numbers_of(["i3", "i0"]).tolist() == [1, 0]
    assert replace(catalogue, vectors=None).after(4).num_items == 0


def test_the_cache_is_asked_for_everything_that_the_vectors_depend_on(tmp_path: Path) -> None:
    catalogue, encoder = build(), CountingEncoder()
    histories = [None, Histories.from_lists([[1]], 4), Histories.from_lists([[2]], 4)]
    for sequences in histories:
        encode_items(encoder, catalogue, sequences, cache=tmp_path)
    encode_items(encoder, replace(catalogue, texts=["blue."] * 4), cache=tmp_path)
    encode_items(encoder, catalogue, cache=tmp_path, seed=1)
    assert encoder.calls == 5
    encode_items(other := CountingEncoder("b"), catalogue, cache=tmp_path)
    assert other.calls == 1


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    catalogue, encoder = build(), CountingEncoder()
    first = encode_items(encoder, catalogue, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(encode_items(encoder, catalogue, cache=tmp_path), first)
    assert encoder.calls == 2
    assert torch.equal(encode_items(encoder, catalogue, cache=tmp_path), first)
    assert encoder.calls == 2


def test_vectors_that_are_not_finite_are_an_error_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        encode_items(CountingEncoder(value=float("nan")), build(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_histories_must_be_of_the_catalogue() -> None:
    with pytest.raises(ValueError, match="histories are of 3 items, the catalogue has 4"):
        encode_items(CountingEncoder(), build(), Histories.from_lists([[1]], 3))


@pytest.mark.parametrize("encoder", [GivenConfig(), TfidfConfig(dim=8)])
def test_encoders_work_with_the_cache(encoder: EncoderConfig, tmp_path: Path) -> None:
    vectors = [encode_items(encoder, build(), cache=tmp_path) for _ in range(2)]
    assert torch.equal(vectors[0], encode_items(encoder, build()))
    assert torch.equal(*vectors)


def test_vectors_hash_sees_values_and_shape() -> None:
    vectors = torch.arange(6.0)
    hashes = {vectors_hash(vectors.reshape(shape)) for shape in ((2, 3), (3, 2))}
    assert len(hashes | {vectors_hash(vectors.reshape(2, 3) + 1)}) == 3
    assert vectors_hash(vectors.reshape(2, 3).double()) in hashes
