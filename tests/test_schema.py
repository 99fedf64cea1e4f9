import pytest
from pydantic import ValidationError

from rankloom.data.examples import example_schema
from rankloom.schema import (
    CategoricalField,
    IdMember,
    Label,
    NumericField,
    Schema,
    SequenceField,
    VectorField,
)

LABELS = (Label(name="click"),)


def test_id_columns_of_members() -> None:
    group = SequenceField(
        name="history",
        ids=(
            IdMember(name="item", table="item"),
            IdMember(name="tags", table="tag", columns=3),
            IdMember(name="action", table="action"),
        ),
        max_length=5,
    )
    assert group.num_id_columns == 5
    assert group.id_columns("item") == slice(0, 1)
    assert group.id_columns("tags") == slice(1, 4)
    assert group.id_columns("action") == slice(4, 5)
    with pytest.raises(KeyError, match="sequence history has no id member price"):
        group.id_columns("price")


def test_names_and_counts() -> None:
    schema = example_schema(num_categorical=1, num_numeric=1, num_tasks=3, num_scenarios=4)
    assert schema.field_names == ("item", "c0", "n0", "genres", "history")
    assert schema.num_tasks == 3
    assert schema.num_scenarios == 4
    assert schema.sequence("history").max_length == 6
    with pytest.raises(KeyError, match="no sequence group likes; known: genres, history"):
        schema.sequence("likes")
    with pytest.raises(KeyError, match="known: none"):
        Schema(tables={}, labels=LABELS).sequence("likes")


def test_repeated_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="names must be unique; repeated: a"):
        Schema(
            tables={"a": 5},
            categorical=(CategoricalField(name="a", table="a"),),
            numeric=(NumericField(name="a"),),
            labels=LABELS,
        )
    with pytest.raises(ValidationError, match="repeated: v"):
        Schema(
            tables={},
            numeric=(NumericField(name="v"),),
            vectors=(VectorField(name="v", width=2),),
            labels=LABELS,
        )


def test_tables_are_checked() -> None:
    field = CategoricalField(name="a", table="a")
    with pytest.raises(ValidationError, match="no table size given for: a"):
        Schema(tables={"b": 5}, categorical=(field,), labels=LABELS)
    with pytest.raises(ValidationError, match="at least 2 rows: a"):
        Schema(tables={"a": 1}, categorical=(field,), labels=LABELS)
    group = SequenceField(name="h", ids=(IdMember(name="x", table="gone"),), max_length=3)
    with pytest.raises(ValidationError, match="no table size given for: gone"):
        Schema(tables={}, sequences=(group,), labels=LABELS)


def test_labels_are_needed_and_differ() -> None:
    with pytest.raises(ValidationError, match="at least one label"):
        Schema(tables={}, labels=())
    with pytest.raises(ValidationError, match="label names must be unique; repeated: click"):
        Schema(tables={}, labels=(Label(name="click"), Label(name="click")))


def test_members_of_a_group_differ_and_the_first_is_an_id() -> None:
    item = IdMember(name="item", table="item")
    with pytest.raises(ValidationError, match="sequence h: member names must be unique"):
        SequenceField(name="h", ids=(item, item), max_length=3)
    with pytest.raises(ValidationError, match="sequence h: member names must be unique"):
        SequenceField(name="h", ids=(item,), numeric=(NumericField(name="item"),), max_length=3)
    with pytest.raises(ValidationError, match="sequence h needs at least one id member"):
        SequenceField(name="h", ids=(), max_length=3)


def test_fingerprint_follows_every_part() -> None:
    schema = example_schema()
    same = Schema.model_validate(schema.model_dump(mode="json"))
    assert same == schema
    assert same.fingerprint() == schema.fingerprint()
    for change in (
        {"tables": {**schema.tables, "item": 51}},
        {"labels": (Label(name="other"),)},
        {"has_weight": False},
        {"numeric": schema.numeric[::-1]},
    ):
        assert schema.model_copy(update=change).fingerprint() != schema.fingerprint()


def test_schema_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        example_schema().labels = ()


def test_a_mean_is_not_written_so_that_older_data_keep_their_hash() -> None:
    member = IdMember(name="genres", table="genres", columns=3)
    assert "pooling" not in member.model_dump(mode="json")
    summed = member.model_copy(update={"pooling": "sum"})
    assert IdMember.model_validate_json(summed.model_dump_json()) == summed
    assert IdMember.model_validate_json(member.model_dump_json()) == member
