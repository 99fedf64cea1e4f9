"""The schemas of four public multi-scenario logs prepare small files of their published formats."""

import gzip
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.batch import Batch
from rankloom.data.prepare import prepare
from rankloom.data.store import Dataset
from rankloom.data.table_schema import load_table_schema
from rankloom.layers.losses import ranking_loss
from rankloom.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SPLITS = ("train", "valid", "test")
NUMBERS = [f"numerical_{k}" for k in range(1, 64)]
RANGES = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
TABS = (0, 1, 2, 4, 6)


def write_aliccp(folder: Path) -> pl.DataFrame:
    """Three encoded tables; now and then a purchase stands in a row without a click."""
    generator = np.random.default_rng(1)
    schema = load_table_schema(RECIPES / "aliccp" / "schema.toml")
    rows = 500
    click = generator.random(rows) < 0.3
    columns: dict[str, object] = {
        "click": click.astype(int),
        "purchase": (generator.random(rows) < 0.3).astype(int),
    }
    for name, feature in schema.features.items():
        if feature.kind == "numeric":
            columns[name] = np.where(click, 0, generator.random(rows).round(4))
        else:
            columns[name] = generator.integers(0, 9, rows)
    columns["301"] = generator.integers(1, 4, rows)
    frame = pl.DataFrame(columns)
    for start, size, split in ((0, 300, "train"), (300, 100, "val"), (400, 100, "test")):
        frame.slice(start, size).write_csv(folder / f"ali_ccp_{split}.csv")
    return frame


def write_aliexpress(folder: Path) -> pl.DataFrame:
    """Folders of the countries, as published, joined as the schema's head says."""
    generator = np.random.default_rng(2)
    frames = []
    for country in ("NL", "ES", "FR", "US"):
        (folder / f"AliExpress_{country}").mkdir()
        for split, rows in (("train", 200), ("test", 50)):
            frame = pl.DataFrame(
                {
                    "search_id": np.sort(generator.integers(0, 60, rows)),
                    **{f"categorical_{k}": generator.integers(0, 5, rows) for k in range(1, 17)},
                    **{name: generator.random(rows).round(6) for name in NUMBERS},
                    "click": generator.integers(0, 2, rows),
                    "conversion": generator.integers(0, 2, rows),
                }
            )
            # Some columns hold whole numbers alone, until they do not.
            whole = pl.when(pl.int_range(pl.len()) < rows - 1).then(0).otherwise(0.5)
            frame = frame.with_columns(whole.alias("numerical_59"))
            frame.write_csv(folder / f"AliExpress_{country}" / f"{split}.csv")
            frames.append(frame.with_columns(pl.lit(country).alias("country")))
    run_head(RECIPES / "aliexpress" / "schema.toml", folder)
    joined = pl.concat(frames)
    assert pl.read_parquet(folder / "train.parquet").height == 800
    return joined


def run_head(schema: Path, folder: Path) -> None:
    """Run the indented Python lines of a schema's comment in a folder."""
    head = schema.read_text().partition("\n\n")[0]
    lines = [line[1:] for line in head.splitlines() if line[1:].startswith("     ") or line == "#"]
    code = dedent("\n".join(lines)).partition("rankloom prepare")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, str(schema), "exec"), {})


def write_kuairand(folder: Path) -> pl.DataFrame:
    """Two logs with more tabs than are used, users and videos; a video or two without a row."""
    generator = np.random.default_rng(3)
    users, videos, rows = 20, 60, 400
    log = pl.DataFrame(
        {
            "user_id": generator.integers(0, users, rows),
            "video_id": generator.integers(0, videos + 2, rows),
            "date": 20220408,
            "hourmin": 1200,
            "time_ms": 1_649_400_000_000 + 1000 * np.arange(rows),
            "is_click": generator.integers(0, 2, rows),
            "play_time_ms": generator.integers(0, 9999, rows),
            "tab": generator.choice([0, 1, 1, 1, 2, 3, 4, 6, 14], rows),
        }
    )
    log.head(250).write_csv(folder / "log_standard_4_08_to_4_21_1k.csv")
    log.slice(250).write_csv(folder / "log_standard_4_22_to_5_08_1k.csv")
    pl.DataFrame(
        {
            "user_id": range(users),
            "user_active_degree": generator.choice(["full_active", "UNKNOWN"], users),
            "is_lowactive_period": 0,
            "is_live_streamer": generator.choice([-124, 0, 1], users),
            "is_video_author": generator.integers(0, 2, users),
            **{name: generator.integers(0, 999, users) for name in RANGES},
            **{
                f"{name}_range": generator.choice(["0", "(0,10]", "500+"], users) for name in RANGES
            },
            **{f"onehot_feat{k}": generator.integers(0, 9, users) for k in range(18)},
        }
    ).with_columns(pl.when(pl.col("onehot_feat4") > 2).then(pl.col("onehot_feat4"))).write_csv(
        folder / "user_features_1k.csv"
    )
    pl.DataFrame(
        {
            "video_id": range(videos),
            "author_id": generator.integers(0, 30, videos),
            "video_type": generator.choice(["NORMAL", "AD"], videos),
            "visible_status": generator.choice([0.0, 1.0], videos),
            "server_width": 720.0,
            "server_height": generator.choice([1280.0, 960.0], videos),
        }
    ).write_csv(folder / "video_features_basic_1k.csv")
    return log


def write_iaac(folder: Path) -> pl.DataFrame:
    """The contest's text file: blanks between fields, ; in lists, -1 where a value is missing."""
    generator = np.random.default_rng(4)
    rows = 300
    plain = [
        *("item_brand_id", "item_city_id", "item_price_level", "item_sales_level"),
        *("item_collected_level", "item_pv_level", "user_id", "user_age_level"),
        *("user_occupation_id", "user_star_level", "context_id", "context_page_id", "shop_id"),
        *("shop_review_num_level", "shop_star_level"),
    ]
    rates = ("review_positive_rate", "score_service", "score_delivery", "score_description")
    big = 2**62
    frame = pl.DataFrame(
        {
            "instance_id": generator.permutation(rows) + big,
            "item_id": generator.integers(big, big + 40, rows),
            "item_category_list": [f"{big};{big + k}" for k in generator.integers(1, 4, rows)],
            "item_property_list": [
                ";".join(str(big + k) for k in range(n)) for n in generator.integers(1, 120, rows)
            ],
            "user_gender_id": generator.integers(-1, 3, rows),
            "context_timestamp": 1_537_200_000 + generator.permutation(rows) * 1800,
            "predict_category_property": [
                f"{big}:{big + k},{big + 9};{big + 1}:-1" if k else "-1"
                for k in generator.integers(0, 3, rows)
            ],
            **{name: generator.integers(-1, 9, rows) for name in plain},
            **{f"shop_{name}": generator.random(rows).round(4) for name in rates},
            "is_trade": generator.integers(0, 2, rows),
        }
    )
    path = folder / "round1_ijcai_18_train_20180301.txt"
    frame.write_csv(path, separator=" ")
    return frame


WRITERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "aliccp": write_aliccp,
    "aliexpress": write_aliexpress,
    "kuairand": write_kuairand,
    "iaac": write_iaac,
}
SCENARIOS = {
    "aliccp": ("1", "2", "3"),
    "aliexpress": ("ES", "FR", "NL", "US"),
    "kuairand": tuple(map(str, TABS)),
    "iaac": ("-1", "0", "1", "2"),
}
SCENARIO_COLUMNS = {
    "aliccp": "301",
    "aliexpress": "country",
    "kuairand": "tab",
    "iaac": "user_gender_id",
}
Made = tuple[pl.DataFrame, Dataset]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found = {}
    for name, write in WRITERS.items():
        folder = tmp_path_factory.mktemp(name)
        frame = write(folder)
        schema = RECIPES / name / "schema.toml"
        found[name] = (frame, prepare(schema, folder / "prepared", root=folder))
    return found


def rows(dataset: Dataset, split: str) -> Batch:
    return dataset.split(split).slice(0, dataset.split(split).rows)


def field_values(dataset: Dataset, split: str, field: str) -> list[str | None]:
    """Raw values of a field as text; None where it is out of vocabulary."""
    table = pl.read_parquet(dataset.folder / "vocabulary" / f"{field}.parquet")
    known = dict(zip(table["index"], table["value"].cast(pl.String), strict=True))
    place = [f.name for f in dataset.schema.categorical].index(field)
    return [known.get(k) for k in rows(dataset, split).categorical[:, place].tolist()]


@pytest.mark.parametrize("name", WRITERS)
def test_scenarios_are_named_and_a_feature_too(name: str, made: dict[str, Made]) -> None:
    _, dataset = made[name]
    schema = load_table_schema(RECIPES / name / "schema.toml")
    assert schema.name == name
    assert dataset.schema.scenarios == ("<unknown>", *SCENARIOS[name])
    assert schema.roles.scenario == SCENARIO_COLUMNS[name]
    for split in SPLITS:
        batch = rows(dataset, split)
        assert batch.scenario is not None
        assert (batch.scenario > 0).all()
        named = [dataset.schema.scenarios[k] for k in batch.scenario.tolist()]
        assert named == field_values(dataset, split, SCENARIO_COLUMNS[name])


@pytest.mark.parametrize("name", WRITERS)
def test_every_declared_feature_is_there(name: str, made: dict[str, Made]) -> None:
    _, dataset = made[name]
    declared = load_table_schema(RECIPES / name / "schema.toml")
    wanted = set(declared.features)
    for entity, spec in declared.entities.items():
        wanted |= {f"{entity}.{field}" for field in spec.features}
    fitted = dataset.schema
    found = {field.name for field in fitted.categorical}
    found |= {field.name for field in fitted.numeric}
    found |= {group.name for group in fitted.sequences}
    assert found == wanted


@pytest.mark.parametrize("name", ["aliccp", "aliexpress"])
def test_what_follows_a_click_is_masked_without_one(name: str, made: dict[str, Made]) -> None:
    frame, dataset = made[name]
    click, later = (label.name for label in dataset.schema.labels)
    wanted = frame.filter(pl.col(click) == 1)[later]
    known = []
    for split in SPLITS:
        batch = rows(dataset, split)
        assert batch.labels is not None
        assert batch.label_mask is not None
        assert batch.label_mask[:, 0].all()
        assert torch.equal(batch.label_mask[:, 1], batch.labels[:, 0] == 1)
        known += batch.labels[:, 1][batch.label_mask[:, 1]].tolist()
    # Purchases without a click, which the made-up files have, are in nobody's labels.
    assert frame.filter(pl.col(click) == 0)[later].sum() > 0
    assert (len(known), sum(known)) == (len(wanted), wanted.sum())


def test_aliccp_keeps_its_files(made: dict[str, Made]) -> None:
    frame, dataset = made["aliccp"]
    assert [dataset.split(split).rows for split in SPLITS] == [300, 100, 100]
    batch = rows(dataset, "test")
    assert batch.labels is not None
    assert batch.labels[:, 0].tolist() == frame.tail(100)["click"].to_list()
    place = [field.name for field in dataset.schema.numeric].index("D508")
    wanted = torch.tensor(frame.tail(100)["D508"].to_list())
    assert torch.allclose(batch.numeric[:, place], wanted)


def test_aliexpress_keeps_searches_whole_and_apart_by_country(made: dict[str, Made]) -> None:
    frame, dataset = made["aliexpress"]
    groups = {}
    for split in SPLITS:
        group = rows(dataset, split).group
        assert group is not None
        groups[split] = set(group.tolist())
    assert dataset.split("train").rows + dataset.split("valid").rows == 800
    assert dataset.split("valid").rows > 20
    assert dataset.split("test").rows == 200
    assert not groups["train"] & groups["valid"]
    pairs = frame.select("country", "search_id").unique().height
    assert len(set.union(*groups.values())) == pairs


def test_kuairand_has_five_tabs_and_no_column_that_watching_fills(made: dict[str, Made]) -> None:
    frame, dataset = made["kuairand"]
    kept = frame.filter(pl.col("tab").is_in(TABS))
    assert kept.height < frame.height
    assert sum(dataset.split(split).rows for split in SPLITS) == kept.height
    labels = [rows(dataset, split).labels for split in SPLITS]
    assert sum(float(part.sum()) for part in labels if part is not None) == kept["is_click"].sum()
    names = {field.name for field in dataset.schema.categorical}
    names |= {field.name for field in dataset.schema.numeric}
    assert not any(name.endswith("_ms") or "stay" in name for name in names)
    times = rows(dataset, "train").time
    assert times is not None
    assert set(times.tolist()) <= {t // 1000 for t in kept["time_ms"].to_list()}


def test_iaac_is_in_the_order_of_time(made: dict[str, Made]) -> None:
    frame, dataset = made["iaac"]
    assert [dataset.split(split).rows for split in SPLITS] == [240, 30, 30]
    times = {}
    for split in SPLITS:
        found = rows(dataset, split).time
        assert found is not None
        times[split] = found.tolist()
    assert max(times["train"]) < min(times["valid"])
    assert max(times["valid"]) < min(times["test"])
    label = dict(zip(frame["context_timestamp"], frame["is_trade"], strict=True))
    batch = rows(dataset, "test")
    assert batch.labels is not None
    assert batch.labels[:, 0].tolist() == [label[time] for time in times["test"]]
    properties = batch.sequences["item_property_list"].lengths()
    wanted = {
        row["context_timestamp"]: min(row["item_property_list"].count(";") + 1, 100)
        for row in frame.to_dicts()
    }
    assert properties.tolist() == [wanted[time] for time in times["test"]]
    assert batch.sequences["item_category_list"].lengths().tolist() == [2] * 30
    assert batch.numeric.min() >= 0
    assert batch.numeric.max() <= 1


@pytest.mark.parametrize("name", WRITERS)
def test_the_recipes_take_a_step(name: str, made: dict[str, Made]) -> None:
    _, dataset = made[name]
    batch = dataset.split("train").slice(0, 64)
    recipe = load_recipe(RECIPES / name / "dnn.toml")
    assert recipe.dataset == f"data/{name}/prepared"
    torch.manual_seed(0)
    model = recipe.entry().build(recipe.settings(), dataset.schema)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = ranking_loss(model(batch), batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@pytest.mark.data
def test_the_sample_of_aliccp(public_data: Path, tmp_path: Path) -> None:
    sample = public_data / "scenario-samples"
    for split in ("train", "val", "test"):
        data = unpacked(sample / f"ali_ccp_{split}_sample.csv.gz")
        (tmp_path / f"ali_ccp_{split}.csv").write_bytes(data)
    dataset = prepare(RECIPES / "aliccp/schema.toml", tmp_path / "prepared", root=tmp_path)
    labels = {}
    for split in SPLITS:
        batch = rows(dataset, split)
        assert batch.labels is not None
        assert batch.label_mask is not None
        labels[split] = (*batch.labels.sum(0).tolist(), int(batch.label_mask[:, 1].sum()))
    assert labels == {"train": (7, 1, 7), "valid": (3, 1, 3), "test": (6, 1, 6)}
    assert dataset.schema.scenarios == ("<unknown>", "1", "2", "3")


@pytest.mark.data
def test_the_sample_of_aliexpress(public_data: Path, tmp_path: Path) -> None:
    """The sample does not say its country: it stands for all four."""
    for country in ("NL", "ES", "FR", "US"):
        (tmp_path / f"AliExpress_{country}").mkdir()
        for split in ("train", "test"):
            data = unpacked(public_data / "aliexpress-sample" / f"{split}.csv.gz")
            (tmp_path / f"AliExpress_{country}" / f"{split}.csv").write_bytes(data)
    schema = RECIPES / "aliexpress/schema.toml"
    run_head(schema, tmp_path)
    dataset = prepare(schema, tmp_path / "prepared", root=tmp_path)
    assert dataset.split("train").rows + dataset.split("valid").rows == 4_000
    batch = rows(dataset, "test")
    assert batch.labels is not None
    assert batch.label_mask is not None
    assert batch.labels.sum(0).tolist() == [4 * 43, 4 * 10]
    assert int(batch.label_mask[:, 1].sum()) == 4 * 43


@pytest.mark.data
def test_the_sample_of_kuairand(public_data: Path, tmp_path: Path) -> None:
    """The sample is one joined table without times; here it is taken apart again."""
    joined = pl.read_csv(unpacked(public_data / "scenario-samples" / "kuairand_sample.csv.gz"))
    log = joined.select("user_id", "video_id", "is_click", "tab").with_columns(
        (pl.int_range(pl.len()) + 1_649_400_000_000).alias("time_ms")
    )
    log.head(100).write_csv(tmp_path / "log_standard_4_08_to_4_21_1k.csv")
    log.slice(100).write_csv(tmp_path / "log_standard_4_22_to_5_08_1k.csv")
    first = joined.columns.index("user_active_degree")
    last = joined.columns.index("video_type")
    users = joined.select("user_id", *joined.columns[first:last])
    users.unique("user_id").write_csv(tmp_path / "user_features_1k.csv")
    videos = joined.select("video_id", *joined.columns[last:])
    videos.unique("video_id").write_csv(tmp_path / "video_features_basic_1k.csv")
    dataset = prepare(RECIPES / "kuairand/schema.toml", tmp_path / "prepared", root=tmp_path)
    assert sum(dataset.split(split).rows for split in SPLITS) == 200
    assert dataset.schema.scenarios == ("<unknown>", "1")
    clicks = [rows(dataset, split).labels for split in SPLITS]
    assert sum(float(part.sum()) for part in clicks if part is not None) == 32
