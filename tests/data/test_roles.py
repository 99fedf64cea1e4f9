import numpy as np
import polars as pl
import pytest

from rankloom.data.roles import read_roles, scenario_ids, sort_scenarios
from rankloom.data.table_schema import Categorical, LabelSpec, Roles, TableInput, TableSchema


def declare(**more: object) -> TableSchema:
    values = {"labels": {"y": LabelSpec()}, "roles": Roles(scenario="s")}
    features = {"x": Categorical()}
    return TableSchema(name="x", input=TableInput(files="x"), features=features, **(values | more))


def test_scenarios_are_sorted_by_number_when_all_are_numbers():
    assert sort_scenarios(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert sort_scenarios(["10", "9", "b"]) == ["10", "9", "b"]


def test_unknown_and_missing_scenarios_are_zero():
    lookup = scenario_ids(("<unknown>", "a", "b"))
    assert lookup(pl.Series(["b", None, "c", "a", "<unknown>"])).tolist() == [2, 0, 0, 1, 0]
    assert lookup(pl.Series([], dtype=pl.String)).tolist() == []


def test_a_request_gives_its_scenario_only():
    frame = pl.DataFrame({"s": [3]})
    columns = read_roles(frame, declare(), group_is_text=False, labels=False)
    assert [(column.name, column.to_list()) for column in columns] == [("scenario", ["3"])]
    with pytest.raises(ValueError, match="label y: no column y; the table has: s"):
        read_roles(frame, declare(), group_is_text=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([True, False], [1, 0]), (["1", "0"], [1, 0]), ([1.0, float("nan")], [1, None])],
)
def test_labels_of_every_type(values, expected):
    frame = pl.DataFrame({"s": ["a", "b"], "y": values})
    schema = declare(labels={"y": LabelSpec(allow_missing=True)})
    columns = read_roles(frame, schema, group_is_text=False)
    assert columns[0].to_list() == expected


def test_text_that_is_no_label_names_its_row():
    frame = pl.DataFrame({"s": ["a", "b"], "y": ["1", "yes"]})
    with pytest.raises(
        ValueError, match="^log.csv: label y, column y, row 12: must be a number; got 'yes'"
    ):
        read_roles(
            frame, declare(), group_is_text=False, numbers=np.arange(11, 13), where="log.csv: "
        )


def test_a_label_after_another_is_masked_where_that_is_not_positive():
    labels = {"click": LabelSpec(allow_missing=True), "buy": LabelSpec(after="click")}
    clicks = [1, 0, 1, None, 0]
    for held in ([1, 1, 0, 1, None], ["1", "1", "0", "1", "no"], [1.0, 7.0, 0.0, 1.0, 7.0]):
        frame = pl.DataFrame({"s": ["a"] * 5, "click": clicks, "buy": held})
        columns = read_roles(frame, declare(labels=labels), group_is_text=False)
        assert columns[0].to_list() == clicks
        # What stands in the other rows, wrong or missing, is not looked at.
        assert columns[1].to_list() == [1, None, 0, None, None]
    frame = frame.with_columns(buy=pl.Series([True, True, None, False, True]))
    with pytest.raises(ValueError, match="label buy, column buy, row 3: is missing"):
        read_roles(frame, declare(labels=labels), group_is_text=False)
    missing = labels | {"buy": LabelSpec(after="click", allow_missing=True)}
    columns = read_roles(frame, declare(labels=missing), group_is_text=False)
    assert columns[1].to_list() == [1, None, None, None, None]


def test_labels_after_a_threshold_and_in_a_chain():
    labels = {
        "stay": LabelSpec(column="seconds", threshold=10),
        "cart": LabelSpec(after="stay"),
        "buy": LabelSpec(after="cart"),
    }
    frame = pl.DataFrame({"s": ["a"] * 4, "seconds": [10, 9, 30, 20]}).with_columns(
        cart=pl.Series([1, 1, 0, 1]), buy=pl.Series([0, 1, 1, 1])
    )
    columns = read_roles(frame, declare(labels=labels), group_is_text=False)
    assert [column.to_list() for column in columns[:3]] == [
        [1, 0, 1, 1],
        [1, None, 0, 1],
        [0, None, None, 1],
    ]


@pytest.mark.parametrize("after", ["buy", "later", "clik"])
def test_a_label_comes_after_one_before_it(after):
    labels = {"click": LabelSpec(), "buy": LabelSpec(after=after), "later": LabelSpec()}
    message = f"label buy comes after '{after}', which is no label before it; .* are click"
    with pytest.raises(ValueError, match=message):
        declare(labels=labels)
    first = {"buy": LabelSpec(after=after)}
    with pytest.raises(ValueError, match="those before it are none"):
        declare(labels=first)
