"""The one hand-written table of models: name -> config, class, family, paper.

A model is added by writing its file and its line here; nothing registers itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rankloom.config import Config
from rankloom.schema import Schema


@dataclass(frozen=True)
class Entry:
    """One model of the catalog."""

    name: str
    """Name in recipes."""
    family: str
    """ranking, scenario or retrieval."""
    title: str
    """The model's name as its paper writes it."""
    paper: str
    """Authors, venue, identifier."""
    year: int
    """Year of the paper."""
    idea: str
    """One line."""
    config: type[Config]
    """Its config."""
    build: Callable[..., nn.Module]
    """Its class, called with (config, schema)."""


ENTRIES: tuple[Entry, ...] = ()

CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def lookup(name: str) -> Entry:
    """The catalog entry called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in CATALOG:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(sorted(CATALOG))}")
    return CATALOG[name]


def build_model(name: str, config: Config, schema: Schema) -> nn.Module:
    """A new model, its parameters drawn from torch's global generator."""
    return lookup(name).build(config, schema)
