"""Bad input through the doors that users come in by: one sentence, status 1, nothing left behind.

Every case goes through `rankloom.prepare` and through `rankloom prepare`. The readers' own tests
look at each rule closely; here the question is what a person sees, and what lies on the disk after.
"""

import errno
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import rankloom
from rankloom.cli.main import app
from rankloom.data import prepare as prepare_module
from rankloom.data import shards
from rankloom.data.encode import Encoder
from rankloom.data.spill import Spill
from rankloom.data.vocabulary import Vocabulary

HEADER = "user,item,price,click,time\n"
ROWS = [f"u{i % 7},i{i % 5},{i}.5,{i % 2},{1000 + i}" for i in range(40)]
SCHEMA = """
name = "log"
[input]
files = "log.csv"
[features]
user = { kind = "categorical" }
item = { kind = "categorical" }
price = { kind = "numeric" }
[labels.click]
"""
BY_TIME = '[split]\nkind = "time"\ncolumn = "time"\n'
BY_HOUR = '[split]\nkind = "time"\ncolumn = "hour"\n'
LAST_ROW = '[split]\nkind = "leave_one_out"\nuser = "user"\ntime = "time"\n'
HISTORY = '[[history]]\nname = "past"\nuser = "user"\ntime = "time"\nmembers = ["item"]\n'
ENTITY = """
[entities.info]
key = "id"
feature = "item"
input = { files = "items.csv" }
features = { brand = { kind = "categorical" } }
"""
WEIGHT = '[roles]\nweight = "price"\n'
EVENTS = """
[sequence_groups.events.members]
item = { column = "seen", vocabulary = "item" }
time = { column = "seen_at", kind = "time" }
"""


def log(changes: dict[int, str] | None = None, header: str = HEADER) -> str:
    """The log; `changes` replaces rows, counted from 1 below the header."""
    rows = list(ROWS)
    for row, text in (changes or {}).items():
        rows[row - 1] = text
    return header + "\n".join(rows) + "\n"


def wider(name: str, cells: list[str]) -> str:
    """The log with one column more."""
    rows = [f"{row},{cell}" for row, cell in zip(ROWS, cells, strict=True)]
    return HEADER.strip() + f",{name}\n" + "\n".join(rows) + "\n"


def split_by(column: str, **names: list[str]) -> str:
    listed = "".join(f"{split} = {values}\n" for split, values in names.items())
    return f'[split]\nkind = "column"\ncolumn = "{column}"\n{listed}'


@dataclass(frozen=True)
class Case:
    """A declaration, files beside it, and the sentence that must come."""

    message: str
    schema: str = SCHEMA
    files: dict[str, str | bytes] = field(default_factory=lambda: {"log.csv": log()})


CASES = {
    "missing file": Case(r"no such file: .*log\.csv$", files={}),
    "one missing file of several": Case(
        r"no such file: .*two\.csv$", SCHEMA.replace('"log.csv"', '["log.csv", "two.csv"]')
    ),
    "a glob without match": Case(
        r"no file matches .*part-\*\.csv$", SCHEMA.replace("log.csv", "part-*.csv")
    ),
    "a file of no rows": Case(r"log\.csv has a header but no rows", files={"log.csv": HEADER}),
    "an empty file": Case(r"log\.csv is empty", files={"log.csv": ""}),
    "missing feature column": Case(
        r"log\.csv has no column age; its columns are user, item, price, click, time$",
        SCHEMA.replace("price =", "age ="),
    ),
    "missing label column": Case(
        r"log\.csv has no column buy; its columns are", SCHEMA.replace("click", "buy")
    ),
    "missing role column": Case(
        r"log\.csv has no column gender; its columns are", SCHEMA + '[roles]\ngroup = "gender"\n'
    ),
    "missing time column": Case(r"log\.csv has no column hour; its columns are", SCHEMA + BY_HOUR),
    "text in a numeric column": Case(
        r"log\.csv: row 17: column price holds 'cheap', expected a number; correct it, or set",
        files={"log.csv": log({17: "u1,i1,cheap,0,1"})},
    ),
    "text in a label": Case(
        r"log\.csv: row 40: column click holds 'yes', expected a number",
        files={"log.csv": log({40: "u1,i1,1,yes,1"})},
    ),
    "text in a column declared as integer": Case(
        r"log\.csv: row 3: column item holds '3\.5', expected an integer",
        SCHEMA.replace('files = "log.csv"', 'files = "log.csv"\ntypes = { item = "integer" }'),
        {"log.csv": HEADER + "u,1,1,0,1\nu,2,1,1,2\nu,3.5,1,0,3\n"},
    ),
    "text in a time column": Case(
        r"log\.csv: row 17: column time .*'noon'",
        SCHEMA + BY_TIME,
        {"log.csv": log({17: "u1,i1,1,1,noon"})},
    ),
    "wrong type in JSON": Case(
        r"log\.jsonl: row 2: column price holds 'x', expected a number",
        SCHEMA.replace("log.csv", "log.jsonl"),
        {
            "log.jsonl": '{"user": "a", "item": "b", "price": 1, "click": 1}\n'
            '{"user": "a", "item": "b", "price": "x", "click": 0}\n'
        },
    ),
    "a line that is no JSON": Case(
        r"log\.jsonl: row 2 is not JSON",
        SCHEMA.replace("log.csv", "log.jsonl"),
        {"log.jsonl": '{"user": "a", "item": "b", "price": 1, "click": 1}\n{"user":\n'},
    ),
    "a row too short": Case(
        r"log\.csv: row 17 has 4 cells, expected 5", files={"log.csv": log({17: "u1,i1,1,1"})}
    ),
    "a row too long": Case(
        r"log\.csv: row 17 has 6 cells, expected 5", files={"log.csv": log({17: "u1,i1,1,1,2,3"})}
    ),
    "a short libfm row": Case(
        r"log\.libfm: row 2 has 5 cells, expected 7",
        SCHEMA.replace('"log.csv"', '"log.libfm"\nfields = ["user", "item", "price"]').replace(
            "click", "label"
        ),
        {"log.libfm": "1 1:1 2:1 3:0.5\n0 1:1 2:1\n"},
    ),
    "a label of 2": Case(
        r"log\.csv.*column click, row 17: must be 0 or 1 \(or give a threshold\); got 2",
        files={"log.csv": log({17: "u1,i1,1,2,3"})},
    ),
    "a label of 2 in the second file": Case(
        r"two\.csv.*column click, row 17: must be 0 or 1",
        SCHEMA.replace('"log.csv"', '["log.csv", "two.csv"]'),
        {"log.csv": log(), "two.csv": log({17: "u1,i1,1,2,3"})},
    ),
    "a label of 2 behind rows that the core filter drops": Case(
        r"log\.csv.*column click, row 17: must be 0 or 1",
        SCHEMA + "[core]\ncolumns = { user = 2 }\n",
        {"log.csv": log({1: "once,i1,1,1,3", 17: "u1,i1,1,2,3"})},
    ),
    "a number that is infinite, behind drawn negatives": Case(
        r"log\.csv.*column price, row 17: numbers must be finite; got inf",
        SCHEMA.replace("labels.click", "labels.seen")
        + '[negatives]\nuser = "user"\nitem = "item"\nlabel = "seen"\n',
        {"log.csv": log({17: "u2,i1,inf,1,3", 5: "u4,other,1,1,3"})},
    ),
    "a missing label": Case(
        r"log\.csv.*column click, row 17: is missing; set allow_missing = true",
        files={"log.csv": log({17: "u1,i1,1,,3"})},
    ),
    "a label that is missing everywhere": Case(
        r"label click has no value in the training split",
        SCHEMA + "allow_missing = true\n",
        {"log.csv": log({row: f"u{row % 7},i1,1,,{row}" for row in range(1, 41)})},
    ),
    "a number that is missing everywhere": Case(
        r"numeric feature price has no value in the training split; leave it out",
        files={"log.csv": log({row: f"u{row % 7},i1,,{row % 2},3" for row in range(1, 41)})},
    ),
    "an empty validation split": Case(
        r"the valid split \(kind random\) is empty: 40 rows gave .* 0 valid",
        SCHEMA + '[split]\nkind = "random"\nvalid = 1e-6\n',
    ),
    "an empty training split by time": Case(
        r"the train split \(kind time\) is empty: .* 0 train",
        SCHEMA + BY_TIME,
        {"log.csv": log({row: f"u{row},i1,1,1,5" for row in range(1, 41)})},
    ),
    "an empty training split by column": Case(
        r"the train split \(kind column\) is empty",
        SCHEMA + split_by("item", train=["x"], valid=["i0", "i1", "i2"], test=["i3", "i4"]),
    ),
    "an empty test split that was named": Case(
        r"the test split \(kind column\) is empty: .*; column item never holds x$",
        SCHEMA + split_by("item", train=["i0", "i1", "i2"], valid=["i3", "i4"], test=["x"]),
    ),
    "a value that belongs to no split": Case(
        r"log\.csv: row 5: split column item holds 'i4'; known values are i0, i1, i2, i3",
        SCHEMA + split_by("item", train=["i0", "i1"], valid=["i2"], test=["i3"]),
    ),
    "shares without training": Case(
        r"the train split .* is empty|leave nothing for training",
        SCHEMA + '[split]\nkind = "random"\nvalid = 0.6\ntest = 0.6\n',
    ),
    "an unknown key": Case(
        r"schema\.toml: unknown key features\.price\.fil; did you mean fill\?; known keys: col",
        SCHEMA.replace('"numeric"', '"numeric", fil = 0.0'),
    ),
    "an unknown table": Case(
        r"schema\.toml: unknown key lables; did you mean labels\?; known keys: .*labels",
        SCHEMA + "[lables.buy]\n",
    ),
    "an unknown kind": Case(
        r"schema\.toml: unknown kind 'number' of features\.price; did you mean numeric\?",
        SCHEMA.replace('"numeric"', '"number"'),
    ),
    "a vocabulary that nothing else has": Case(
        r"schema\.toml: past shares vocabulary 'itme', which nothing else has; did you mean item\?",
        SCHEMA + '[features.past]\nkind = "sequence"\nvocabulary = "itme"\n',
    ),
    "a schema that is no TOML": Case(r"schema\.toml: not valid TOML: ", "name ="),
    "a column that is there twice": Case(
        r"log\.csv: column item is there more than once",
        files={"log.csv": log(header="user,item,price,click,item\n")},
    ),
    "no time in a row with a history": Case(
        r"log\.csv: row 9.*column time has no value",
        SCHEMA + HISTORY,
        {"log.csv": log({9: "u1,i1,1,1,"})},
    ),
    "no time in a row of a split by time": Case(
        r"log\.csv: row 9.*column time has no value",
        SCHEMA + BY_TIME,
        {"log.csv": log({9: "u1,i1,1,1,"})},
    ),
    "no user in a row of a split by user": Case(
        r"log\.csv: row 9.*column user has no value",
        SCHEMA + LAST_ROW,
        {"log.csv": log({9: ",i1,1,1,3"})},
    ),
    "events that are not in the order of their time": Case(
        r"log\.csv.*sequence events, row 3: column seen_at must not decrease; got 7 after 8",
        SCHEMA + EVENTS,
        {
            "log.csv": "user,item,price,click,seen,seen_at\n"
            "a,x,1,0,,\na,y,1,1,x|y,7|7\nb,x,1,0,x|y|x,5|8|7\nb,x,1,1,x,5\n"
        },
    ),
    "a negative weight": Case(
        r"log\.csv.*column price, row 9: must be a finite number, not negative; got -1",
        SCHEMA + WEIGHT,
        {"log.csv": log({9: "u1,i1,-1,1,3"})},
    ),
    "a weight that is no number": Case(
        r"log\.csv.*column price, row 9: must be a finite number, not negative; got (None|nan)",
        SCHEMA + WEIGHT,
        {"log.csv": log({9: "u1,i1,nan,1,3"})},
    ),
    "an infinite number": Case(
        r"log\.csv.*column price, row 9: numbers must be finite; got inf",
        files={"log.csv": log({9: "u1,i1,inf,1,3"})},
    ),
    "a vector of another width": Case(
        r"log\.csv.*column v, row 9: a vector must have 2 numbers; got 3",
        SCHEMA + '[features.v]\nkind = "vector"\nwidth = 2\n',
        {"log.csv": wider("v", ["1 2"] * 8 + ["1 2 3"] + ["1 2"] * 31)},
    ),
    "a key that occurs twice": Case(
        r"items\.csv.*row 3: the key 'i1' occurs twice; keys must be unique",
        SCHEMA + ENTITY,
        {"log.csv": log(), "items.csv": "id,brand\ni1,a\ni2,b\ni1,c\n"},
    ),
    "a missing key": Case(
        r"items\.csv.*row 2: the key id is missing",
        SCHEMA + ENTITY,
        {"log.csv": log(), "items.csv": "id,brand\ni1,a\n,b\n"},
    ),
    "a missing column of an entity": Case(
        r"items\.csv has no column brand; its columns are id, brnd",
        SCHEMA + ENTITY,
        {"log.csv": log(), "items.csv": "id,brnd\ni1,a\n"},
    ),
    "an entity of no feature": Case(
        r"entity info: its feature must be a categorical feature .*; got itme, known: user, item",
        SCHEMA + ENTITY.replace('"item"', '"itme"'),
        {"log.csv": log(), "items.csv": "id,brand\ni1,a\n"},
    ),
    "text that is not UTF-8": Case(
        r"log\.csv: row 41.*not UTF-8",
        files={"log.csv": log().encode() + b"\xff\xfe,i,1,1,1\n"},
    ),
    "a cut compressed file": Case(
        r"log\.csv\.gz: the compressed data is damaged",
        SCHEMA.replace("log.csv", "log.csv.gz"),
        {"log.csv.gz": gzip.compress(log().encode())[:-20]},
    ),
    "a file of another format": Case(
        r"log\.parquet is not a parquet file",
        SCHEMA.replace("log.csv", "log.parquet"),
        {"log.parquet": log()},
    ),
    "an unknown ending": Case(
        r"log\.xlsx: unknown format, .* set format in \[input\] to one of csv",
        SCHEMA.replace("log.csv", "log.xlsx"),
        {"log.xlsx": b"PK"},
    ),
}


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too, with the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence(result: Result) -> str:
    """The one line that a failed command prints."""
    assert result.exit_code == 1, (result.exit_code, result.exception, result.output)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def write(folder: Path, case: Case) -> Path:
    (folder / "schema.toml").write_text(case.schema, encoding="utf-8")
    for name, content in case.files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder / "schema.toml"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A schema whose log has no fault."""
    return write(tmp_path, Case(""))


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_left(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    schema = write(tmp_path, case)
    before = listing(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        rankloom.prepare(schema, tmp_path / "deep" / "out")
    assert re.search(case.message, str(caught.value)), str(caught.value)
    assert listing(tmp_path) == before
    shown = sentence(invoke("prepare", schema, "--out", tmp_path / "deep" / "out"))
    assert shown == str(caught.value)
    assert listing(tmp_path) == before


def test_the_log_itself_is_good(good: Path, tmp_path: Path) -> None:
    assert rankloom.prepare(good, tmp_path / "out").splits == ("train", "valid", "test")


def test_categories_may_be_missing_everywhere(tmp_path: Path) -> None:
    # The rule that `prepare` documents: id 0, as any missing category, and a table of no values.
    content = log({row: f"u{row % 7},,1,{row % 2},3" for row in range(1, 41)})
    data = rankloom.prepare(write(tmp_path, Case("", files={"log.csv": content})), tmp_path / "out")
    train = data.split("train")
    assert data.schema.tables["item"] == 2
    assert set(train.slice(0, train.rows).categorical[:, 1].tolist()) == {0}


def test_rows_in_any_order_have_the_histories_of_the_ordered_log(tmp_path: Path) -> None:
    # Order matters for histories and for the split; the order of the file does not.
    found = []
    for name, rows in (("ordered", ROWS), ("mixed", ROWS[::-1][7:] + ROWS[::-1][:7])):
        (tmp_path / name).mkdir()
        content = HEADER + "\n".join(rows) + "\n"
        schema = SCHEMA + '[roles]\ntime = "time"\n' + BY_TIME + HISTORY
        path = write(tmp_path / name, Case("", schema, {"log.csv": content}))
        data = rankloom.prepare(path, tmp_path / name / "out")
        seen = {}
        for split in data.splits:
            stored = data.split(split)
            batch = stored.slice(0, stored.rows)
            past = batch.sequences["past"]
            items = past.ids[:, 0].split(past.lengths().tolist())
            for at, history in zip(batch.time.tolist(), items, strict=True):
                seen[at] = (split, history.tolist())
        found.append(seen)
    assert found[0] == found[1]
    assert len(found[0]) == 40


def fail_with(code: int) -> Callable[..., None]:
    def fail(*arguments: object, **others: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


WRITES = {
    "spill": (Spill, "append"),
    "shards": (shards._HashingStream, "write"),
    "vocabulary": (Vocabulary, "save"),
    "manifest": (prepare_module, "write_manifest"),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("place", WRITES)
def test_a_full_disk(
    place: str, existing: bool, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        rankloom.prepare(good, tmp_path / "out")
    before = listing(tmp_path)
    monkeypatch.setattr(*WRITES[place], fail_with(errno.ENOSPC))
    shown = sentence(invoke("prepare", good, "--out", tmp_path / "out", "--overwrite"))
    assert re.search("the disk is full: data set out was not written; free space in .*", shown)
    assert "Errno" not in shown
    assert listing(tmp_path) == before


STAGES = ["read", "fit", "write"]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("stage", [*STAGES, "manifest"])
def test_an_interrupted_prepare_leaves_what_was_there(
    stage: str, existing: bool, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        rankloom.prepare(good, tmp_path / "out")
    before = listing(tmp_path)

    def interrupt(*arguments: object) -> None:
        if stage == "manifest" or arguments[0] == stage:
            raise KeyboardInterrupt

    if stage == "manifest":
        monkeypatch.setattr(prepare_module, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rankloom.prepare(good, tmp_path / "out", overwrite=True, progress=interrupt)
    assert listing(tmp_path) == before
    monkeypatch.undo()
    assert rankloom.prepare(good, tmp_path / "out", overwrite=True).split("train").rows > 0


def test_an_interrupted_command_says_so(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = listing(tmp_path)
    monkeypatch.setattr(prepare_module, "write_manifest", interrupt)
    result = invoke("prepare", good, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")
    assert listing(tmp_path) == before


KILLED = """
import os, signal, sys
import rankloom

def kill(stage, rows):
    if stage == "write":
        os.kill(os.getpid(), signal.SIGKILL)

rankloom.prepare(sys.argv[1], sys.argv[2], overwrite=True, progress=kill)
"""


def test_a_killed_prepare_never_looks_complete(good: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(good), str(tmp_path / "out")]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no such folder"):
        rankloom.Dataset.open(tmp_path / "out")
    for path in tmp_path.iterdir():
        if path.is_dir():
            with pytest.raises(
                FileNotFoundError, match=r"is not a dataset folder .* dataset\.json"
            ):
                rankloom.Dataset.open(path)
    assert rankloom.prepare(good, tmp_path / "out").split("train").rows > 0


def test_an_existing_folder_is_not_overwritten_by_chance(good: Path, tmp_path: Path) -> None:
    rankloom.prepare(good, tmp_path / "out")
    before = listing(tmp_path)
    shown = sentence(invoke("prepare", good, "--out", tmp_path / "out"))
    assert shown.endswith("exists and is not empty; choose another folder or set overwrite")
    assert listing(tmp_path) == before


RECIPE = """
name = "bad"
dataset = "{dataset}"
[model]
name = "lr"
[training]
epochs = 1
batch_size = 8
"""


def shard(folder: Path) -> Path:
    return folder / "train" / "00000.arrow"


def other_version(version: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = folder / "dataset.json"
        values = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps(values | {"format_version": version}), encoding="utf-8")

    return change


def truncate(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-100])


def cut_manifest(folder: Path) -> None:
    manifest = folder / "dataset.json"
    manifest.write_bytes(manifest.read_bytes()[:200])


def overwrite_tail(folder: Path) -> None:
    data = shard(folder).read_bytes()
    shard(folder).write_bytes(data[:-200] + bytes(200))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a later version": (
        other_version(99),
        r"has a newer dataset format \(version 99; this rankloom reads .*\); update rankloom",
    ),
    "an earlier version": (
        other_version(0),
        r"has an older dataset format \(version 0; .*\); prepare the data set again",
    ),
    "a truncated shard": (truncate, r"00000\.arrow is truncated: \d+ bytes, expected \d+; prepare"),
    "a missing shard": (
        lambda folder: shard(folder).unlink(),
        r"missing file of the dataset: .*00000\.arrow; prepare again",
    ),
    "an overwritten shard": (overwrite_tail, r"00000\.arrow is (altered|damaged)"),
    "no manifest": (
        lambda folder: (folder / "dataset.json").unlink(),
        r"is not a dataset folder .*dataset\.json; make it with `rankloom prepare`",
    ),
    "a cut manifest": (cut_manifest, r"dataset\.json is damaged: .*; prepare the data set again"),
    "no folder": (shutil.rmtree, "no such folder: .*out"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dataset_folder(name: str, good: Path, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    rankloom.prepare(good, tmp_path / "out")
    damage(tmp_path / "out")
    recipe = tmp_path / "bad.toml"
    recipe.write_text(RECIPE.format(dataset=tmp_path / "out"), encoding="utf-8")
    before = listing(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        rankloom.Dataset.open(tmp_path / "out").split("train")
    assert re.search(message, sentence(invoke("train", recipe, "--out", tmp_path / "runs")))
    assert listing(tmp_path) == before


def test_one_altered_byte_is_found_by_its_hash(good: Path, tmp_path: Path) -> None:
    rankloom.prepare(good, tmp_path / "out")
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.name == "dataset.json" or not path.is_file():
            continue
        data = path.read_bytes()
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
        with pytest.raises(ValueError, match=f"{path.name} is altered: its hash is not") as caught:
            rankloom.Dataset.open(tmp_path / "out", verify="hash")
        assert "\n" not in str(caught.value)
        path.write_bytes(data)
    rankloom.Dataset.open(tmp_path / "out", verify="hash")


@pytest.mark.parametrize("file", ["transforms.json", "vocabulary/item.parquet", "schema.toml"])
def test_a_damaged_encoder_is_one_sentence(file: str, good: Path, tmp_path: Path) -> None:
    rankloom.prepare(good, tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
        Encoder.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


EVIL = ["../train.txt", "/train.txt", "a/../../train.txt"]


def zipped(path: Path, member: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test.txt", "")
        archive.writestr(member, "evil")


def tarred(path: Path, member: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))


@pytest.mark.parametrize("member", EVIL)
@pytest.mark.parametrize(("ending", "make"), [("zip", zipped), ("tar.gz", tarred)])
def test_an_archive_that_leaves_its_folder(
    ending: str, make: Callable[[Path, str], None], member: str, tmp_path: Path
) -> None:
    archive = tmp_path / "in" / f"criteo.{ending}"
    archive.parent.mkdir()
    make(archive, member)
    before = listing(tmp_path)
    shown = sentence(invoke("data", "get", "criteo", "--from", archive, "--out", tmp_path / "out"))
    assert f"criteo.{ending}" in shown
    assert "would be written outside the folder" in shown
    assert listing(tmp_path) == before


def test_nothing_is_ever_unpickled(good: Path, tmp_path: Path) -> None:
    """A pickle in place of any file of a data set is refused, never run."""
    rankloom.prepare(good, tmp_path / "out")
    mark = tmp_path / "ran"
    pickle = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    for path in sorted((tmp_path / "out").rglob("*")):
        if not path.is_file() or path.name == "schema.toml":
            continue
        data = path.read_bytes()
        path.write_bytes(pickle)
        with pytest.raises((ValueError, FileNotFoundError)):
            rankloom.Dataset.open(tmp_path / "out", verify="hash")
        path.write_bytes(data)
    assert not mark.exists()


def test_a_frame_to_score_that_lacks_a_column(good: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(rankloom.prepare(good, tmp_path / "out").folder)
    with pytest.raises(ValueError, match="no column price; the table has: user, item$"):
        encoder.encode(pl.DataFrame({"user": ["u1"], "item": ["i1"]}))


def test_a_wrong_declaration_is_found_before_the_log_is_read(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        pytest.fail("the log was read")

    monkeypatch.setattr("rankloom.data.read.RawTable.chunks", read)
    schema = good.read_text(encoding="utf-8") + HISTORY.replace('"time"', '"tiem"')
    good.write_text(schema, encoding="utf-8")
    with pytest.raises(ValueError, match=r"log\.csv has no column tiem"):
        rankloom.prepare(good, tmp_path / "out")


def test_a_run_whose_weights_are_cut(small_log: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "good.toml"
    text = RECIPE.format(dataset=small_log / "log").replace("= 8", "= 2400")
    recipe.write_text(text, encoding="utf-8")
    run = rankloom.train(recipe, out=tmp_path / "runs")
    weights = run.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    shown = sentence(invoke("evaluate", run.folder))
    assert re.search(r"model\.safetensors is damaged: .*; train the recipe anew", shown)
