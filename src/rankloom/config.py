"""Strict, frozen configs: TOML text to typed objects and back.

A key that a config does not know is an error that lists the keys it does know, so that a typing
error never turns into a silently ignored setting.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

NONE = "none"
"""How TOML writes None, in fields that may be None and are no text."""


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, fields documented by their docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        """TOML has no null: the text "none" switches off a setting that may be None."""
        if not isinstance(values, dict):
            return values
        return {
            key: None if value == NONE and _may_be_none(cls, key) else value
            for key, value in values.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _complete_tables(cls, values: Any) -> Any:
        """A table that states some keys keeps the others as the field's default has them."""
        if not isinstance(values, dict):
            return values
        return {key: complete(value, _default(cls, key)) for key, value in values.items()}


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(config_type: type[ConfigT], values: dict[str, Any], source: str) -> ConfigT:
    """Validate `values` as a `config_type`.

    Args:
        config_type: the config class.
        values: nested plain values, as TOML or JSON gives them.
        source: where the values come from, named in errors (a file path, `--set`).

    Raises:
        ValueError: one line per problem; an unknown key is answered with the known ones.
    """
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ValueError(describe_errors(config_type, error, source)) from None


def load_config(config_type: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a TOML file as a `config_type`; errors as in `parse_config`."""
    return parse_config(config_type, read_toml(path), str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML; the message gives file, line and column.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None


def read_json_values(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON; the message gives file, line and column.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None


def to_toml(config: BaseModel) -> str:
    """TOML text of a config; parsing it again gives an equal config."""
    return tomli_w.dumps(toml_values(config))


def apply_overrides(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return `values` with dotted `key=value` assignments applied, as `--set` gives them.

    The value is read as a TOML value (`training.learning_rate=1e-3`, `model.hidden=[64, 32]`); what
    is not TOML is taken as text, so `model.name=dcnv2` needs no quotes.

    Raises:
        ValueError: an assignment has no `=`, or its path runs through a value that is no table.
    """
    result = _copy_tables(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set takes key=value; got {assignment!r}")
        *parents, last = key.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ValueError(f"--set {key}: {parent} is a value, not a table")
        table[last] = _parse_value(text.strip())
    return result


def _default(config_type: type[BaseModel], key: str) -> Any:
    """What a field's default, where that is a config, has other than its class."""
    field = config_type.model_fields.get(key)
    default = None if field is None else field.get_default(call_default_factory=False)
    return _own_values(default) if isinstance(default, BaseModel) else None


def _own_values(config: BaseModel) -> dict[str, Any]:
    """The kind, and what differs from the class's defaults."""
    values = {}
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if key == "kind" or value != field.get_default(call_default_factory=True):
            values[key] = _own_values(value) if isinstance(value, BaseModel) else value
    return values


def complete(value: Any, default: Any) -> Any:
    """A plain value, with what a table does not state taken from its default.

    Tables are completed at every depth, lists are not. A default of another `kind` gives nothing.
    """
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    if value.get("kind", default.get("kind")) != default.get("kind"):
        return value
    stated = {key: complete(part, default.get(key)) for key, part in value.items()}
    return default | stated


def describe_errors(config_type: type[BaseModel], error: ValidationError, source: str) -> str:
    """One line per validation error, with the known keys where a key is unknown."""
    lines = []
    for detail in error.errors():
        location, candidates = _walk(config_type, detail["loc"])
        where = ".".join(location)
        kind = detail["type"]
        if kind == "extra_forbidden":
            known = sorted({name for candidate in candidates for name in candidate.model_fields})
            listing = f"; known keys: {', '.join(known)}" if known else ""
            hint = _closest(location[-1], known)
            lines.append(f"{source}: unknown key {where}{hint}{listing}")
        elif kind == "missing":
            lines.append(f"{source}: {where} is missing")
        elif kind == "union_tag_not_found":
            lines.append(f"{source}: {where}.kind is missing")
        elif kind == "union_tag_invalid":
            tags = detail["ctx"]["expected_tags"].replace("'", "")
            hint = _closest(detail["ctx"]["tag"], tags.split(", "))
            lines.append(
                f"{source}: unknown kind {detail['ctx']['tag']!r} of {where}{hint}; "
                f"known kinds: {tags}"
            )
        elif kind == "value_error":
            prefix = f" {where}:" if where else ""
            lines.append(f"{source}:{prefix} {detail['ctx']['error']}")
        else:
            lines.append(f"{source}: {where}: {detail['msg']}; got {detail['input']!r}")
    return "\n".join(lines)


def toml_values(config: BaseModel) -> dict[str, Any]:
    """Plain values; a None that is not the field's default is written out, others are left away.

    Values of keys that a config takes without knowing them must be plain.
    """
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value is None:
            if field.get_default(call_default_factory=True) is not None:
                values[name] = NONE
        else:
            values[name] = _toml_value(value)
    return values | (config.model_extra or {})


def _toml_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return toml_values(value)
    if isinstance(value, dict):
        return {key: _toml_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_toml_value(item) for item in value]
    return value


def _may_be_none(config_type: type[BaseModel], key: str) -> bool:
    field = config_type.model_fields.get(key)
    kinds = set() if field is None else set(get_args(field.annotation))
    return type(None) in kinds and str not in kinds


def _copy_tables(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _copy_tables(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _parse_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # Text with a line break may parse as several keys; it is one value all the same.
    return values["value"] if len(values) == 1 else text


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _walk(
    config_type: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], list[type[BaseModel]]]:
    """The path as a person writes it, and the configs that hold its last part.

    pydantic puts the kind of a nested config into the path; nobody typed it there.
    """
    shown: list[str] = []
    candidates: list[type[BaseModel]] = [config_type]
    inside_container = False  # the next part is a dictionary key or a list index
    for part in location:
        tagged = [candidate for candidate in candidates if _kind_of(candidate) == part]
        if tagged and shown and not inside_container:
            candidates = tagged
            continue
        shown.append(str(part))
        fields = [c.model_fields[str(part)] for c in candidates if str(part) in c.model_fields]
        if inside_container or not fields:
            inside_container = False
            continue
        inside_container = any(get_origin(f.annotation) in (dict, tuple, list) for f in fields)
        candidates = [found for f in fields for found in _config_types(f.annotation)] or candidates
    return shown, candidates


def _kind_of(config_type: type[BaseModel]) -> object:
    field = config_type.model_fields.get("kind")
    return None if field is None else field.default


def _config_types(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found.extend(_config_types(argument))
    return found
