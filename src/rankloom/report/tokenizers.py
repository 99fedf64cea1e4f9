"""Tokenizers of one catalogue side by side: measures, levels, lengths, and items that share codes.

Read from folders of semantic ids alone, as `rankloom tokenize` writes them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.report.inspection_table import InspectionTable
from rankloom.report.texts import MISSING, number
from rankloom.retrieval.diagnostics import TokenizerDiagnostics
from rankloom.retrieval.semantic_ids import FACTS_FILE, SemanticIds
from rankloom.training.retrieval_run import IDS_FOLDER
from rankloom.training.tokenized import Tokenized

CodeArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class NamedIds:
    """A tokenizer's ids under the name they have on the page."""

    label: str
    """Name, unique on the page."""
    found: Tokenized
    """Its ids."""


def find_tokenized(roots: Iterable[str | Path]) -> list[Tokenized]:
    """The semantic ids of folders and of their subfolders, such as runs; equal ones once.

    Raises:
        FileNotFoundError: a folder holds no semantic ids.
        ValueError: some are damaged.
    """
    found: dict[tuple[str, ...], Tokenized] = {}
    for root in map(Path, roots):
        files = sorted(root.rglob(FACTS_FILE))
        if not files:
            raise FileNotFoundError(f"no semantic ids in {root}; make them with rankloom tokenize")
        for file in files:
            opened = Tokenized.open(file.parent)
            ids = opened.ids
            made_of = (ids.tokenizer, repr(sorted(ids.settings.items())), ids.vectors_hash)
            found.setdefault((ids.content_hash, ids.items_hash, *made_of), opened)
    return list(found.values())


def named(found: Sequence[Tokenized]) -> list[NamedIds]:
    """Every tokenizer with a name: its kind, with the folder's where several are of one kind.

    Raises:
        ValueError: there are none, or they are of different catalogues.
    """
    if not found:
        raise ValueError("no semantic ids to show")
    catalogues = {one.ids.items_hash for one in found}
    if len(catalogues) > 1:
        raise ValueError(
            f"one page is of one catalogue; these ids are of {len(catalogues)}: "
            + ", ".join(f"{one.folder} ({one.ids.items_hash})" for one in found)
            + "; give the folders of one of them"
        )
    kinds = [_kind(one.ids) for one in found]
    times = Counter(kinds)
    labels: list[str] = []
    for kind, one in zip(kinds, found, strict=True):
        folder = one.folder.parent if one.folder.name == IDS_FOLDER else one.folder
        # Of `<data>-<kind>-<hash>` the hash says enough; a run's name is told whole.
        told = folder.name.rpartition(f"-{kind}-")[2]
        label = kind if times[kind] == 1 else f"{kind} ({told})"
        labels.append(label if label not in labels else f"{kind} ({folder})")
    return [NamedIds(label, one) for label, one in zip(labels, found, strict=True)]


def measure_table(ids: Sequence[NamedIds]) -> InspectionTable:
    """The measures of each tokenizer over all levels."""
    heads = ("collisions", "settled", "largest", "used", "gini", "error", "codes", "tokens")
    vectors = {one.found.ids.vectors_hash for one in ids}
    notes = [
        "Collisions: items whose codes another item has too; settled: those left in the ids, once "
        "collisions are settled; largest: items of one id. Used: codes of all levels that some id "
        "has. Gini of the counts of codes: 0 all alike. Error: squared distance of vectors and "
        "what their codes say, over the vectors' variance. Codes and tokens: means per id; merges "
        "make tokens of several codes.",
    ]
    if len(vectors) > 1:
        notes.append("They were not all made of the same item vectors.")
    return InspectionTable(
        title="Measures",
        columns=("tokenizer", "levels", "merges", "ids", *heads),
        rows=tuple(_measures(one) for one in ids),
        names=2,
        notes=tuple(notes),
    )


def level_tables(ids: Sequence[NamedIds]) -> list[InspectionTable]:
    """Entropy, use and cosine, a column for each level."""
    kinds: tuple[tuple[str, str, Callable[[TokenizerDiagnostics], Sequence[float | None]]], ...] = (
        (
            "Entropy of the codes, in bits",
            "256 codes used alike have 8.",
            lambda what: what.entropy_by_level,
        ),
        (
            "Share of the codes that are used",
            "An extra level tells colliding items apart.",
            lambda what: what.utilisation_by_level,
        ),
        (
            "Cosine inside codes",
            "Mean over all pairs of items with the same codes up to a level.",
            lambda what: what.intra_code_cosine,
        ),
    )
    width = max(len(one.found.ids.level_sizes) for one in ids)
    return [
        InspectionTable(
            title=title,
            columns=("tokenizer", *(f"level {level + 1}" for level in range(width))),
            rows=tuple(
                (one.label, *_padded(values(one.found.diagnostics), width, 3)) for one in ids
            ),
            notes=(note,),
        )
        for title, note, values in kinds
    ]


def length_table(ids: Sequence[NamedIds]) -> InspectionTable:
    """Share of items by the number of codes of their id."""
    width = max(len(one.found.diagnostics.length_shares) for one in ids)
    return InspectionTable(
        title="Codes of an id",
        columns=("tokenizer", *(str(length + 1) for length in range(width))),
        rows=tuple(
            (one.label, *_padded(one.found.diagnostics.length_shares, width, 4)) for one in ids
        ),
        notes=("Share of the items, once collisions are settled.",),
    )


def stop_table(ids: Sequence[NamedIds]) -> InspectionTable | None:
    """Share of items by the reason why their id ends; None where no tokenizer says so."""
    told = [one for one in ids if one.found.diagnostics.stop_shares]
    if not told:
        return None
    reasons = list(dict.fromkeys(r for one in told for r in one.found.diagnostics.stop_shares))
    return InspectionTable(
        title="Why ids end",
        columns=("tokenizer", *reasons),
        rows=tuple(
            (
                one.label,
                *(number(one.found.diagnostics.stop_shares.get(reason), 4) for reason in reasons),
            )
            for one in told
        ),
        notes=("Share of the items, before collisions are settled.",),
    )


def neighbour_tables(
    ids: Sequence[NamedIds], *, num_items: int = 5, num_titles: int = 4
) -> list[InspectionTable]:
    """For the same items under each tokenizer: who has the same first codes.

    The items stand evenly over those of the catalogue that have a title. Neighbours are ordered by
    the codes they share from the first on, then by cosine. Empty where no folder holds titles.

    Args:
        ids: the tokenizers, of one catalogue.
        num_items: items to show.
        num_titles: neighbours to show of each.
    """
    titles = next((one.found.titles for one in ids if one.found.titles), ())
    shown = np.flatnonzero([bool(title) for title in titles])
    if not shown.size:
        return []
    places = np.unique(np.linspace(0, shown.size - 1, num_items).round().astype(int))
    tables = []
    for item in shown[places].tolist():
        rows = [_neighbour_row(one, item, titles, num_titles) for one in ids]
        nearest = nearest_items(ids[0].found.vectors, item)[:num_titles]
        first = ("nearest vectors", MISSING, MISSING, _listed(titles, nearest))
        tables.append(
            InspectionTable(
                title=titles[item],
                columns=("tokenizer", "id", "items with its 1, 2 ... codes", "nearest by codes"),
                rows=(first, *rows),
                names=4,
            )
        )
    return tables


def nearest_items(vectors: Float[Tensor, "items width"], item: int) -> list[int]:
    """All other rows by cosine with a row, nearest first."""
    units = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1)
    order = torch.argsort(units @ units[item], descending=True, stable=True).tolist()
    return [other for other in order if other != item]


def shared_codes(codes: CodeArray, item: int) -> npt.NDArray[np.int64]:
    """[items] how many codes from the first on each row has in common with a row."""
    same = (codes == codes[item]) & (codes >= 0)
    return np.cumprod(same, axis=1).sum(1)


def _neighbour_row(
    one: NamedIds, item: int, titles: Sequence[str], num_titles: int
) -> tuple[str, ...]:
    codes = one.found.ids.codes
    shared = shared_codes(codes, item)
    nearest = nearest_items(one.found.vectors, item)
    ordered = sorted((other for other in nearest if shared[other]), key=lambda n: -shared[n])
    length = int((codes[item] >= 0).sum())
    counts = " ".join(f"{int((shared > level).sum()):,}" for level in range(length))
    own = " ".join(str(code) for code in codes[item, :length].tolist())
    return one.label, own, counts, _listed(titles, ordered[:num_titles]) or MISSING


def _listed(titles: Sequence[str], items: Iterable[int]) -> str:
    return " | ".join(titles[item] or "(no title)" for item in items)


def _measures(one: NamedIds) -> tuple[str, ...]:
    what, ids = one.found.diagnostics, one.found.ids
    return (
        one.label,
        _sizes(ids.level_sizes),
        str(len(ids.merges)),
        f"{what.num_ids:,}",
        _percent(what.assigned_collision_share),
        _percent(what.collision_share),
        str(max(what.largest_groups, default=1)),
        f"{what.utilisation:.1%}",
        number(what.gini, 3),
        number(what.reconstruction_error, 3),
        number(what.mean_length, 2),
        number(what.mean_tokens, 2),
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2%}"


def _sizes(level_sizes: Sequence[int]) -> str:
    """Codes of each level, equal ones in a row told once: `3 x 256, 40`."""
    parts = [(size, len(list(equal))) for size, equal in groupby(level_sizes)]
    return ", ".join(f"{times} x {size}" if times > 1 else str(size) for size, times in parts)


def _padded(values: Sequence[float | None], width: int, digits: int) -> tuple[str, ...]:
    given = [number(value, digits) for value in values]
    return (*given, *[MISSING] * (width - len(given)))


def _kind(ids: SemanticIds) -> str:
    return f"{ids.tokenizer} with merges" if len(ids.merges) else ids.tokenizer
