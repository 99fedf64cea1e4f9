"""Last.fm tags (HetRec 2011): does this user give this artist this tag?

Made into click prediction the way NFM made its MovieLens tag data: each assignment is a positive
with two negatives that keep user and artist and draw the tag. Read from HetRec's files, where the
negatives are drawn here (seeded), and from Parquet tables that hold the rows already. The two draws
differ, so results of one are not to be compared with results of the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.sources.source import Files, Form, SchemaText, Source

NEGATIVES_PER_POSITIVE = 2
SEED = 20240607
_IDS = ("user_id", "artist_id", "tag_id")
_SHARES = {"train": 0.7, "valid": 0.2, "test": 0.1}


def _schemas() -> Mapping[str, SchemaText]:
    values: dict[str, Any] = {
        "name": "lastfm-tag",
        "input": {"files": "ctr.parquet"},
        "features": {column: {"kind": "categorical"} for column in _IDS},
        "labels": {"label": {}},
        "roles": {"group": "user_id"},
        "split": {"kind": "column", "column": "split"},
    }
    comment = (
        "Last.fm tags as click prediction: does this user give this artist this tag?\n\n"
        "Two negatives per assignment, tags drawn; random split 7:2:1, given by a column."
    )
    return {"schema": SchemaText(values, comment)}


def _from_hetrec(files: Files, into: Path) -> None:
    assignments = _read_dat(files["user_taggedartists.dat"]).select(
        pl.col("userID").cast(pl.Int64).alias("user_id"),
        pl.col("artistID").cast(pl.Int64).alias("artist_id"),
        pl.col("tagID").cast(pl.Int64).alias("tag_id"),
        *(pl.col(part).cast(pl.Int64) for part in ("day", "month", "year")),
    )
    assignments.write_parquet(into / "tag_assignments.parquet")
    draw_rows(assignments).write_parquet(into / "ctr.parquet")
    if "tags.dat" in files:
        tags = _read_dat(files["tags.dat"])
        tags.select(
            pl.col("tagID").cast(pl.Int64).alias("tag_id"), pl.col("tagValue").alias("tag")
        ).write_parquet(into / "tags.parquet")
    if "artists.dat" in files:
        artists = _read_dat(files["artists.dat"])
        artists.select(pl.col("id").cast(pl.Int64).alias("artist_id"), "name").write_parquet(
            into / "artists.parquet"
        )


def _from_parquet(files: Files, into: Path) -> None:
    for name, path in files.items():
        frame = pl.read_parquet(path)
        integers = [name for name, kind in frame.schema.items() if kind.is_integer()]
        frame = frame.with_columns(pl.col(integers).cast(pl.Int64))
        if name == "ctr.parquet":
            frame = frame.with_columns(pl.col("split").cast(pl.String))
        frame.write_parquet(into / name)


def draw_rows(assignments: pl.DataFrame, seed: int = SEED) -> pl.DataFrame:
    """Positives and drawn negatives, shuffled, with a `split` column.

    Args:
        assignments: columns user_id, artist_id, tag_id.
        seed: seed of the draw, the shuffle and the split.

    Returns:
        label, user_id, artist_id, tag_id, split; three rows per assignment. A negative's tag is
        uniform over the tags in use, and no tag that the user gave that artist.
    """
    generator = np.random.default_rng(seed)
    positives = assignments.select(_IDS).unique(maintain_order=True)
    tags = positives["tag_id"].unique().sort().to_numpy()
    pairs = positives.select(pl.struct("user_id", "artist_id").rank("dense") - 1).to_series()
    pair = pairs.cast(pl.Int64).to_numpy()
    known = np.unique(pair * len(tags) + np.searchsorted(tags, positives["tag_id"].to_numpy()))
    repeated = np.repeat(pair, NEGATIVES_PER_POSITIVE)
    drawn = _draw_unknown(repeated, len(tags), known, generator)
    negatives = positives.select(
        pl.col("user_id", "artist_id").repeat_by(NEGATIVES_PER_POSITIVE).explode()
    ).with_columns(pl.Series("tag_id", tags[drawn]))
    rows = pl.concat(
        [
            positives.with_columns(pl.lit(1, pl.Int64).alias("label")),
            negatives.with_columns(pl.lit(0, pl.Int64).alias("label")),
        ]
    )
    ends = np.round(np.cumsum(list(_SHARES.values())) * rows.height).astype(np.int64)
    sizes = np.diff(ends, prepend=0)
    split = np.repeat(list(_SHARES), sizes)
    shuffled = rows[generator.permutation(rows.height)]
    return shuffled.select("label", *_IDS, pl.Series("split", split))


def _draw_unknown(
    pair: NDArray[np.int64],
    num_tags: int,
    known: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """One tag index per entry of `pair`, none of them among its own (`known`, sorted codes)."""
    counts = np.bincount(known // num_tags)
    if counts.max(initial=0) >= num_tags:
        raise ValueError("a user gave one artist every tag in use; no negative can be drawn")
    drawn = generator.integers(num_tags, size=len(pair))
    while True:
        codes = pair * num_tags + drawn
        place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        clash = np.flatnonzero(known[place] == codes)
        if not len(clash):
            return drawn
        drawn[clash] = generator.integers(num_tags, size=len(clash))


def _read_dat(path: Path) -> pl.DataFrame:
    """A HetRec file: tab-separated with header, in UTF-8 or Latin-1 (the two kinds are mixed)."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()
    return pl.read_csv(data, separator="\t", quote_char=None, infer_schema=False)


LASTFM_TAG = Source(
    name="lastfm-tag",
    title="Last.fm tags (HetRec 2011)",
    rows="559,437 rows",
    task="tag that a user gives an artist; random split 7:2:1",
    terms="non-commercial use; cite the workshop and credit Last.fm",
    citation=(
        "Cantador, Brusilovsky and Kuflik, 2nd Workshop on Information Heterogeneity and Fusion "
        "in Recommender Systems (HetRec 2011), RecSys 2011"
    ),
    page="https://grouplens.org/datasets/hetrec-2011/",
    forms=(
        Form(
            name="Parquet tables",
            files={
                "ctr.parquet": "682ffa66ec370f027a10c7a1ed80fd61b3bf7d0bef89d9ee956ec8521fabf961"
            },
            convert=_from_parquet,
            schemas=_schemas,
            optional={
                "tag_assignments.parquet": (
                    "367e28d07b51ede3b41cfd25379a4b0bbf909a411fa07d22eb5f6c7ec8a5e5e8"
                ),
                "tags.parquet": "56cdff8cbb93288b29353497bd50f3cdaf1121882c29b93c3b417908c9a67d45",
                "artists.parquet": (
                    "50fee13711d22076504225fb2e590df1569f02ca2d92d121bf5a961d6b0a646d"
                ),
            },
        ),
        Form(
            name="HetRec files",
            files={"user_taggedartists.dat": None},
            convert=_from_hetrec,
            schemas=_schemas,
            optional={"tags.dat": None, "artists.dat": None},
        ),
    ),
    how_to_get=(
        "read its terms at https://grouplens.org/datasets/hetrec-2011/, then give "
        "--from https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip, or the "
        "archive or its folder"
    ),
)
"""The data set."""
