"""Every connection on every model made of token layers: it works, or says why not."""

import re

from docs.hooks import connection_pairs
from rankloom.catalog import ENTRIES
from rankloom.ranking.token_network import TokenNetwork

REASONS = re.compile(r"use num_streams = 1|set auxiliary_weight = 0")


def test_every_pair_works_or_says_what_to_do() -> None:
    works: dict[str, set[str]] = {}
    models = {entry.name for entry in ENTRIES if issubclass(entry.config, TokenNetwork)}
    for connection, model, problem in connection_pairs():
        assert problem is None or REASONS.search(problem), (connection, model, problem)
        if problem is None:
            works.setdefault(connection, set()).add(model)
    assert works.pop("mudd") == {"transformer"}
    deres = works.pop("deres")
    assert deres == models - {"tokenmixer_large"}
    assert len(works) >= 9
    assert all(those == models for those in works.values())
