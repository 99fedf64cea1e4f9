"""The declared side of a data set: what the columns of the raw tables mean (a TOML file).

`prepare` reads a `TableSchema`, fits vocabularies and statistics on the training split, and writes
a data set folder whose `dataset.json` holds the fitted `rankloom.schema.Schema`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankloom.config import Config, load_config

TableFormat = Literal["auto", "csv", "tsv", "parquet", "libsvm", "libfm", "jsonl"]


class TableInput(Config):
    """Files of one raw table."""

    files: str | tuple[str, ...]
    """A path, a glob, or a list of them; relative to the schema file's folder (or `--root`)."""
    format: TableFormat = "auto"
    """File format; `auto` goes by the ending (.gz and .zst are looked through)."""
    header: bool = True
    """Whether the first line of CSV and TSV files names the columns."""
    columns: tuple[str, ...] = ()
    """Column names of a file without header."""
    separator: str | None = None
    """Field separator of CSV and TSV files, when it is not the format's own."""
    null_values: tuple[str, ...] = ("",)
    """Texts that mean "missing"."""
    fields: tuple[str, ...] = ()
    """libsvm and libfm: names of the fields, in the order of their entries in a line."""
    types: dict[str, Literal["integer", "number", "text"]] = Field(default_factory=dict)
    """Type of a column, where the first rows of a text file would mislead."""


class Derive(Config):
    """A new column computed from one raw column, before anything else sees the table."""

    name: str
    """Name of the new column."""
    source: str
    """Column it is computed from."""
    kind: Literal["hour", "weekday", "weekend", "day", "timestamp"]
    """hour 0-23, weekday 0-6 (Monday is 0), weekend 0/1, day (days since 1970), timestamp (s)."""
    format: Literal["unix", "unix_ms", "yymmddhh", "iso"] = "unix"
    """How the source column writes its time."""


class History(Config):
    """A user's earlier items, taken from the log itself.

    Only events strictly before the row's time enter; events at the same time do not see each other.
    Becomes the sequence group of this name, oldest event first.
    """

    name: str
    """Name of the sequence group."""
    user: str
    """Column whose rows form one history."""
    time: str
    """Column that orders it."""
    members: tuple[str, ...]
    """Columns of the log that the events carry; the first is the item. Features share tables."""
    max_length: int = Field(50, gt=0)
    """Newest events kept."""
    min_length: int = Field(0, ge=0)
    """Rows with fewer events are left out; they are events of later rows all the same."""
    only_label: str | None = None
    """Label that an event must be positive in to enter; None: every event enters."""
    with_time: bool = False
    """Whether the group carries the events' times."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(
                f"history {self.name}: min_length must not be above max_length; got "
                f"min_length={self.min_length}, max_length={self.max_length}"
            )
        return self


class Negatives(Config):
    """Seeded negative sampling, for logs that hold only positives."""

    per_positive: int = Field(1, gt=0)
    """Negatives drawn for each positive row."""
    per_held_out: int | None = Field(None, gt=0)
    """The same for rows of the validation and test splits; None: as many as in training."""
    user: str
    """Column of the user; an item of the user's own log is never drawn."""
    item: str
    """Column that the negative replaces."""
    label: str
    """Label column to create: 1 for logged rows, 0 for drawn ones."""
    within: str | None = None
    """Column (a domain, say): a row's items are drawn among those of its value. None: among all.

    The user's own items are then those of the user's rows with that value.
    """
    seed: int = 0
    """Seed of the draw."""


class Filter(Config):
    """Rows of some values alone; nothing sees the others."""

    columns: dict[str, tuple[str | int, ...]] = Field(min_length=1)
    """Column -> its values that stay. A row must have one of them in every column."""


class Sample(Config):
    """Some values of a column (users, say), with all of their rows.

    Whether a value is kept depends on the value and the seed alone: a larger share keeps what a
    smaller one does, and another version of the log keeps the same values.
    """

    column: str
    """The column; rows without a value are left out."""
    share: float = Field(gt=0, lt=1)
    """Share of the values that are kept, about."""
    seed: int = 0
    """Another seed keeps other values."""


class Core(Config):
    """k-core filtering: repeat until every value of every column has that many rows."""

    columns: dict[str, int]
    """Column -> least number of rows of each of its values."""


class FeatureBase(Config):
    """What every feature kind shares."""

    column: str | None = None
    """Raw column; None: the feature's own name."""


class Categorical(FeatureBase):
    """One value out of many."""

    kind: Literal["categorical"] = "categorical"
    min_count: int = Field(1, ge=1)
    """Values seen less often in the training split become out-of-vocabulary."""
    max_values: int | None = Field(None, gt=0)
    """Most frequent values kept; None: all."""
    hash_buckets: int | None = Field(None, gt=0)
    """Hash into this many buckets instead of keeping a vocabulary."""
    vocabulary: str | None = None
    """Name of the vocabulary and table, for features that share one; None: its own name."""
    transform: Literal["none", "criteo_ln2", "criteo_log2", "quantile"] = "none"
    """Make a category of a number: floor(ln(x)^2), the log2 form, or quantile bins."""
    bins: int = Field(32, gt=1)
    """Bins of the quantile transform."""


class Numeric(FeatureBase):
    """One number."""

    kind: Literal["numeric"] = "numeric"
    transform: Literal["none", "standardise", "log", "min_max"] = "none"
    """none; (x-mean)/deviation; sign(x)*ln(1+|x|); (x-min)/(max-min) clipped to [0, 1]."""
    fill: float | Literal["mean", "median"] = 0.0
    """Replaces missing values before the transform."""


class Sequence(FeatureBase):
    """Several ids in one cell: a list column, or text to be split."""

    kind: Literal["sequence"] = "sequence"
    separator: str = "|"
    """Separator in a text cell; list columns need none."""
    max_length: int = Field(50, gt=0)
    """Longest sequence kept."""
    keep: Literal["last", "first"] = "last"
    """Which end of a longer sequence is kept."""
    ordered: bool = False
    """True for a history, False for a set such as genres."""
    vocabulary: str | None = None
    """Vocabulary and table to use, a feature's or another sequence's; None: its own."""
    min_count: int = Field(1, ge=1)
    """As for categorical features, when the vocabulary is its own."""
    max_values: int | None = Field(None, gt=0)
    """As for categorical features."""
    hash_buckets: int | None = Field(None, gt=0)
    """As for categorical features."""


class Vector(FeatureBase):
    """A list of numbers of fixed width."""

    kind: Literal["vector"] = "vector"
    width: int = Field(gt=0)
    """Length of every vector; missing vectors become zeros."""


class Text(FeatureBase):
    """Text kept in the store for later use; it enters no batch."""

    kind: Literal["text"] = "text"


class SemanticId(FeatureBase):
    """The semantic id of an item: an embedding for every prefix of its codes, summed.

    Its column holds item ids. Histories that have this column as a member, and members of declared
    sequence groups of the same kind, carry the prefixes of every event and share the table. Items
    that the training split has not, and the catalogue has, keep the prefixes that they share with
    others.
    """

    kind: Literal["semantic_id"] = "semantic_id"
    ids: str
    """Folder of semantic ids, as `rankloom tokenize` names it; relative as the input's files."""
    items: str
    """Folder of the sequence data set whose items have these ids; relative as the input's files."""
    max_levels: int | None = Field(None, gt=0)
    """Longest prefix, in codes; None: the whole id."""
    min_count: int = Field(1, ge=1)
    """Prefixes seen less often in the training split become out-of-vocabulary."""
    max_values: int | None = Field(None, gt=0)
    """Most frequent prefixes kept; None: all."""
    hash_buckets: int | None = Field(None, gt=0)
    """Hash prefixes into this many buckets; None: every prefix has an embedding of its own."""


Feature = Annotated[
    Categorical | Numeric | Sequence | Vector | Text | SemanticId, Field(discriminator="kind")
]


class GroupMember(Config):
    """One column of a declared sequence group; its cells hold lists that run in step."""

    column: str
    """Raw column."""
    kind: Literal["id", "numeric", "time", "semantic_id"] = "id"
    """What its values are. The times of a cell must not decrease: the oldest event comes first."""
    vocabulary: str | None = None
    """id: vocabulary and table to use, a feature's for shared ones; None: its own. semantic_id: the
    feature of that kind whose ids and table it shares; required."""


class SequenceGroupSpec(Config):
    """Several list columns of the raw table that run in step."""

    members: dict[str, GroupMember]
    """Member name -> column; the first id member is the event's own id."""
    separator: str = "|"
    """Separator in text cells; list columns need none."""
    max_length: int = Field(50, gt=0)
    """Longest sequence kept (the newest events)."""


class Entity(Config):
    """Side fields of an entity, declared once and gathered per batch.

    Its key is a categorical feature of the main table. The fields join the row's own fields under
    the name `<entity>.<field>`, and those of every history whose events are of this entity.
    """

    input: TableInput
    """The entity's own table."""
    key: str
    """Key column in the entity's table."""
    feature: str
    """Categorical feature of the main table that the key is matched with."""
    features: dict[str, Feature]
    """Side fields."""


class LabelSpec(Config):
    """One task."""

    column: str | None = None
    """Raw column; None: the label's own name."""
    threshold: float | None = None
    """1 where the value is at least this, else 0. None: the column holds 0 and 1 already."""
    allow_missing: bool = False
    """Whether a missing value is a masked label (True) or an error (False)."""
    after: str | None = None
    """Earlier label that must be 1 for this one to be known, as a purchase is after a click alone.

    The other rows are masked, whatever the column holds there.
    """


class Roles(Config):
    """Columns with a meaning of their own. A column may be a feature as well."""

    scenario: str | None = None
    """Scenario of the row."""
    group: str | None = None
    """Group of the row, for GAUC."""
    time: str | None = None
    """Time of the row: integer seconds (or any integer that orders rows)."""
    weight: str | None = None
    """Weight of the row in the loss and in weighted metrics; must not be negative."""


class FileSplit(Config):
    """One input per split; `input` of the schema gives format and columns."""

    kind: Literal["files"] = "files"
    train: str | tuple[str, ...]
    """Files of the training split."""
    valid: str | tuple[str, ...] | None = None
    """Files of the validation split."""
    test: str | tuple[str, ...] | None = None
    """Files of the test split."""
    valid_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training files' rows that are drawn for validation, where it has no file."""
    valid_by: str | None = None
    """Draw values of this column (users, say) with all their rows; rows without one are not drawn.

    None: rows are drawn one by one.
    """
    seed: int = 0
    """Seed of that draw."""

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.valid is not None and self.valid_share:
            raise ValueError("give the validation split's files or its share, not both")
        if self.valid_by is not None and not self.valid_share:
            raise ValueError(
                "valid_by says how valid_share is drawn; got "
                f"valid_by={self.valid_by!r} and no valid_share: give it, or leave valid_by out"
            )
        return self


class ColumnSplit(Config):
    """A raw column names the split of each row."""

    kind: Literal["column"] = "column"
    column: str
    """The column."""
    train: tuple[str | int, ...] = ("train",)
    """Its values for the training split."""
    valid: tuple[str | int, ...] = ("valid",)
    """Its values for the validation split."""
    test: tuple[str | int, ...] = ("test",)
    """Its values for the test split."""


class RandomSplit(Config):
    """Random rows, with a stated seed."""

    kind: Literal["random"] = "random"
    valid: float = Field(0.1, ge=0, lt=1)
    """Share of the validation split."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the test split."""
    seed: int = 0
    """Seed of the draw."""
    stratify: str | None = None
    """Column (a label, say) whose values keep their shares in every split."""


class TimeSplit(Config):
    """Time order: the newest rows are the test split. No training row is later than a test row.

    With `within` (a user column) the last shares of every user's own rows are held out.
    """

    kind: Literal["time"] = "time"
    column: str
    """Time column."""
    valid: float = Field(0.1, ge=0, lt=1)
    """Share of the validation split."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the test split."""
    within: str | None = None
    """Order inside each value of this column instead of over all rows."""


class LeaveOneOutSplit(Config):
    """Per user, the last row is test and the one before it validation.

    Users with fewer than three rows stay in training.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"
    user: str
    """User column."""
    time: str
    """Column that orders a user's rows."""


Split = Annotated[
    FileSplit | ColumnSplit | RandomSplit | TimeSplit | LeaveOneOutSplit,
    Field(discriminator="kind"),
]


class TableSchema(Config):
    """The whole declaration: input, features, labels, roles, split."""

    name: str
    """Name of the data set, for records and tables."""
    input: TableInput | None = None
    """The main table's files; with a `files` split only its format options count."""
    features: dict[str, Feature]
    """Features by name, in field order."""
    labels: dict[str, LabelSpec]
    """Labels by task name, in funnel order."""
    roles: Roles = Roles()
    """Scenario, group, time, weight."""
    sequence_groups: dict[str, SequenceGroupSpec] = Field(default_factory=dict)
    """List columns that run in step."""
    entities: dict[str, Entity] = Field(default_factory=dict)
    """Entity tables."""
    derive: tuple[Derive, ...] = ()
    """Columns computed from raw ones."""
    filter: Filter | None = None
    """Keep the rows of some values only, before everything else."""
    sample: Sample | None = None
    """Keep some users (or other values of a column) only, on what the filter left."""
    core: Core | None = None
    """k-core filter, on what the sample left."""
    negatives: Negatives | None = None
    """Negative sampling; runs after the split, inside each split."""
    history: tuple[History, ...] = ()
    """Histories taken from the log."""
    split: Split = RandomSplit()
    """How rows are divided."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.input is None and not isinstance(self.split, FileSplit):
            raise ValueError("give [input] files, or a split of kind files")
        if not self.features:
            raise ValueError("a schema needs at least one feature")
        if not self.labels:
            raise ValueError("a schema needs at least one label")
        self._check_funnel()
        self._check_vocabularies()
        return self

    def _check_funnel(self) -> None:
        earlier: list[str] = []
        for name, label in self.labels.items():
            if label.after is not None and label.after not in earlier:
                raise ValueError(
                    f"label {name} comes after {label.after!r}, which is no label before it; those "
                    f"before it are {', '.join(earlier) or 'none'}"
                )
            earlier.append(name)

    def _check_vocabularies(self) -> None:
        """A sequence that names a vocabulary nobody else has means another one: a typing error.

        A categorical feature may call its own vocabulary what it likes.
        """
        declared: dict[str, Config] = dict(self.features)
        for entity, spec in self.entities.items():
            declared |= {f"{entity}.{name}": item for name, item in spec.features.items()}
        for group, columns in self.sequence_groups.items():
            declared |= {f"{group}.{name}": item for name, item in columns.members.items()}
        named = {name: getattr(item, "vocabulary", None) for name, item in declared.items()}
        for name, vocabulary in named.items():
            if vocabulary is None or isinstance(declared[name], Categorical):
                continue
            elsewhere = {other for who, other in named.items() if who != name}
            if vocabulary not in elsewhere | declared.keys():
                close = difflib.get_close_matches(vocabulary, declared, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"{name} shares vocabulary {vocabulary!r}, which nothing else has{hint}"
                )


def load_table_schema(path: str | Path) -> TableSchema:
    """Read a schema file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: what is wrong, one line per problem.
    """
    return load_config(TableSchema, path)
