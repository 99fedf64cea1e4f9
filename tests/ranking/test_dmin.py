from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.config import parse_config
from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.losses import next_event_loss, ranking_loss
from rankloom.ranking.dmin import DMIN, DMINConfig
from rankloom.schema import Schema

FIELDS = example_schema(num_categorical=1, num_numeric=1, sequences=False, num_tasks=2)
EVENTS = example_schema(num_categorical=1, num_numeric=1, vectors=False, num_tasks=2, max_length=4)
SIZES = {
    "embedding_dim": 2,
    "num_heads": 2,
    "position_dim": 3,
    "unit_hidden": [5, 3],
    "unit_activation": "tanh",
    "hidden": [5],
}


def build(schema: Schema, **settings) -> DMIN:
    model = DMIN(parse_config(DMINConfig, SIZES | settings, "test"), schema).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def double_batch(schema: Schema, rows: int) -> Batch:
    return random_batch(schema, rows).map(lambda t: t.double() if t.is_floating_point() else t)


def normal(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * gain + shift


def heads_of(attend: nn.Module, seen: list[Tensor]) -> list[Tensor]:
    """What each head makes of the events up to the last of `seen`, for that last one."""
    w_q, w_k, w_v = attend.project.weight.chunk(3)
    heads, width = attend.num_heads, len(seen[0])
    pieces = []
    for head in range(heads):
        units = slice(head * width // heads, (head + 1) * width // heads)
        scores = [(w_q @ seen[-1])[units] @ (w_k @ key)[units] for key in seen]
        shares = torch.stack(scores).div((width // heads) ** 0.5).softmax(0)
        pieces.append(
            sum(share * (w_v @ key)[units] for share, key in zip(shares, seen, strict=True))
        )
    return pieces


def refined_by_loops(layer: nn.Module, events: Tensor) -> list[Tensor]:
    out = []
    for j, e in enumerate(events):
        head = torch.cat(heads_of(layer.attend, list(events[: j + 1])))
        norm = layer.attention_norm
        z = normal(e + layer.out.weight @ head, norm.weight, norm.bias)
        out.append(z + layer.network.reduce(layer.network.expand(z).relu()))
    return out


def per_head(layer: nn.Module, head: int, x: Tensor) -> Tensor:
    out = x @ layer.weight[head]
    return out if layer.bias is None else out + layer.bias[head, 0]


def interests_by_loops(part: nn.Module, refined: list[Tensor], target: Tensor) -> Tensor:
    interests = []
    for head in range(part.num_heads):
        ys, scores = [], []
        for j, r in enumerate(refined):
            attended = heads_of(part.attend, refined[: j + 1])[head]
            s = normal(
                r + per_head(part.out, head, attended), part.norm.gain[head], part.norm.shift[head]
            )
            hidden = per_head(part.network.expand, head, s).relu()
            y = s + per_head(part.network.reduce, head, hidden)
            place = part.unit.places[head, j - len(refined)]
            t = per_head(part.unit.project, head, torch.cat([target, place]))
            score = per_head(part.unit.first, head, torch.cat([t, y, t - y, t * y]))
            for layer in part.unit.layers:
                if hasattr(layer, "weight"):
                    score = per_head(layer, head, score)
                elif isinstance(layer, nn.Tanh):
                    score = score.tanh()
            ys.append(y)
            scores.append(score)
        zero = target.new_zeros(part.attend.project.in_features)
        shares = torch.cat(scores).softmax(0) if scores else []
        interests.append(sum((a * y for a, y in zip(shares, ys, strict=True)), zero))
    return torch.cat(interests)


@pytest.mark.parametrize("unit_hidden", [[5, 3], []], ids=["network", "one linear layer"])
def test_it_equals_the_equations_one_row_head_and_event_at_a_time(unit_hidden) -> None:
    model = build(EVENTS, unit_hidden=unit_hidden)
    batch = double_batch(EVENTS, 6)
    fields, (history,) = model.input(batch)
    lengths = history.mask.sum(1).tolist()
    assert min(lengths) == 0
    assert max(lengths) > 1
    assert history.events.shape[2] > history.target.shape[1]
    unit, rows = model.histories[0], []
    for i, mask in enumerate(history.mask):
        refined = refined_by_loops(unit.refiner, history.events[i][mask])
        interests = interests_by_loops(unit.interests, refined, history.target[i])
        rows.append(torch.cat([fields[i].flatten(), interests]))
    outputs = [model(batch), model.network(torch.stack(rows))]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in outputs]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_refined_event_knows_the_past_only() -> None:
    model, batch = build(EVENTS), double_batch(EVENTS, 20)
    _, (history,) = model.input(batch)
    unit = model.histories[0]
    refined, _ = unit(history)
    events = history.events.clone()
    events[:, 2] += 1
    later, _ = unit(replace(history, events=events))
    torch.testing.assert_close(later[:, :2], refined[:, :2])
    assert not torch.allclose(later[:, 2:], refined[:, 2:])


def test_the_loss_adds_that_of_the_next_event() -> None:
    model, batch = build(EVENTS, auxiliary_weight=0.25), double_batch(EVENTS, 20)
    batch = replace(batch, weight=None)
    _, (history,) = model.input(batch)
    refined, _ = model.histories[0](history)
    torch.manual_seed(3)
    expected = next_event_loss(refined, history.events, history.mask)
    labels = ranking_loss(model(batch), batch)
    torch.manual_seed(3)
    loss = model.loss(batch)
    assert expected.item() > 0
    torch.testing.assert_close(loss.parts["next_event"], 0.25 * expected)
    torch.testing.assert_close(loss.parts["labels"], labels.total)
    torch.testing.assert_close(loss.total, labels.total + 0.25 * expected)
    refiner = list(model.histories[0].refiner.parameters())
    assert all(g.any() for g in torch.autograd.grad(loss.parts["next_event"], refiner))


def test_without_a_weight_or_a_history_the_loss_is_that_of_the_labels() -> None:
    for model, schema in ((build(EVENTS, auxiliary_weight=0.0), EVENTS), (build(FIELDS), FIELDS)):
        batch = double_batch(schema, 5)
        loss, expected = model.loss(batch), ranking_loss(model(batch), batch)
        torch.testing.assert_close(loss.total, expected.total)
        assert loss.parts.keys() == expected.parts.keys()


def test_heads_must_divide_an_event() -> None:
    with pytest.raises(ValueError, match="^num_heads must divide dim; got dim=6, num_heads=4$"):
        build(EVENTS, num_heads=4)
