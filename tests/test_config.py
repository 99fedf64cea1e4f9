from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from rankloom.config import (
    Config,
    apply_overrides,
    load_config,
    parse_config,
    read_json_values,
    read_toml,
    to_toml,
)


class Cross(Config):
    kind: Literal["cross"] = "cross"
    rank: int = Field(4, gt=0)
    """Rank of the matrix."""


class Gate(Config):
    kind: Literal["gate"] = "gate"
    width: int = 8
    """Width of the gate."""


Part = Annotated[Cross | Gate, Field(discriminator="kind")]


class Example(Config):
    name: str
    """Name."""
    rate: float = Field(1e-3, gt=0)
    """Learning rate."""
    hidden: tuple[int, ...] = (400, 400)
    """Widths."""
    part: Part = Cross()
    """The part."""
    parts: dict[str, Gate] = Field(default_factory=dict)
    """Parts by name."""
    limit: int | None = None
    """Limit."""

    @model_validator(mode="after")
    def _check(self) -> "Example":
        if self.limit is not None and self.limit > 9:
            raise ValueError(f"limit must be at most 9; got {self.limit}")
        return self


def test_round_trip_through_toml(tmp_path: Path) -> None:
    config = Example(name='naïve "x"', part=Gate(width=3), parts={"a": Gate()}, hidden=(1, 2))
    path = tmp_path / "example.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(Example, path) == config
    assert "limit" not in to_toml(config)
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


def test_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"^r\.toml: unknown key rat; did you mean rate\?; known "
        "keys: hidden, limit, name, part, parts, rate$",
    ):
        parse_config(Example, {"name": "x", "rat": 1}, "r.toml")
    with pytest.raises(ValueError, match=r"unknown key part\.wide.*known keys: kind, width$"):
        parse_config(Example, {"name": "x", "part": {"kind": "gate", "wide": 1}}, "r.toml")
    with pytest.raises(ValueError, match=r"unknown key parts\.a\.wide.*known keys: kind, width$"):
        parse_config(Example, {"name": "x", "parts": {"a": {"wide": 1}}}, "r.toml")


def test_each_problem_is_one_line() -> None:
    with pytest.raises(ValueError) as caught:
        parse_config(Example, {"rate": -1.0, "hidden": ["a"]}, "r.toml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "r.toml: name is missing"
    assert lines[1].startswith("r.toml: rate: Input should be greater than 0; got -1.0")
    assert lines[2].startswith("r.toml: hidden.0: Input should be a valid integer")
    assert len(lines) == 3


def test_own_checks_and_unknown_kinds_are_told() -> None:
    with pytest.raises(ValueError, match=r"^r\.toml: limit must be at most 9; got 10$"):
        parse_config(Example, {"name": "x", "limit": 10}, "r.toml")
    with pytest.raises(ValueError, match=r"unknown kind 'star' of part; known kinds: cross, gate$"):
        parse_config(Example, {"name": "x", "part": {"kind": "star"}}, "r.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*gone.toml"):
        read_toml(tmp_path / "gone.toml")
    path = tmp_path / "bad.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML: .*line 2"):
        read_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML"):
        read_toml(path)


def test_overrides() -> None:
    values = {"name": "x", "model": {"name": "fm", "dim": 4}}
    changed = apply_overrides(
        values,
        [
            "model.name=dcnv2",
            "model.dim = 8",
            "training.rate=1e-3",
            "model.hidden=[64, 32]",
            "a=x=y",
        ],
    )
    assert changed == {
        "name": "x",
        "model": {"name": "dcnv2", "dim": 8, "hidden": [64, 32]},
        "training": {"rate": 1e-3},
        "a": "x=y",
    }
    assert values == {"name": "x", "model": {"name": "fm", "dim": 4}}  # left as it was
    assert apply_overrides({}, ["flag=true", 'text="1"', "empty="]) == {
        "flag": True,
        "text": "1",
        "empty": "",
    }


def test_an_override_sets_one_value_only() -> None:
    # A line break must not lose what follows it.
    assert apply_overrides({}, ["a=1\nb = 2"]) == {"a": "1\nb = 2"}


def test_bad_overrides() -> None:
    for text in ("rate", "=3", " =3"):
        with pytest.raises(ValueError, match="--set takes key=value; got"):
            apply_overrides({}, [text])
    with pytest.raises(ValueError, match=r"--set name\.x: name is a value, not a table"):
        apply_overrides({"name": "x"}, ["name.x=3"])


class Inner(Config):
    width: int = 1
    """Width."""
    depth: int = 1
    """Depth."""


class Outer(Config):
    inner: Inner = Inner(width=5)
    """A table whose default is not its class's."""
    part: Part = Cross(rank=7)
    """The part."""
    deeper: dict[str, Inner] = Field(default_factory=dict)
    """Tables without a default of their own."""


class Outermost(Config):
    outer: Outer = Outer(inner=Inner(width=6, depth=3))
    """Two tables deep."""


def test_a_table_keeps_what_it_does_not_state_as_the_default_has_it() -> None:
    parsed = parse_config(Outer, {"inner": {"depth": 2}, "deeper": {"a": {"depth": 2}}}, "r")
    assert parsed.inner == Inner(width=5, depth=2)
    assert parsed.deeper["a"] == Inner(width=1, depth=2)
    nested = parse_config(Outermost, {"outer": {"inner": {"width": 4}}}, "r")
    assert nested.outer.inner == Inner(width=4, depth=3)
    assert parse_config(Outer, {"inner": Inner(depth=2)}, "r").inner == Inner(width=1, depth=2)


def test_a_default_of_another_kind_gives_nothing() -> None:
    assert parse_config(Outer, {"part": {"kind": "cross"}}, "r").part == Cross(rank=7)
    assert parse_config(Outer, {"part": {"kind": "gate"}}, "r").part == Gate()
    assert parse_config(Outer, {"part": {}}, "r").part == Cross(rank=7)


def test_json_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="no such file: .*a.json"):
        read_json_values(path)
    path.write_text('{"a": 1', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON: .*line 1 column 8"):
        read_json_values(path)
    path.write_text('{"a": [1, null]}', encoding="utf-8")
    assert read_json_values(path) == {"a": [1, None]}
