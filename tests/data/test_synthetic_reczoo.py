"""Generated files of three public formats: as published, prepared by the recipes' schemas."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.synthetic_reczoo import (
    NUM_CATEGORIES,
    write_amazon_electronics,
    write_kuaivideo,
    write_taobao_ad,
)
from rankloom.protocols import HasLoss
from rankloom.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
WRITERS: dict[str, Callable[[Path, int, int, int], None]] = {
    "amazonelectronics_x1": write_amazon_electronics,
    "taobaoad_x1": write_taobao_ad,
    "kuaivideo_x1": write_kuaivideo,
}
HEADERS = {
    "amazonelectronics_x1": "label,user_id,item_id,cate_id,item_history,cate_history",
    "taobaoad_x1": (
        "clk,btag_his,cate_his,brand_his,userid,cms_segid,cms_group_id,final_gender_code,age_level,"
        "pvalue_level,shopping_level,occupation,new_user_class_level,adgroup_id,cate_id,"
        "campaign_id,customer,brand,price,pid,btag"
    ),
    "kuaivideo_x1": "timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items",
}
TRAIN, TEST = 2_000, 200
LABEL = {"amazonelectronics_x1": "label", "taobaoad_x1": "clk", "kuaivideo_x1": "is_click"}
FAST = {"din", "dnn"}
"""Recipes that take their step in every run of the tests, the others in the slow ones."""
TRAINED = [
    pytest.param(
        path,
        marks=() if path.stem in FAST else pytest.mark.slow,
        id=f"{path.parent.name}/{path.stem}",
    )
    for name in WRITERS
    for path in sorted((RECIPES / name).glob("*.toml"))
    if path.stem not in ("schema", "published")
]


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(request.param, tmp_path_factory)


def written(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and the data set of a format; made once."""
    folder = tmp_path_factory.getbasetemp() / name
    if not folder.exists():
        folder.mkdir()
        WRITERS[name](folder, TRAIN, TEST, 7)
        prepare(RECIPES / name / "schema.toml", folder / "prepared", root=folder)
    return folder


def table(folder: Path, split: str = "train") -> pl.DataFrame:
    return pl.read_csv(folder / f"{split}.csv", infer_schema=False)


def lists(column: pl.Series) -> list[list[int]]:
    cells = column.fill_null("").to_list()
    return [[int(value) for value in cell.split("^") if value] for cell in cells]


def users_of(dataset: Dataset, split: str) -> list[int]:
    group = dataset.split(split).slice(0, dataset.split(split).rows).group
    assert group is not None
    return [int(number) for number in group]


def test_files_have_the_published_columns_and_no_quotes(folder: Path) -> None:
    for split, rows in (("train", TRAIN), ("test", TEST)):
        text = (folder / f"{split}.csv").read_text()
        assert text.partition("\n")[0] == HEADERS[folder.name]
        assert text.count("\n") == rows + 1
        assert '"' not in text


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write = WRITERS[folder.name]
    write(tmp_path, TRAIN, TEST, 7)
    for split in ("train", "test"):
        assert table(tmp_path, split).equals(table(folder, split))
    write(tmp_path, TRAIN, TEST, 8)
    assert not table(tmp_path, "train").equals(table(folder, "train"))


def test_the_schema_prepares_the_files_and_draws_a_validation_split(folder: Path) -> None:
    dataset = Dataset.open(folder / "prepared")
    sizes = {split: dataset.split(split).rows for split in dataset.splits}
    assert sizes["test"] == TEST
    assert sizes["train"] + sizes["valid"] == TRAIN
    assert 50 <= sizes["valid"] <= 150  # about a twentieth
    labels = dataset.split("test").slice(0, TEST).labels
    assert labels is not None
    assert labels[:, 0].tolist() == [float(x) for x in table(folder, "test")[LABEL[folder.name]]]
    assert dataset.schema.has_group


def test_no_pair_of_electronics_is_torn_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each row's mate, of one history and the other label, is behind it in the same split."""
    folder = written("amazonelectronics_x1", tmp_path_factory)
    dataset = Dataset.open(folder / "prepared")
    train, valid = (set(users_of(dataset, split)) for split in ("train", "valid"))
    assert len(valid) >= 5
    assert not train & valid
    for name in ("train", "valid"):
        split = dataset.split(name)
        batch = split.slice(0, split.rows)
        assert batch.labels is not None
        assert batch.labels[:, 0].tolist() == [1.0, 0.0] * (split.rows // 2)
        users = users_of(dataset, name)
        assert users[::2] == users[1::2]
        events = batch.sequences["history"]
        rows = [ids.tolist() for ids in events.ids.tensor_split(events.offsets[1:-1])]
        assert len(rows) == split.rows
        assert rows[::2] == rows[1::2]


def test_electronics_come_in_pairs_whose_histories_run_in_step(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = written("amazonelectronics_x1", tmp_path_factory)
    frame = table(folder)
    assert frame["label"].to_list() == ["1", "0"] * (TRAIN // 2)
    for column in ("user_id", "item_history", "cate_history"):
        assert frame[column].gather_every(2).equals(frame[column].gather_every(2, 1))
    items, categories = lists(frame["item_history"]), lists(frame["cate_history"])
    assert categories == [[item % NUM_CATEGORIES for item in row] for row in items]
    schema = Dataset.open(folder / "prepared").schema
    assert [field.name for field in schema.categorical] == ["item_id", "cate_id"]
    (group,) = schema.sequences
    assert [(member.name, member.table) for member in group.ids] == [
        ("item_id", "item_id"),
        ("cate_id", "cate_id"),
    ]


def test_taobao_s_lists_are_histories_of_their_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = written("taobaoad_x1", tmp_path_factory)
    frame = table(folder)
    categories, brands = lists(frame["cate_his"]), lists(frame["brand_his"])
    assert any(len(a) != len(b) for a, b in zip(categories, brands, strict=True))
    schema = Dataset.open(folder / "prepared").schema
    groups = {group.name: (group.ordered, group.ids[0].table) for group in schema.sequences}
    assert groups == {
        "cate_his": (True, "cate_id"),
        "brand_his": (True, "brand"),
        "btag_his": (False, "btag_his"),
    }
    assert len(schema.categorical) == 16
    assert [field.name for field in schema.numeric] == ["price"]


def test_videos_have_vectors_in_both_histories(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = written("kuaivideo_x1", tmp_path_factory)
    frame = table(folder)
    assert any(not row for row in lists(frame["pos_items"]))
    times = frame["timestamp"].cast(pl.Int64)
    assert times.is_sorted()
    assert times.max() < table(folder, "test")["timestamp"].cast(pl.Int64).min()
    schema = Dataset.open(folder / "prepared").schema
    assert [group.name for group in schema.sequences] == ["clicked", "passed"]
    for group in schema.sequences:
        assert [member.table for member in group.ids] == ["item_id"]
        assert [(vector.name, vector.width) for vector in group.vectors] == [("item.visual", 64)]


@pytest.mark.parametrize("path", TRAINED)
def test_every_recipe_takes_a_step(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = Dataset.open(written(path.parent.name, tmp_path_factory) / "prepared")
    recipe = load_recipe(path)
    torch.manual_seed(0)
    model = recipe.entry().build(recipe.settings(), dataset.schema)
    batch = dataset.split("train").slice(0, 8)
    assert batch.labels is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        if isinstance(model, HasLoss):
            loss = model.loss(batch).total
        else:
            loss = binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(0 < loss < 20 for loss in losses)
    assert losses[0] != losses[1]
