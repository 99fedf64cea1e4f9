"""The hand-written table of models: name -> config, class, family, paper.

It joins the families' tables. A model is added by writing its file and its line in the table of its
family (`rankloom.ranking.catalog`, `rankloom.scenario.catalog`, `rankloom.retrieval.catalog`);
nothing registers itself.
"""

from torch import nn

from rankloom.config import Config
from rankloom.entry import Entry
from rankloom.ranking.catalog import RANKING_ENTRIES
from rankloom.retrieval.catalog import RETRIEVAL_ENTRIES
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.scenario.catalog import SCENARIO_ENTRIES
from rankloom.schema import Schema

__all__ = ["CATALOG", "ENTRIES", "Entry", "build_model", "lookup"]

ENTRIES: tuple[Entry, ...] = (*RANKING_ENTRIES, *SCENARIO_ENTRIES, *RETRIEVAL_ENTRIES)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def lookup(name: str) -> Entry:
    """The catalog entry called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in CATALOG:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(sorted(CATALOG))}")
    return CATALOG[name]


def build_model(name: str, config: Config, schema: Schema | ItemSchema) -> nn.Module:
    """A new model, its parameters drawn from torch's global generator.

    Args:
        name: name in the catalog.
        config: its config.
        schema: of the rows that it scores, or for a retrieval model of the items.

    Raises:
        ValueError: no such model, the data lacks what it needs, or is of the other kind.
    """
    entry = lookup(name)
    retrieves = entry.family == "retrieval"
    if isinstance(schema, ItemSchema) != retrieves:
        raise ValueError(
            f"{name} {'retrieves items' if retrieves else 'scores rows'}; it is built for "
            f"{'an ItemSchema' if retrieves else 'a Schema'}, not for {type(schema).__name__}"
        )
    if isinstance(schema, Schema):
        entry.check(schema)
    return entry.build(config, schema)
