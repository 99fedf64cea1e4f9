import numpy as np
import polars as pl
import pytest

from rankloom.data.cells import jagged, read_cells, table_kinds, to_integer, to_text
from rankloom.data.plan import Group, Slot, make_plan
from rankloom.data.table_schema import (
    Categorical,
    Feature,
    LabelSpec,
    Sequence,
    TableInput,
    TableSchema,
    Vector,
)
from rankloom.data.vocabulary import NOT_A_NUMBER

GROUP = Group("g", (Slot("m", "c", "id", "t", 1),), "|", 10)
PLAIN = Group("g", (Slot("m", "c", "id", "t", 1),), "|", 10, skip_missing=True)


def declare(**features: Feature) -> TableSchema:
    return TableSchema(
        name="x", input=TableInput(files="x"), features=features, labels={"y": LabelSpec()}
    )


@pytest.mark.parametrize(
    ("values", "lengths", "flat"),
    [
        (pl.Series(["a|b", "", None, "c"]), [2, 0, 0, 1], ["a", "b", "c"]),
        (pl.Series([[1, 2], [], None]), [2, 0, 0], [1, 2]),
        (pl.Series([5, None, 6]), [1, 0, 1], [5, 6]),
        (pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)), [2, 2], [1, 2, 3, 4]),
        (pl.Series([None, None]), [0, 0], []),
        (pl.Series([], dtype=pl.String), [], []),
    ],
)
@pytest.mark.parametrize("group", [GROUP, PLAIN])
def test_lists_text_and_single_values_are_jagged(values, lengths, flat, group):
    found, cells = jagged(values, group)
    assert found.tolist() == lengths
    assert cells.to_list() == flat


def test_missing_events_stay_in_groups_and_go_from_plain_sequences():
    lists, text = pl.Series([[1, None], [None]]), pl.Series(["a||b", "|"])
    assert jagged(lists, GROUP)[0].tolist() == [2, 1]
    assert jagged(lists, PLAIN)[0].tolist() == [1, 0]
    assert jagged(text, GROUP)[0].tolist() == [3, 2]
    lengths, cells = jagged(text, PLAIN)
    assert (lengths.tolist(), cells.to_list()) == ([2, 0], ["a", "b"])


def test_integers_of_everything():
    assert to_integer(pl.Series(["5", "x", None, "-3"])).to_list() == [5, NOT_A_NUMBER, None, -3]
    floats = pl.Series([5.0, 5.5, float("nan"), None, 1e300])
    assert to_integer(floats).to_list() == [5, NOT_A_NUMBER, None, None, NOT_A_NUMBER]
    with pytest.raises(ValueError, match="column t holds dates"):
        to_integer(pl.Series("t", [None], dtype=pl.Date))


def test_text_of_everything():
    assert to_text(pl.Series([5, None])).to_list() == ["5", None]
    assert to_text(pl.Series([5.0, 2.5, float("nan")])).to_list() == ["5", "2.5", None]


def test_kinds_follow_the_columns_that_fit():
    schema = declare(
        item=Categorical(),
        seen=Sequence(vocabulary="item"),
        city=Categorical(),
        h=Categorical(hash_buckets=3),
        q=Categorical(transform="quantile"),
        c=Categorical(transform="criteo_log2"),
    )
    text, number = pl.String(), pl.Int64()
    types = {"item": number, "seen": text, "city": text, "h": text, "q": number, "c": pl.Float64()}
    kinds = table_kinds(make_plan(schema, types), {None: types})
    assert kinds == {
        "item": "integer",
        "city": "text",
        "h": "hash",
        "q": "quantile",
        "c": "integer",
    }


@pytest.mark.parametrize(
    "values", [["1 2", "3,4"], ["[1, 2]", " 3;4 "], [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]]
)
def test_vectors_come_as_lists_or_text(values):
    plan = make_plan(declare(v=Vector(width=2)), {})
    cells = read_cells(pl.DataFrame({"v": values}), plan.main, plan.tables, {})
    assert cells.rows["vector/v"].to_list() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("bad", [[1.0, float("inf")], [1.0, None]])
def test_vectors_must_be_finite(bad):
    plan = make_plan(declare(v=Vector(width=2)), {})
    frame = pl.DataFrame({"v": [None, [1.0, 2.0], bad]})
    with pytest.raises(ValueError, match="column v, row 13: a vector must hold finite"):
        read_cells(frame, plan.main, plan.tables, {}, numbers=np.arange(11, 14))
