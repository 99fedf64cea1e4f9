from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as export_config

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.embedding import FieldEmbedding
from rankloom.layers.table import tables
from rankloom.ranking.loopctr import LoopCTRConfig
from rankloom.ranking.token_network import SequenceTokenNetwork, TokenNetwork
from rankloom.ranking.token_summary import summarise_tokens
from rankloom.ranking.transformer import Transformer, TransformerConfig
from rankloom.schema import IdMember, Schema, SequenceField

SCHEMA = example_schema(num_categorical=1, num_tasks=2, entity=True)
FIELDS = ("item", "item.category", "c0", "item.price", "n0", "n1", "embedding", "item.text")
FIELDS += ("genres", "item.tags")
TIMELESS = SequenceField(name="seen", ids=(IdMember(name="c0", table="c0"),), max_length=4)
TIMED = TIMELESS.model_copy(update={"name": "carts", "has_time": True})


def with_groups(*groups: SequenceField) -> Schema:
    return SCHEMA.model_copy(update={"sequences": (*SCHEMA.sequences, *groups)})


def network(**settings: Any) -> SequenceTokenNetwork:
    return parse_config(SequenceTokenNetwork, {"embedding_dim": 4, "dim": 6, **settings}, "test")


def transformer(schema: Schema, **settings: Any) -> Transformer:
    """A small one, with parameters of ordinary size."""
    values = {"embedding_dim": 4, "dim": 8, "num_heads": 2, "head": {"hidden": [4]}, **settings}
    model = Transformer(parse_config(TransformerConfig, values, "test"), schema)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for table in tables(model).values():
            table.weight[0] = 0
    return model


def test_events_are_no_pooled_fields_unless_asked() -> None:
    tokens = network().build_tokens(SCHEMA)
    assert tokens.embedding.field_names == FIELDS
    assert (tokens.num_events, tokens.num_fields) == (6, 10)
    both = network(events={"pooled": True}).build_tokens(SCHEMA)
    members = ("item", "item.category", "c0", "item.tags", "paid", "item.price", "item.text")
    assert both.embedding.field_names == (*FIELDS, *(f"history.{name}" for name in members))
    assert both.num_events == 6


def test_without_events_every_sequence_is_pooled() -> None:
    for settings, schema in (
        ({"events": {"groups": ()}}, SCHEMA),
        ({}, example_schema(sequences=False)),
    ):
        tokens = network(**settings).build_tokens(schema)
        found = tokens(random_batch(schema, 3))
        assert tokens.num_events == found.num_events == 0
        assert found.mask is None
        assert found.time is None
        assert found.x.shape[1] == len(FieldEmbedding(schema, 4).field_names)
    plain = parse_config(TokenNetwork, {"embedding_dim": 4, "dim": 6}, "test")
    assert plain.build_tokens(SCHEMA).num_fields == len(FIELDS) + 7


def test_tables_that_only_events_read_are_stacked() -> None:
    only = SCHEMA.model_copy(
        update={
            "tables": SCHEMA.tables | {"query": 9},
            "sequences": (
                SequenceField(name="asked", ids=(IdMember(name="q", table="query"),), max_length=2),
            ),
        }
    )
    with_events = network().build_tokens(only).embedding.table
    without = FieldEmbedding(only, 4, fields=FIELDS[:8]).table
    assert with_events is not None
    assert without is not None
    assert with_events.weight.shape[0] == without.weight.shape[0] + 8


def test_tokens_of_fields_and_events_side_by_side() -> None:
    tokens = network().build_tokens(SCHEMA)
    batch = random_batch(SCHEMA, 5)
    found = tokens(batch)
    fields = tokens.fields(tokens.embedding(batch))
    assert torch.equal(found.fields, fields)
    assert found.events.shape == (5, 6, 6)
    assert found.mask is not None
    lengths = batch.sequences["history"].lengths()
    assert torch.equal(found.mask.sum(1), lengths + 10)
    assert not found.events[~found.mask[:, :6]].any()
    assert found.time is not None
    assert batch.time is not None
    assert torch.equal(found.time[:, 6:], batch.time[:, None].expand(5, 10))


def test_time_of_a_row_without_one_is_its_latest_event() -> None:
    schema = SCHEMA.model_copy(update={"has_time": False})
    batch = replace(random_batch(SCHEMA, 8), time=None)
    found = network().build_tokens(schema)(batch)
    assert found.time is not None
    assert torch.equal(found.time[:, 6], found.time[:, :6].amax(1))


def test_a_table_is_owned_once() -> None:
    model = transformer(SCHEMA)
    assert len(tables(model)) == 1
    addresses = [t.data_ptr() for t in model.state_dict().values()]
    assert len(set(addresses)) == len(addresses)


def test_the_latest_events_of_each_group_are_read() -> None:
    schema = with_groups(TIMED)
    both = network(events={"max_length": {"history": 2}})
    assert [group.max_length for group in both.events.chosen(schema)] == [2, 4]
    assert both.build_tokens(schema).num_events == 6
    assert network(events={"max_length": 3}).build_tokens(schema).num_events == 6
    swapped = network(events={"groups": ["carts", "history"]})
    assert [group.name for group in swapped.events.chosen(schema)] == ["carts", "history"]


def test_groups_follow_each_other_by_time_where_all_have_one() -> None:
    assert network().events.order(with_groups(TIMED).sequences[2:]) == "by_time"
    timeless = with_groups(TIMELESS)
    assert network().events.order(timeless.sequences[2:]) == "one_after_another"
    tokens = network().build_tokens(timeless)
    assert tokens.num_events == 6 + 1 + 4
    assert tokens(random_batch(timeless, 4)).time is None


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"groups": ["genres"]}, "genres is no sequence of events; those of the data: history, se"),
        ({"max_length": {"nothing": 3}}, "nothing is no sequence of events"),
        ({"max_length": 0}, "max_length must be at least 1; got 0 for history"),
        ({"merge": "by_time"}, "needs the time of every event; without one: seen; set merge = "),
        ({"reference": "row"}, 'reference = "row" needs a time role'),
    ],
)
def test_wrong_events_are_answered(events: dict[str, Any], message: str) -> None:
    schema = with_groups(TIMELESS).model_copy(update={"has_time": False})
    with pytest.raises(ValueError, match=message):
        network(events=events).build_tokens(schema)


def test_rows_need_a_field_beside_the_events() -> None:
    history = SCHEMA.sequence("history")
    alone = Schema(tables=SCHEMA.tables, sequences=(history,), labels=SCHEMA.labels)
    with pytest.raises(ValueError, match=r"rows need a field token; set events.pooled = true"):
        network().build_tokens(alone)
    assert network(events={"pooled": True}).build_tokens(alone).num_fields == 7


GROUPS = {"shown": ["c0", "item"], "side": ["item.price", "item.category", "item.tags"]}


def groups(**settings: Any) -> SequenceTokenNetwork:
    return network(tokens={"kind": "groups", "groups": GROUPS} | settings)


def test_groups_by_name() -> None:
    with pytest.raises(ValueError, match=r"fields in no group: n0, n1, embedding, item.text, genr"):
        groups().build_tokens(SCHEMA)
    config = groups(rest="own_group")
    assert config.build_tokens(SCHEMA).num_fields == 3
    assert config.tokens.sources(FIELDS, 4)[1].fields == tuple(GROUPS["side"])
    assert config.tokens.sources(FIELDS, 4)[2].name == "rest"
    plain = parse_config(TokenNetwork, groups(rest="own_group").model_dump(exclude={"events"}), "t")
    named = plain.tokens.model_copy(update={"groups": GROUPS | {"past": ("history",)}})
    names = FieldEmbedding(SCHEMA, 4).field_names
    assert named.members(names)["past"] == tuple(n for n in names if n.startswith("history."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": ["nothing"]}, "group a: no such field: nothing; the fields are item, item.category"),
        ({"a": ["c0"]}, "fields named more than once in groups: c0"),
        ({"a": []}, "groups without fields: a"),
        ({"rest": ["n0"]}, "a group is called rest, and n1, embedding, item.text, genres need"),
    ],
)
def test_wrong_groups_are_answered(changes: dict[str, Any], message: str) -> None:
    config = groups(groups=GROUPS | changes, rest="own_group")
    with pytest.raises(ValueError, match=message):
        config.build_tokens(SCHEMA)


KINDS: dict[str, dict[str, Any]] = {
    "per_field": {"kind": "per_field"},
    "groups": {"kind": "groups", "groups": GROUPS, "rest": "own_group"},
    "auto_split": {"kind": "auto_split", "num_tokens": 3, "network": {"hidden": [5]}},
    "slices": {"kind": "slices", "num_tokens": 7},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("global_token", [False, True])
def test_sources_are_the_tokens(kind: str, global_token: bool) -> None:
    """What a token is said to read is what moves it."""
    config = network(tokens=KINDS[kind] | {"global_token": global_token})
    tokens = config.build_tokens(SCHEMA)
    sources = config.tokens.sources(FIELDS, 4)
    assert len(sources) == tokens.num_fields
    assert (sources[0].name == "global") == global_token
    x = torch.randn(1, len(FIELDS), 4, requires_grad=True)
    for number, source in enumerate(sources):
        (gradient,) = torch.autograd.grad(tokens.fields(x)[0, number].sum(), x)
        moving = gradient[0] != 0
        read = {name for name, moved in zip(FIELDS, moving.any(1), strict=True) if moved}
        assert read == set(source.fields)
        assert int(moving.sum()) == source.width


@pytest.mark.parametrize(
    ("pooling", "width"),
    [
        ({"kind": "mean"}, 5),
        ({"kind": "sum"}, 5),
        ({"kind": "concat"}, 15),
        ({"kind": "token", "index": -1}, 5),
    ],
)
def test_head(pooling: dict[str, Any], width: int) -> None:
    head = network(pooling=pooling, head={"hidden": [4]}).build_head(5, 3, 2)
    first = next(part for part in head.modules() if isinstance(part, nn.Linear))
    assert first.in_features == width
    assert head(torch.randn(6, 3, 5)).shape == (6, 2)


SETTINGS = {
    "one": {},
    "by_time": {"events": {"groups": ["history", "carts"], "hidden": [3]}},
    "one_after_another": {"tokens": KINDS["slices"], "events": {"reference": "latest_event"}},
}
SCHEMAS = {
    "one": SCHEMA,
    "by_time": with_groups(TIMED),
    "one_after_another": with_groups(TIMED, TIMELESS),
}


def without_events(batch: Batch) -> Batch:
    """The first row's sequences emptied."""
    others = batch.select(torch.arange(1, batch.size))
    groups = {
        name: replace(group, offsets=torch.cat([torch.zeros(1).long(), group.offsets]))
        for name, group in others.sequences.items()
    }
    return replace(batch, sequences=groups)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_row_without_events_has_a_score_and_a_gradient(kind: str) -> None:
    model = transformer(SCHEMAS[kind], **SETTINGS[kind])
    batch = without_events(random_batch(SCHEMAS[kind], 40))
    tokens = model.tokens(batch)
    assert tokens.mask is not None
    assert not tokens.mask[0, : tokens.num_events].any()
    logits = model(batch)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


class TokensAndTimes(nn.Module):
    """All that a model reads, as two tensors."""

    def __init__(self, schema: Schema, settings: dict[str, Any]) -> None:
        super().__init__()
        self.tokens = network(**settings).build_tokens(schema)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(batch)
        assert tokens.mask is not None
        return tokens.x, tokens.mask if tokens.time is None else tokens.time * tokens.mask


@pytest.mark.parametrize("kind", ["by_time", "one_after_another"])
def test_tokens_are_the_same_exported_compiled_and_in_other_company(kind: str) -> None:
    schema = SCHEMAS[kind]
    model = TokensAndTimes(schema, SETTINGS[kind])
    batch = random_batch(schema, 6).without_labels()
    shapes = torch.export.ShapesCollection()
    for tensor in torch.utils._pytree.tree_leaves(batch):
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    with export_config.patch(backed_size_oblivious=True):
        exported = torch.export.export(model, (batch,), dynamic_shapes=shapes).module()
    for rows in (0, 1, 6, 33):
        other = random_batch(schema, rows, seed=rows).without_labels()
        torch.testing.assert_close(exported(other), model(other))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = model(batch)
    torch.testing.assert_close(compiled(batch), expected)
    order = torch.tensor([4, 0, 5])
    chosen = tuple(part[order] for part in expected)
    torch.testing.assert_close(model(batch.select(order)), chosen)
    with torch.autocast("cpu", torch.bfloat16):
        rough, times = model(batch)
    assert torch.equal(times, expected[1])
    # Eight bits, and sums of numbers of about one.
    torch.testing.assert_close(rough.float(), expected[0], atol=2 * 2**-7, rtol=2**-7)


def test_summary_counts_what_is_built() -> None:
    config = network(tokens={"kind": "slices", "num_tokens": 7, "global_token": True})
    summary = summarise_tokens(config, with_groups(TIMED))
    assert (summary.num_events, summary.num_fields, summary.num_tokens) == (10, 8, 18)
    assert summary.order == "by_time"
    history, carts, whole, first, *_ = summary.rows
    assert (history.kind, history.count, history.width) == ("events", 6, 7 * 4)
    assert (carts.name, carts.count, carts.sources) == ("carts", 4, ("c0",))
    kinds = "3 categorical, 3 numeric, 2 vector, 2 mean of a sequence"
    assert (whole.name, whole.kind, whole.width) == ("global", kinds, 40)
    assert first.sources == ("item", "item.category")
    assert summarise_tokens(network(), SCHEMA).order == ""
    fields = summarise_tokens(network(), SCHEMA).rows[1:]
    assert [row.name for row in fields] == list(FIELDS)
    assert fields[-1].kind == "mean of a sequence"


def test_summary_of_compressed_events() -> None:
    old = {"kind": "old_events", "short_events": 2, "num_queries": 3}
    config = parse_config(LoopCTRConfig, {"embedding_dim": 4, "dim": 8, "compression": old}, "test")
    summary = summarise_tokens(config, SCHEMA)
    rows = [(row.name, row.count, row.sources, row.width) for row in summary.rows[:2]]
    assert rows == [("short", 2, ("history",), 8), ("long", 3, ("history",), 8)]
    assert summary.num_events == 5
    plain = summarise_tokens(LoopCTRConfig(embedding_dim=4), SCHEMA)
    assert (plain.rows[0].name, plain.num_events) == ("history", 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("global_token", [False, True])
def test_tokens_start_at_zero_or_at_vectors_of_their_own(kind: str, global_token: bool) -> None:
    """What is read is small at the start; beside vectors of length it moves a token little."""
    for std in (0.0, 0.5):
        kinds = KINDS[kind] | {"bias_std": std, "global_token": global_token}
        tokens = network(dim=64, tokens=kinds).build_tokens(SCHEMA)
        with torch.no_grad():
            x = tokens.fields(1e-4 * torch.randn(64, len(FIELDS), 4))[:, int(global_token) :]
        assert x.std(0).max() < 1e-3  # between rows
        spread = x.mean(0).flatten()
        assert spread.mean().abs() < 0.1
        assert spread.std() == pytest.approx(std, abs=0.1)
