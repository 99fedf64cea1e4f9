from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rankloom.data.entities import open_entities
from rankloom.data.prepare import prepare
from rankloom.data.table_schema import (
    Categorical,
    Entity,
    Feature,
    LabelSpec,
    Sequence,
    TableInput,
    TableSchema,
    Text,
    Vector,
)


def declare(**features: Feature) -> TableSchema:
    entity = Entity(
        input=TableInput(files="items.csv"), key="id", feature="item", features=features
    )
    return TableSchema(
        name="x",
        input=TableInput(files="log.csv"),
        features={"item": Categorical()},
        labels={"y": LabelSpec()},
        entities={"info": entity},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"{name},{place % 2}\n" for place, name in enumerate(["a", "b", "q"] * 30))
    (tmp_path / "log.csv").write_text("item,y\n" + rows)
    (tmp_path / "items.csv").write_text(
        "id,genres,vector,title\nb,x|y,1 2,The B\nzz,z,5 6,Unused\na,,3 4,The A\n"
    )
    return tmp_path


def test_rows_stand_in_the_order_of_ids(folder):
    schema = declare(genres=Sequence(), vector=Vector(width=2), title=Text())
    data = prepare(schema, folder / "out", root=folder)
    info = data.entities["info"]
    # Ids: padding, out-of-vocabulary, then a, b, q by count and value; q is no entity.
    names = prepare_vocabulary(data.folder)
    assert set(names) == {"a", "b", "q"}
    order = {name: place + 2 for place, name in enumerate(names)}
    vectors = info.vectors["info.vector"].tolist()
    assert vectors[order["a"]] == [3, 4]
    assert vectors[order["b"]] == [1, 2]
    assert vectors[0] == vectors[1] == vectors[order["q"]] == [0, 0]
    genres = info.sequences["info.genres"]
    lengths = genres.lengths().tolist()
    assert [lengths[order[name]] for name in "abq"] == [0, 2, 0]
    assert data.schema.tables["info.genres"] == 4  # z belongs to no entity of the log
    titles = pq.read_table(data.folder / "entities" / "info.texts.parquet").to_pydict()
    assert titles["info.title"][order["b"]] == "The B"
    assert titles["info.title"][1] is None
    assert "entities/info.texts.parquet" in data.manifest.files


def prepare_vocabulary(folder: Path) -> list[str]:
    return pq.read_table(folder / "vocabulary" / "item.parquet")["value"].to_pylist()


def test_a_missing_column_or_file_is_named(folder):
    with pytest.raises(ValueError, match=r"items\.csv has no column brand"):
        open_entities(declare(brand=Categorical()), folder)
    (folder / "items.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"items\.csv"):
        open_entities(declare(genres=Sequence()), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv"]
