"""Semantic ids of a recipe: what is written, found again, and appended to."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from retrieval_toy import longer, toy_data, toy_recipe
from safetensors.torch import save_file

from rankloom.data.new_folder import one_at_a_time
from rankloom.data.sequence_store import SequenceData
from rankloom.retrieval.diagnostics import collision_share
from rankloom.retrieval.encoder_state import EncoderState
from rankloom.retrieval.encoders import TfidfConfig
from rankloom.retrieval.items import Catalogue
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.training import tokenize as module
from rankloom.training.append_items import append
from rankloom.training.course import Progress
from rankloom.training.tokenize import ids_folder, tokenize
from rankloom.training.tokenized import Tokenized, load_tokenizer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def made(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenized:
    return tokenize(toy_recipe(dataset), out=tmp_path_factory.mktemp("runs"))


def test_a_folder_of_ids_is_complete(made: Tokenized, dataset: Path) -> None:
    files = {path.name for path in made.folder.iterdir()}
    assert files == {
        "codes.safetensors",
        "semantic_ids.json",
        "tokenizer.safetensors",
        "encoder.safetensors",
        "encoder.json",
        "vectors.safetensors",
        "diagnostics.json",
        "titles.json",
    }
    data = SequenceData.open(dataset)
    assert made.folder.name.startswith(f"{data.name}-rq_kmeans-")
    again = Tokenized.open(made.folder)
    assert again.ids.content_hash == made.ids.content_hash
    assert again.ids.items_hash == data.catalogue.items_hash
    assert again.ids.tokenizer == "rq_kmeans"
    assert again.diagnostics == made.diagnostics
    assert again.titles == made.titles == tuple(data.catalogue.titles)
    assert torch.equal(again.vectors, made.vectors)
    assert again.code_vectors is not None
    assert again.code_vectors.shape[0] == made.ids.vocabulary_size
    assert made.diagnostics.collision_share == collision_share(made.ids.codes) == 0
    assert made.diagnostics.reconstruction_error is not None


def test_the_saved_tokenizer_gives_the_same_codes(made: Tokenized, dataset: Path) -> None:
    recipe = toy_recipe(dataset, collisions={"kind": "leave"})
    plain = tokenize(recipe, out=made.folder.parents[1])
    assigned = load_tokenizer(recipe, plain).assign(plain.vectors)
    np.testing.assert_array_equal(assigned.codes, plain.ids.codes)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kinds of the tokenizers that are built."""
    built: list[str] = []
    build = module.build_tokenizer

    def counting(config: Any, width: int) -> Any:
        built.append(config.kind)
        return build(config, width)

    monkeypatch.setattr(module, "build_tokenizer", counting)
    return built


def test_ids_are_shared_by_recipes_that_differ_in_the_generator(
    made: Tokenized, dataset: Path, fits: list[str]
) -> None:
    out = made.folder.parents[1]
    other = toy_recipe(dataset, name="other", model={"name": "encdec"}, training={"epochs": 7})
    assert tokenize(other, out=out).folder == made.folder
    assert fits == []
    assert tokenize(toy_recipe(dataset, seed=3), out=out).folder != made.folder
    assert tokenize(other, out=out, fresh=True).folder == made.folder
    assert fits == ["rq_kmeans", "rq_kmeans"]


def test_a_tokenizer_with_a_loss_is_trained(made: Tokenized, dataset: Path) -> None:
    states: list[Progress] = []
    recipe = toy_recipe(
        dataset,
        tokenizer={"kind": "rq_vae", "level_sizes": [6, 5]},
        tokenizer_training={"epochs": 3, "batch_size": 16},
    )
    found = tokenize(recipe, out=made.folder.parents[1], progress=states.append)
    assert states[-1].step == 9  # forty items, the rest of eight in a batch of their own
    assert found.ids.tokenizer == "rq_vae"
    again = tokenize(recipe, out=made.folder.parents[1], fresh=True)
    assert again.ids.content_hash == found.ids.content_hash


def test_merges_shorten_ids(made: Tokenized, dataset: Path) -> None:
    out = made.folder.parents[1]
    merges = {"max_merges": 6, "min_count": 2, "score": {"kind": "frequency_only"}}
    for more in ({}, {"weighted": True}, {"meaning": "items"}):
        found = tokenize(toy_recipe(dataset, merges=merges | more), out=out)
        assert len(found.ids.merges) > 0
        assert found.diagnostics.mean_tokens < made.diagnostics.mean_tokens
        np.testing.assert_array_equal(found.ids.codes, made.ids.codes)


def test_a_tokenizer_may_learn_its_own_merges(made: Tokenized, dataset: Path) -> None:
    tokenizer = {
        "kind": "action_piece",
        "features": {"kind": "opq", "num_digits": 2, "num_codes": 4},
        "merges": {"vocabulary_size": 90},
    }
    recipe = toy_recipe(dataset, tokenizer=tokenizer)
    assert len(tokenize(recipe, out=made.folder.parents[1]).ids.merges) > 0
    with pytest.raises(ValueError, match="action_piece learns merges of its own"):
        tokenize(toy_recipe(dataset, tokenizer=tokenizer, merges={}), out=made.folder.parents[1])


def test_ids_are_made_anew_when_the_run_behind_the_vectors_changes(
    dataset: Path, tmp_path: Path
) -> None:
    table = torch.randn(41, 8, generator=torch.Generator().manual_seed(0))
    run = tmp_path / "table.safetensors"
    save_file({"items": table}, run)
    encoder = {"kind": "sasrec", "run": str(run), "tensor": "items"}
    recipe = toy_recipe(dataset, items=encoder, collaborative=encoder)
    first = tokenize(recipe, out=tmp_path)
    assert tokenize(recipe, out=tmp_path).folder == first.folder
    save_file({"items": table.flip(0).contiguous()}, run)
    second = tokenize(recipe, out=tmp_path)
    assert second.folder != first.folder
    assert not torch.equal(second.vectors, first.vectors)


@pytest.mark.parametrize("file", ["codes.safetensors", "vectors.safetensors", "titles.json"])
def test_damaged_ids_are_named(made: Tokenized, tmp_path: Path, file: str) -> None:
    copied = shutil.copytree(made.folder, tmp_path / "ids")
    (copied / file).write_bytes((copied / file).read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"ids/{file}"):
        Tokenized.open(copied)


def test_a_second_process_waits_for_the_ids_that_a_first_one_makes(
    dataset: Path, tmp_path: Path, fits: list[str]
) -> None:
    recipe = toy_recipe(dataset)
    folder = ids_folder(recipe, SequenceData.open(dataset), tmp_path)
    answers: list[Tokenized] = []
    second = Thread(target=lambda: answers.append(tokenize(recipe, out=tmp_path)))
    with one_at_a_time(folder):
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert fits == []
        shutil.copytree(tokenize(recipe, out=tmp_path / "elsewhere").folder, folder)
    second.join(30)
    assert answers[0].folder == folder
    assert fits == ["rq_kmeans"]


def test_a_recipe_without_a_tokenizer_is_refused(dataset: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(dataset, tokenizer=None, model={"name": "popularity"})
    with pytest.raises(ValueError, match="toy has no tokenizer; add one under"):
        tokenize(recipe, out=tmp_path)


@pytest.mark.parametrize(
    "items",
    [
        {"kind": "given"},
        {"kind": "tfidf", "dim": 8},
        {"kind": "tfidf", "dim": 40, "whitening": 8},
        {"kind": "concatenation", "parts": [{"kind": "tfidf", "dim": 8}, {"kind": "given"}]},
    ],
)
def test_published_ids_stay_when_items_are_appended(
    made: Tokenized, dataset: Path, items: dict[str, Any]
) -> None:
    recipe = toy_recipe(dataset, items=items, collisions={"kind": "dedup", "spare_digits": 3})
    out = made.folder.parents[1]
    published = tokenize(recipe, out=out)
    data = SequenceData.open(dataset)
    more = longer(data)
    found = append(recipe, more, out=out)
    assert found.ids.num_items == 43
    np.testing.assert_array_equal(found.ids.codes[:40], published.ids.codes)
    assert found.ids.level_sizes == published.ids.level_sizes
    assert found.ids.items_hash == more.catalogue.items_hash
    assert collision_share(found.ids.codes) == 0
    # New items are copies of the first ones: they lie where those lie, and begin with their codes.
    assert torch.equal(found.vectors[:40], published.vectors)
    torch.testing.assert_close(found.vectors[40:], published.vectors[:3], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.ids.codes[40:, 0], published.ids.codes[:3, 0])
    assert append(recipe, more, out=out).folder == found.folder
    assert SemanticIds.load(found.folder).content_hash == found.ids.content_hash


def test_only_the_new_items_are_encoded(
    made: Tokenized, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = toy_recipe(dataset, collisions={"kind": "leave"}), made.folder.parents[1]
    tokenize(recipe, out=out)
    read: list[list[str]] = []
    place = TfidfConfig.new_vectors

    def watched(self: TfidfConfig, state: EncoderState, catalogue: Catalogue) -> torch.Tensor:
        read.append(catalogue.ids)
        return place(self, state, catalogue)

    monkeypatch.setattr(TfidfConfig, "new_vectors", watched)
    monkeypatch.delattr(TfidfConfig, "learn")
    append(recipe, longer(SequenceData.open(dataset)), out=out)
    assert read == [["new0", "new1", "new2"]]


def test_new_items_need_an_encoder_that_sees_them(made: Tokenized, dataset: Path) -> None:
    out = made.folder.parents[1]
    more = longer(SequenceData.open(dataset))
    ppmi = {"kind": "ppmi", "dim": 8}
    with pytest.raises(ValueError, match="knows items by the training sequences alone"):
        append(toy_recipe(dataset, items=ppmi), more, out=out)
    both = {"kind": "concatenation", "parts": [{"kind": "tfidf", "dim": 8}, ppmi]}
    recipe = toy_recipe(dataset, items=both, collisions={"kind": "leave"})
    found = append(recipe, more, out=out)
    assert (found.vectors[40:, 8:] == 0).all()
    torch.testing.assert_close(found.vectors[40:, :8], found.vectors[:3, :8], rtol=0, atol=1e-5)


def test_ids_without_what_their_encoder_learned_are_told(dataset: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(dataset)
    (tokenize(recipe, out=tmp_path).folder / "encoder.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no encoder\.json, .* tokenize again"):
        append(recipe, longer(SequenceData.open(dataset)), out=tmp_path)


def test_only_a_longer_catalogue_can_be_appended(made: Tokenized, dataset: Path) -> None:
    recipe, out = toy_recipe(dataset), made.folder.parents[1]
    data = SequenceData.open(dataset)
    with pytest.raises(ValueError, match="holds no item that"):
        append(recipe, data, out=out)
    catalogue = longer(data).catalogue
    swapped = [catalogue.ids[1], catalogue.ids[0], *catalogue.ids[2:]]
    other = longer(data)
    other = SequenceData("other", replace(catalogue, ids=swapped), other.histories, other.users)
    with pytest.raises(ValueError, match="the first 40 items of other must be those of"):
        append(recipe, other, out=out)
