import pytest
import torch
from torch import Tensor, nn

from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.mlp import Dice
from rankloom.ranking.din import DIN, DINConfig
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.schema import Schema

SCHEMA = example_schema(num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=4)
FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
SIZES = {"embedding_dim": 3, "hidden": [6], "activation": "tanh", "attention": {"hidden": [5]}}


def build(schema: Schema = SCHEMA, **settings) -> DIN:
    model = DIN(parse_config(DINConfig, SIZES | settings, "test"), schema)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.input.embedding.table.weight.data[0] = 0
    return model


def logits_by_loops(model: DIN, batch, softmax: bool) -> Tensor:
    """Row by row, events read off the batch: the item and c0 of each, and what was paid."""
    table, bases = model.input.embedding.table.weight, model.input.embedding.base
    group, unit = batch.sequences["history"], model.units[0]
    numeric = model.input.events[0].numeric[0]
    fields = model.input(batch)[0]
    rows = []
    for row in range(batch.size):
        start, end = group.offsets[row : row + 2].tolist()
        ids = batch.categorical[row].tolist()
        target = torch.cat([table[bases["item"] + ids[0]], table[bases["c0"] + ids[1]]])
        target = target * torch.tensor([i != 0 for i in ids[:2] for _ in range(3)])
        scores, events = [], []
        for place in range(start, end):
            item, other = group.ids[place].tolist()
            if item == 0:  # padding
                continue
            vector = table[bases["c0"] + other] if other else torch.zeros(3)
            key = torch.cat([table[bases["item"] + item], vector])
            events.append(torch.cat([key, group.numeric[place, 0] * numeric]))
            x = unit.first(torch.cat([target, key, target - key, target * key]))
            for layer in unit.layers:
                x = layer(x[None], torch.ones(1, dtype=torch.bool))[0]
            scores.append(x[0])
        vector = torch.zeros(9)
        if events:
            weights = torch.stack(scores)
            weights = weights.softmax(0) if softmax else weights
            for weight, event in zip(weights, events, strict=True):
                vector = vector + weight * event
        rows.append(torch.cat([fields[row].flatten(), vector]))
    return model.network(torch.stack(rows))


@pytest.mark.parametrize("softmax", [False, True])
def test_it_equals_the_equations_row_by_row(softmax: bool) -> None:
    model, batch = build(softmax=softmax).eval(), random_batch(SCHEMA, 12, seed=1)
    assert set(model.input(batch)[1][0].mask.sum(1).tolist()) == {0, 1, 2, 3, 4}
    outputs = [model(batch), logits_by_loops(model, batch, softmax)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_many_related_events_count_more_without_a_softmax() -> None:
    """The same event n times gives n times its vector; with a softmax its vector."""
    for softmax in (False, True):
        unit = build(softmax=softmax).eval().units[0]
        target, event = torch.randn(1, 6), torch.randn(1, 1, 9)
        events = event.expand(1, 4, 9)
        one, three = (torch.arange(4)[None] >= 4 - n for n in (1, 3))
        vectors = [unit(target, events[..., :6], events, mask) for mask in (one, three)]
        assert vectors[0].abs().min() > 0
        torch.testing.assert_close(vectors[1], vectors[0] * (1 if softmax else 3))


def test_without_a_history_it_is_a_network_over_fields() -> None:
    sizes = {key: SIZES[key] for key in ("embedding_dim", "hidden", "activation")}
    model = build(FIELDS)
    other = DNN(parse_config(DNNConfig, sizes, "test"), FIELDS)
    weights = {name.removeprefix("input."): value for name, value in model.state_dict().items()}
    other.load_state_dict(weights)
    batch = random_batch(FIELDS, 5)
    torch.testing.assert_close(model(batch), other(batch))


def test_dice_everywhere_unless_told_otherwise() -> None:
    model = DIN(DINConfig(), SCHEMA)
    dices = [name for name, part in model.named_modules() if isinstance(part, Dice)]
    assert dices == [
        "units.0.layers.0.activation",
        "network.layers.1",
        "network.layers.3",
        "network.layers.5",
    ]


def test_a_wide_unit_has_the_parameters_of_the_plain_form() -> None:
    """Item and c0 at width 64: 4 * 128 inputs, as the joined form of BARS has them."""
    config = DINConfig(embedding_dim=64, attention={"hidden": (512, 256)}, softmax=True)
    unit = DIN(config, SCHEMA).units[0]
    count = sum(parameter.numel() for parameter in unit.parameters())
    assert count == (512 * 512 + 512) + 512 + (512 * 256 + 256) + 256 + (256 + 1)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="targets names no id member of a history: nosuch"):
        build(targets={"nosuch": "item"})
    with pytest.raises(ValueError, match="attention"):
        parse_config(DINConfig, {"attention": {"softmax": True}}, "test")
