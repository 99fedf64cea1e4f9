"""The folder of a sequence data set: round trip, damage, hashes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.data.sequence_store import (
    SequenceData,
    number_values,
    read_sequence_manifest,
)
from rankloom.retrieval.histories import Histories
from rankloom.retrieval.items import Catalogue


def build() -> SequenceData:
    catalogue = Catalogue(
        ids=["x", "y", "ä"],
        titles=["X", "", "Ä"],
        texts=["An x.", "", "An ä."],
        attributes=torch.tensor([[1, 0], [0, 1], [2, 1]]),
        attribute_names=("brand", "colour"),
        attribute_labels=(("Lux", "Lumen"), ("red",)),
        vectors=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    )
    histories = Histories.from_lists([[1, 3, 3], [], [2]], 3)
    return SequenceData("shop", catalogue, histories, ["b", "a", "c"], "name", ("name", "more"))


def test_a_saved_data_set_is_opened_as_it_was(tmp_path: Path) -> None:
    data = build()
    data.save(tmp_path / "shop")
    again = SequenceData.open(tmp_path / "shop", verify="hash")
    assert (again.name, again.users, again.title_column) == ("shop", ["b", "a", "c"], "name")
    assert again.text_columns == ("name", "more")
    for part in ("ids", "titles", "texts", "attribute_names", "attribute_labels"):
        assert getattr(again.catalogue, part) == getattr(data.catalogue, part)
    assert torch.equal(again.catalogue.attributes, data.catalogue.attributes)
    assert again.catalogue.vectors is not None
    assert data.catalogue.vectors is not None
    assert torch.equal(again.catalogue.vectors, data.catalogue.vectors)
    assert again.histories.items.tolist() == [1, 3, 3, 2]
    assert again.histories.offsets.tolist() == [0, 3, 3, 4]
    assert again.histories.items.dtype == again.histories.offsets.dtype == np.int64
    assert again.data_hash == data.data_hash == replace(again, recorded_hash=None).data_hash
    manifest = read_sequence_manifest(tmp_path / "shop")
    assert (manifest.users, manifest.items, manifest.interactions) == (3, 3, 4)


def test_an_empty_data_set_is_one(tmp_path: Path) -> None:
    catalogue = Catalogue([], [], [], torch.zeros(0, 0).long())
    data = SequenceData("none", catalogue, Histories.from_lists([], 0), [])
    data.save(tmp_path / "none")
    assert SequenceData.open(tmp_path / "none").histories.num_users == 0


def test_the_hash_sees_every_part_but_the_name() -> None:
    data = build()
    assert replace(data, name="other").data_hash == data.data_hash
    catalogue = data.catalogue
    others = [
        replace(data, users=["a", "b", "c"]),
        replace(data, histories=Histories.from_lists([[1, 3], [3], [2]], 3)),
        replace(data, catalogue=replace(catalogue, texts=["An x.", "", "An a."])),
        replace(data, catalogue=replace(catalogue, titles=["X", "", "A"])),
        replace(data, catalogue=replace(catalogue, vectors=None)),
        replace(data, catalogue=replace(catalogue, attribute_labels=(("L", "M"), ("red",)))),
    ]
    assert len({data.data_hash, *(other.data_hash for other in others)}) == 7


def test_users_have_numbers_from_one() -> None:
    assert build().user_numbers(["c", "nobody", "b"]).tolist() == [3, 0, 1]


def test_parts_must_agree() -> None:
    data = build()
    with pytest.raises(ValueError, match="2 user ids for 3 sequences"):
        replace(data, users=["a", "b"])
    with pytest.raises(ValueError, match="user ids must differ"):
        replace(data, users=["a", "b", "a"])
    with pytest.raises(ValueError, match="the sequences are of 4 items, the catalogue has 3"):
        replace(data, histories=Histories.from_lists([[1], [], []], 4))


def test_damage_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    build().save(folder)
    items = (folder / "items.parquet").read_bytes()
    (folder / "items.parquet").write_bytes(items[:-1])
    with pytest.raises(ValueError, match="truncated"):
        SequenceData.open(folder)
    (folder / "items.parquet").write_bytes(b"X" + items[1:])
    with pytest.raises(ValueError, match="its hash is not the recorded one"):
        SequenceData.open(folder, verify="hash")
    (folder / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="missing file"):
        SequenceData.open(folder)
    (folder / "sequences.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="has format 99"):
        SequenceData.open(folder)
    (folder / "sequences.json").unlink()
    with pytest.raises(FileNotFoundError, match="no sequence data set"):
        SequenceData.open(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        SequenceData.open(tmp_path / "nowhere")


def test_only_a_folder_of_sequences_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds something else than a data set of this kind"):
        build().save(folder, overwrite=True)
    assert (folder / "dataset.json").is_file()


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SequenceData, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SequenceData, "_write_sequences", fail)
    with pytest.raises(KeyboardInterrupt):
        build().save(tmp_path / "new" / "shop")
    assert list(tmp_path.iterdir()) == []


def test_values_are_numbered_in_order_of_appearance() -> None:
    labels, numbers = number_values(pl.Series(["b", None, "a", "b"]))
    assert (labels, numbers.tolist()) == (("b", "a"), [1, 0, 2, 1])
    labels, numbers = number_values(pl.Series([None, None], dtype=pl.String))
    assert (labels, numbers.tolist()) == ((), [0, 0])
