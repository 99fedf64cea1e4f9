"""Tokenizers side by side, from folders written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_page import HOSTILE, Page

from rankloom.report.tokenizers import (
    find_tokenized,
    length_table,
    level_tables,
    measure_table,
    named,
    nearest_items,
    neighbour_tables,
    shared_codes,
    stop_table,
)
from rankloom.report.tokenizers_page import render_tokenizers, write_tokenizers_page
from rankloom.retrieval.diagnostics import diagnose
from rankloom.retrieval.protocols import Assignment
from rankloom.retrieval.semantic_ids import SemanticIds

TITLES = ["red soap", "blue soap", "", "lipstick", "rouge", "comb"]
VECTORS = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.3], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])
PAIRS = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, -1], [2, 0]], np.int32)


def write(
    folder: Path, codes: np.ndarray = PAIRS, titles: list[str] | None = None, **ids: Any
) -> Path:
    """A folder of semantic ids, without a tokenizer's weights: the page does not read them."""
    values: dict[str, Any] = {"tokenizer": "rq_kmeans", "vectors_hash": "v", "items_hash": "i"}
    made = SemanticIds(codes, ids.pop("level_sizes", (3, 2)), **(values | ids))
    stops = np.array([0, 0, 0, 0, 1, 0], np.int8)
    assignment = Assignment(codes, VECTORS, VECTORS, None, stops, ("all levels", "confidence"))
    made.save(folder)
    save_file({"vectors": VECTORS}, folder / "vectors.safetensors")
    diagnostics = diagnose(made, VECTORS, assignment).model_dump(mode="json")
    (folder / "diagnostics.json").write_text(json.dumps(diagnostics), encoding="utf-8")
    if titles != []:
        text = json.dumps(titles or TITLES)
        (folder / "titles.json").write_text(text, encoding="utf-8")
    return folder


def merged(folder: Path) -> Path:
    """The same codes; the pair of code 0 of level 1 and code 1 of level 2 is one token."""
    return write(folder, merges=np.array([[3, 7]], np.int32), settings={"merges": 1})


def test_folders_are_found_once_each_and_named(tmp_path: Path) -> None:
    write(tmp_path / "tokenizers" / "a")
    write(tmp_path / "run" / "semantic_ids")  # the copy in a run
    merged(tmp_path / "tokenizers" / "b")
    found = find_tokenized([tmp_path / "tokenizers", tmp_path / "run"])
    assert [one.folder.name for one in found] == ["a", "b"]
    assert [one.label for one in named(found)] == ["rq_kmeans", "rq_kmeans with merges"]


def test_equal_kinds_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two" / "semantic_ids", PAIRS[::-1].copy())
    labels = [one.label for one in named(find_tokenized([tmp_path]))]
    assert labels == ["rq_kmeans (one)", "rq_kmeans (two)"]


def test_other_catalogues_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no semantic ids in .*; make them with rankloom"):
        find_tokenized([tmp_path])
    with pytest.raises(ValueError, match="no semantic ids to show"):
        named([])
    write(tmp_path / "a")
    write(tmp_path / "b", items_hash="j")
    with pytest.raises(ValueError, match="one page is of one catalogue; these ids are of 2"):
        named(find_tokenized([tmp_path]))


def test_measures_stand_in_their_columns(tmp_path: Path) -> None:
    write(tmp_path / "a")
    merged(tmp_path / "b")
    ids = named(find_tokenized([tmp_path]))
    table = measure_table(ids)
    plain, with_merges = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert plain["levels"] == "3, 2"
    assert plain["ids"] == "5"  # two of the six items share theirs
    assert plain["collisions"] == plain["settled"] == "33.33%"
    assert plain["largest"] == "2"
    assert plain["used"] == "100.0%"
    assert plain["error"] == "0.000"
    assert plain["codes"] == with_merges["codes"] == "1.83"  # 11 codes of 6 items
    assert (plain["merges"], with_merges["merges"]) == ("0", "1")
    assert (plain["tokens"], with_merges["tokens"]) == ("1.83", "1.50")
    assert len(table.notes) == 1


def test_equal_levels_are_told_once(tmp_path: Path) -> None:
    codes = np.zeros((6, 4), np.int32)
    write(tmp_path, codes, level_sizes=(3, 3, 3, 2))
    assert measure_table(named(find_tokenized([tmp_path]))).rows[0][1] == "3 x 3, 2"


def test_other_vectors_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", vectors_hash="w")
    notes = measure_table(named(find_tokenized([tmp_path]))).notes
    assert notes[1] == "They were not all made of the same item vectors."


def test_levels_and_lengths_are_padded_to_the_longest(tmp_path: Path) -> None:
    write(tmp_path / "a")
    short = PAIRS[:, :1].copy()
    write(tmp_path / "b", short, level_sizes=(3,), tokenizer="opq")
    ids = named(find_tokenized([tmp_path]))
    entropy, used, cosine = level_tables(ids)
    assert entropy.columns == ("tokenizer", "level 1", "level 2")
    # Shares 1/2, 1/3, 1/6 have 1.459 bits.
    assert entropy.rows[1] == ("opq", "1.459", "-")
    assert used.rows[0] == ("rq_kmeans", "1.000", "1.000")
    assert cosine.rows[1][2] == "-"
    lengths = length_table(ids)
    assert lengths.rows == (("rq_kmeans", "0.1667", "0.8333"), ("opq", "1.0000", "-"))
    stops = stop_table(ids)
    assert stops is not None
    assert stops.columns == ("tokenizer", "all levels", "confidence")
    assert stops.rows[0] == ("rq_kmeans", "0.8333", "0.1667")


def test_neighbours_share_codes_from_the_first_on() -> None:
    assert shared_codes(PAIRS, 0).tolist() == [2, 1, 1, 0, 0, 0]
    # An id of one code shares no second one, not even the missing one with itself.
    assert shared_codes(PAIRS, 4).tolist() == [0, 0, 0, 1, 1, 0]
    assert nearest_items(VECTORS, 0) == [1, 2, 4, 3, 5]


def test_examples_are_of_the_same_items_under_each_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", PAIRS[:, :1].copy(), level_sizes=(3,), tokenizer="opq")
    ids = named(find_tokenized([tmp_path]))
    tables = neighbour_tables(ids, num_items=3, num_titles=2)
    assert [table.title for table in tables] == ["red soap", "lipstick", "comb"]
    vectors, plain, short = tables[0].rows
    assert vectors == ("nearest vectors", "-", "-", "blue soap | (no title)")
    assert plain == ("rq_kmeans", "0 0", "3 1", "blue soap | (no title)")
    assert short == ("opq", "0", "3", "blue soap | (no title)")
    # The comb's code is its own.
    assert tables[2].rows[1] == ("rq_kmeans", "2 0", "1 1", "-")
    # More codes in common come before a nearer vector.
    blue = neighbour_tables(ids, num_items=5, num_titles=1)[1]
    assert blue.title == "blue soap"
    assert blue.rows[0][3] == "red soap"
    assert blue.rows[1][3] == "(no title)"


def test_folders_without_titles_give_no_examples(tmp_path: Path) -> None:
    write(tmp_path / "a", titles=[])
    ids = named(find_tokenized([tmp_path]))
    assert neighbour_tables(ids) == []
    assert "red soap" not in render_tokenizers(ids)


def test_the_page_shows_all_of_it_and_loads_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", titles=[HOSTILE, *TITLES[1:]])
    merged(tmp_path / "b")
    ids = named(find_tokenized([tmp_path]))
    file = write_tokenizers_page(tmp_path / "out", ids)
    text = file.read_text(encoding="utf-8")
    assert text == render_tokenizers(ids)
    page = Page(text)
    assert not {"img", "link", "iframe"} & {tag for tag, _ in page.tags}
    for words in ("2 tokenizers of 6 items", "Measures", "Why ids end", "nearest vectors", HOSTILE):
        assert words in page.text
    charts = [json.loads(s) for a, s in page.scripts if a.get("type") == "application/json"]
    assert len(charts) == 3
    assert charts[0]["data"][0]["y"] == pytest.approx([1 / 6, 5 / 6])
