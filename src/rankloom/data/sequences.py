"""Raw tables -> sequence data set: a catalogue of items and each user's items, oldest first.

What is in a sequence data set and how it is declared stands in `docs/sequence-data.md`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rankloom.data.new_folder import check_target
from rankloom.data.sequence_items import ItemTable
from rankloom.data.sequence_log import (
    Events,
    in_order,
    read_interactions,
    read_lists,
    with_numbers,
)
from rankloom.data.sequence_spec import EventRules, SequenceSpec, load_sequence_spec
from rankloom.data.sequence_store import (
    SEQUENCE_MANIFEST,
    SequenceData,
    SequenceManifest,
    read_sequence_manifest,
)
from rankloom.retrieval.histories import Histories

__all__ = [
    "SequenceData",
    "SequenceManifest",
    "SequenceSpec",
    "load_sequence_spec",
    "prepare_sequences",
    "read_sequence_manifest",
    "read_sequences",
]


def prepare_sequences(
    spec: SequenceSpec | str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    overwrite: bool = False,
) -> SequenceData:
    """Prepare a sequence data set folder.

    Args:
        spec: the declaration, or the TOML file that holds it.
        out: folder to make.
        root: folder that relative paths of the declaration start from; None: the declaration
            file's folder (or the working folder).
        overwrite: replace a sequence data set that stands at `out`.

    Returns:
        The opened data set.

    Raises:
        FileNotFoundError: an input file does not exist.
        FileExistsError: `out` is there already.
        ValueError: the declaration or the data is wrong; one sentence says what and where.
        OSError: the folder cannot be written, because the disk is full for example.
    """
    check_target(Path(out), overwrite, SEQUENCE_MANIFEST)
    read_sequences(spec, root=root).save(out, overwrite=overwrite)
    return SequenceData.open(out)


def read_sequences(
    spec: SequenceSpec | str | Path, *, root: str | Path | None = None
) -> SequenceData:
    """The data set that a declaration gives, in memory; arguments and errors as above."""
    if not isinstance(spec, SequenceSpec):
        root = Path(spec).parent if root is None else root
        spec = load_sequence_spec(spec)
    folder = Path(root or ".").resolve()
    table = None if spec.items is None else ItemTable.read(spec.items, folder)
    rules: EventRules
    if spec.interactions is not None:
        rules = spec.interactions
        events = read_interactions(spec.interactions, folder)
    else:
        assert spec.sequences is not None  # the declaration has one of the two
        rules = spec.sequences
        events = read_lists(spec.sequences, folder)
    if table is None:
        table = ItemTable.of_ids(events.item_ids)
    events = in_order(with_numbers(events, table.ids, rules), rules)
    # Items nobody has stay in the catalogue, unless the declaration or a core filter says not.
    only_seen = rules.min_count is not None or (spec.items is not None and spec.items.only_seen)
    counts = np.bincount(events.items, minlength=len(table.ids) + 1)[1:]
    rows = np.flatnonzero(counts) if only_seen else np.arange(len(table.ids))
    number_of = np.zeros(len(table.ids) + 1, np.int32)
    number_of[rows + 1] = np.arange(1, len(rows) + 1)
    events = replace(events, items=number_of[events.items])
    # A list may be empty; a user of a log, or of a core, has events.
    keep_empty = spec.sequences is not None and rules.min_count is None
    users, histories = _histories(events, len(rows), keep_empty=keep_empty)
    return SequenceData(
        spec.name,
        table.catalogue(rows),
        histories,
        users,
        None if spec.items is None else spec.items.title,
        () if spec.items is None else spec.items.text,
    )


def _histories(events: Events, num_items: int, *, keep_empty: bool) -> tuple[list[str], Histories]:
    """Ids of the users, and their sequences; `events` are sorted by user."""
    lengths = np.bincount(events.users, minlength=len(events.user_ids))
    kept = np.arange(len(lengths)) if keep_empty else np.flatnonzero(lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[kept])])
    users = events.user_ids.gather(kept).to_list()
    return users, Histories(events.items.astype(np.int64), offsets, num_items)
