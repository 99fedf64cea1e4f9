import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.est import EST, ESTConfig, nearest
from rankloom.schema import IdMember, Schema, SequenceField, VectorField

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
BASE = example_schema(num_categorical=1, num_numeric=1, vectors=False, num_tasks=2)


def group(name: str, has_time: bool, *vectors: int) -> SequenceField:
    return SequenceField(
        name=name,
        ids=(IdMember(name="item", table="item"),),
        vectors=tuple(VectorField(name=f"v{width}", width=width) for width in vectors),
        has_time=has_time,
        max_length=5,
    )


def schema_of(*groups: SequenceField) -> Schema:
    return BASE.model_copy(update={"sequences": groups})


ONE = schema_of(group("seen", True, 3, 2))
TIMED = schema_of(group("seen", True, 3), group("plain", True), group("bought", True, 2))
TIMELESS = schema_of(group("seen", False, 3), group("plain", False), group("bought", False, 2))
NO_CONTENT = schema_of(group("seen", True))
SIZES = {
    "embedding_dim": 3,
    "dim": 4,
    "num_heads": 2,
    "expansion": 2,
    "num_neighbours": 2,
    "head": {"hidden": [5]},
}


def build(schema: Schema, **settings) -> EST:
    model = EST(parse_config(ESTConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def tokens_of(model: EST, batch: Batch, schema: Schema, row: int) -> list[dict]:
    """The real event tokens of a row, with the group and the content that each is made of.

    Events are found again by their places: a separator after a group that others follow, or the
    order of time.
    """
    found = []
    for group in schema.sequences:
        events = batch.sequences[group.name]
        start, end = events.offsets[row : row + 2].tolist()
        for place in range(start, end):
            if events.ids[place, 0] == 0:
                continue
            name = group.vectors[0].name if group.vectors else None
            found.append(
                {
                    "group": group.name,
                    "content": events.vectors[name][place] if name else None,
                    "time": int(events.time[place]) if group.has_time else None,
                }
            )
    if len(schema.sequences) > 1 and all(group.has_time for group in schema.sequences):
        return sorted(found, key=lambda event: event["time"])
    separated = []
    for event in found:
        if separated and separated[-1]["group"] != event["group"]:
            separated.append({"group": None, "content": None, "time": None})
        separated.append(event)
    return separated


def neighbours_by_loop(events: list[dict], number: int) -> Tensor:
    out = torch.zeros(len(events), len(events), dtype=torch.double)
    for i, one in enumerate(events):
        cosines = []
        for j, other in enumerate(events):
            if one["content"] is not None and other["group"] == one["group"]:
                a, b = one["content"], other["content"]
                cosines.append((float(a @ b / (a.norm() * b.norm())), j))
        for cosine, j in sorted(cosines, reverse=True)[:number]:
            out[i, j] = cosine
    return out


def cross_by_loop(part: nn.Module, fields: Tensor, keys: Tensor) -> Tensor:
    out = []
    for i, field in enumerate(fields):
        q = field @ part.query.weight[i]
        pieces = []
        for units in torch.arange(4).chunk(part.num_heads):
            scores = [
                (q[units] @ (part.key.weight @ key)[units]) / len(units) ** 0.5 for key in keys
            ]
            piece = torch.zeros(len(units), dtype=torch.double)
            if scores:
                for share, key in zip(torch.softmax(torch.stack(scores), 0), keys, strict=True):
                    piece = piece + share * (part.value.weight @ key)[units]
            pieces.append(piece)
        out.append(functional.silu(torch.cat(pieces)) @ part.out.weight[i])
    return torch.stack(out)


def network_by_loop(network: nn.Module, field: int | None, x: Tensor) -> Tensor:
    if field is None:
        return network.reduce(functional.gelu(network.expand(x)))
    expand, reduce = network.expand, network.reduce
    hidden = functional.gelu(x @ expand.weight[field] + expand.bias[field, 0])
    return hidden @ reduce.weight[field] + reduce.bias[field, 0]


@pytest.mark.parametrize(
    ("schema", "settings"),
    [
        (FIELDS, {}),
        (NO_CONTENT, {}),
        (ONE, {}),
        (ONE, {"content": {}}),
        (TIMED, {}),
        (TIMELESS, {}),
    ],
    ids=["fields", "no content", "one sequence", "content dropped", "by time", "separators"],
)
def test_it_equals_the_equations_one_row_and_token_at_a_time(schema, settings) -> None:
    model, batch = build(schema, **settings), double_batch(schema, 5)
    tokens = model.tokens(batch)
    pooled = []
    for row in range(5):
        fields, events = tokens.fields[row], tokens.events[row]
        described = tokens_of(model, batch, schema, row)
        if tokens.mask is not None:
            events = events[tokens.mask[row, : tokens.num_events]]
        assert len(described) == len(events)
        near = neighbours_by_loop(described, 2)
        meets = settings.get("content") is None
        for layer in model.stack.layers:
            mixing, network = layer.sublayers
            n, b = mixing.norm(fields), mixing.norm(events)
            fields = fields + cross_by_loop(mixing.cross, n, b if tokens.num_events else n)
            events = events + near @ b if meets else events
            n, b = network.norm(fields), network.norm(events)
            fields = torch.stack(
                [x + network_by_loop(network.fields, i, n[i]) for i, x in enumerate(fields)]
            )
            if len(events):
                updates = [network_by_loop(network.events, None, one) for one in b]
                events = events + torch.stack(updates)
        fields, events = model.stack.norm(fields), model.stack.norm(events)
        if tokens.num_events:
            mean = events.sum(0) / max(1, len(events))
            fields = torch.cat([mean[None], fields])
        pooled.append(fields)
    outputs = [model(batch), model.head(torch.stack(pooled))]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_every_event_keeps_its_largest_cosines() -> None:
    vectors = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]])
    pairs = torch.ones(1, 5, 5, dtype=torch.bool)
    pairs[:, :, 0] = pairs[:, 0] = False
    expected = [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.6, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.8, 0.0],
        [0.0, 0.0, 0.8, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
    torch.testing.assert_close(nearest(vectors, pairs, 2), torch.tensor([expected]))
    # Fewer neighbours than asked for: padding never takes the place of a negative one.
    everything = nearest(vectors, pairs, 9)[0]
    torch.testing.assert_close(everything[4], torch.tensor([0.0, -1.0, -0.6, 0.0, 1.0]))


def test_events_of_equal_content_meet_and_others_do_not() -> None:
    batch, model = double_batch(ONE, 6), build(ONE)
    neighbours = model.content(batch, model.tokens.events.merge)
    assert neighbours.shape == (6, 5, 5)
    mask = model.tokens(batch).mask[:, :5]
    assert not neighbours[~mask].any()
    assert not neighbours.transpose(1, 2)[~mask].any()
    torch.testing.assert_close(
        neighbours.diagonal(dim1=1, dim2=2)[mask], torch.ones(int(mask.sum())).double()
    )


def test_content_names_a_vector_of_a_group() -> None:
    batch = double_batch(ONE, 6)
    first, second = build(ONE), build(ONE, content={"seen": "v2"})
    second.load_state_dict(first.state_dict())
    named = build(ONE, content={"seen": "v3"})
    named.load_state_dict(first.state_dict())
    torch.testing.assert_close(named(batch), first(batch))
    assert not torch.allclose(second(batch), first(batch))


def test_content_that_is_no_vector_of_events_is_an_error() -> None:
    there = r"content names no vector of events: seen: text; there are seen: v3, seen: v2$"
    with pytest.raises(ValueError, match=there):
        build(ONE, content={"seen": "text"})
    none = r"content names no vector of events: seen: v3; there is none$"
    with pytest.raises(ValueError, match=none):
        build(NO_CONTENT, content={"seen": "v3"})
