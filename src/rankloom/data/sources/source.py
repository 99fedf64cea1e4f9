"""What a public data set is: where it comes from, in which forms, under which terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankloom.config import parse_config
from rankloom.data.sequence_spec import SequenceSpec
from rankloom.data.table_schema import TableSchema

Files = Mapping[str, Path]
"""File name as the form writes it -> where it lies."""


@dataclass(frozen=True)
class Download:
    """An origin: one archive or file at an address."""

    url: str
    """http or https address."""
    sha256: str | None = None
    """Checksum of what lies there; None: recorded, not compared."""

    def describe(self) -> str:
        """The origin in a few words, for messages and the manifest."""
        return self.url


@dataclass(frozen=True)
class Wheel:
    """An origin: files inside a wheel on the Python package index. The wheel is not installed."""

    requirement: str
    """Exact requirement, such as `name==1.0`."""
    sha256: str
    """Checksum of the wheel."""

    def describe(self) -> str:
        """The origin in a few words, for messages and the manifest."""
        return f"wheel {self.requirement}"


@dataclass(frozen=True)
class SchemaText:
    """One table schema of a data set."""

    values: dict[str, Any]
    """Plain values of a `TableSchema`, defaults left out."""
    comment: str
    """What the schema makes of the data set; stands above it in the file."""

    def parse(self) -> TableSchema:
        """The schema these values give."""
        return parse_config(TableSchema, self.values, str(self.values.get("name", "schema")))


@dataclass(frozen=True)
class SequencesText:
    """The declaration of a data set as sequences of items."""

    values: dict[str, Any]
    """Plain values of a `SequenceSpec`, defaults left out."""
    comment: str
    """What the declaration makes of the data set; stands above it in the file."""

    def parse(self) -> SequenceSpec:
        """The declaration these values give."""
        return parse_config(SequenceSpec, self.values, str(self.values.get("name", "sequences")))


def no_sequences() -> None:
    """The declaration of a data set that is not read as sequences."""


@dataclass(frozen=True)
class Form:
    """One way in which a data set is published: file names, checksums, and how to read them."""

    name: str
    """What the form is, in a few words."""
    files: Mapping[str, str | None]
    """Files it must have -> SHA-256 of the published ones, None where it is not known."""
    convert: Callable[[Files, Path], None]
    """Writes the raw files of our form into a folder."""
    schemas: Callable[[], Mapping[str, SchemaText]]
    """File name without ending (`schema` is the main one) -> table schema."""
    optional: Mapping[str, str | None] = field(default_factory=dict)
    """Files it may have, as `files`."""
    sequences: Callable[[], SequencesText | None] = no_sequences
    """Declaration as sequences, written as `sequences.toml`; None: there is none."""


@dataclass(frozen=True)
class Source:
    """One public data set."""

    name: str
    """Name on the command line."""
    title: str
    """Name in sentences."""
    rows: str
    """Size, in words."""
    task: str
    """What is predicted, from what, with which split."""
    terms: str
    """Conditions of use, in short."""
    citation: str
    """Whom to cite."""
    page: str
    """Official page."""
    forms: tuple[Form, ...]
    """Forms it is read from."""
    origins: tuple[Download | Wheel, ...] = ()
    """Where it is fetched from when nothing is said, tried in turn."""
    how_to_get: str = ""
    """For a data set that cannot be fetched: where it is to be had."""

    def accepted(self) -> str:
        """The forms that `--from` takes, one line."""
        return "; ".join(f"{form.name} ({', '.join(form.files)})" for form in self.forms)
