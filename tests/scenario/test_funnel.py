import math
from dataclasses import replace

import pytest
import torch
from funnel_batches import FUNNEL, SMALL, funnel_batch, spread
from torch import Tensor
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.catalog import CATALOG, build_model
from rankloom.config import parse_config
from rankloom.layers.losses import ranking_loss
from rankloom.scenario.funnel import (
    CERTAIN,
    conditional_logits,
    entire_space,
    joint_logits,
    reached,
)

MODELS = ("esmm", "escm2", "aitm", "dbmtl")


def labelled(labels: list[list[float]], known: list[list[int]] | None = None) -> Batch:
    mask = None if known is None else torch.tensor(known).bool()
    rows = torch.zeros(len(labels), 2, dtype=torch.int32)
    return Batch(rows, torch.zeros(len(labels), 0), labels=torch.tensor(labels), label_mask=mask)


def test_joint_logits_by_hand() -> None:
    # A half, then a third of it, then three quarters of that: 1/2, 1/6, 1/8.
    joint = joint_logits(torch.tensor([[0.0, -math.log(2), math.log(3)]]))
    expected = [0.0, math.log(1 / 5), math.log(1 / 7)]
    torch.testing.assert_close(joint, torch.tensor([expected]))


def test_joint_logits_are_those_of_the_product() -> None:
    z = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z.requires_grad_()
    product = z.sigmoid().cumprod(1)
    expected = product.log() - (1 - product).log()
    joint = joint_logits(z)
    torch.testing.assert_close(joint, expected)
    assert joint.dtype == torch.float64
    torch.testing.assert_close(
        *(torch.autograd.grad(value.sum(), z)[0] for value in (joint, expected))
    )


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_gradients_stay_finite_and_right_at_extreme_logits(label: float) -> None:
    ends = [-1e4, -200.0, 0.0, 200.0, 1e4]
    z = torch.cartesian_prod(torch.tensor(ends), torch.tensor(ends)).requires_grad_()
    loss = functional.binary_cross_entropy_with_logits(
        joint_logits(z)[:, 1], torch.full((25,), label), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if label:  # d -log(p q) / d logit p = -(1 - p)
        torch.testing.assert_close(gradient, -(1 - z.detach().sigmoid()))
    else:  # d -log(1 - p q) / d logit p = p q (1 - p) / (1 - p q)
        assert (gradient >= 0).all()
        first = {tuple(row.tolist()): gradient[i].tolist() for i, row in enumerate(z.detach())}
        assert first[-1e4, 1e4] == [0.0, 0.0]  # it stopped before: nothing to learn
        assert first[200.0, 1e4] == [1.0, 0.0]  # certain of both: the less certain one gives way
        assert first[1e4, 1e4] == [0.5, 0.5]


def test_conditional_logits_undo_joint_logits() -> None:
    z = 2 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:, 1:] = z[:, 1:].clamp(max=math.log(CERTAIN / (1 - CERTAIN)))
    torch.testing.assert_close(conditional_logits(joint_logits(z)), z)


def test_contradicting_logits_keep_their_order() -> None:
    # The second probability over the first: from far below to far above it.
    joint = torch.stack([torch.full((400,), -1.0), torch.linspace(-8, 20, 400)], 1)
    joint = joint.double().requires_grad_()
    conditional = conditional_logits(joint)[:, 1]
    assert (conditional.detach().diff() > 0).all()
    (gradient,) = torch.autograd.grad(conditional.sum(), joint)
    assert (gradient[:, 1] > 0).all()
    # Value and slope go on without a jump.
    edge = (CERTAIN * torch.tensor(-1.0).double().sigmoid()).logit()
    near = torch.stack([torch.full((3,), -1.0).double(), edge + torch.tensor([-1e-6, 0, 1e-6])], 1)
    rises = conditional_logits(near)[:, 1].diff()
    torch.testing.assert_close(rises[0], rises[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(
        conditional_logits(near)[1, 1].sigmoid(), torch.tensor(CERTAIN).double()
    )


def test_labels_of_the_entire_space_by_hand() -> None:
    batch = labelled(
        [[0, 0], [1, 0], [1, 1], [1, 0], [0, 1], [0, 0], [0, 0]],
        [[1, 0], [1, 1], [1, 1], [1, 0], [1, 1], [0, 1], [0, 0]],
    )
    space = entire_space(batch)
    # No click; click alone; both; click, the rest unknown; a conversion without a click is none;
    # no conversion, whatever the click was; nothing known.
    assert space.labels.tolist() == [[0, 0], [1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [0, 0]]
    expected = [[1, 1], [1, 1], [1, 1], [1, 0], [1, 1], [0, 1], [0, 0]]
    assert space.label_mask.int().tolist() == expected
    counts = [[1, 0], [1, 1], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]]
    assert reached(space).int().tolist() == counts


def test_labels_of_the_entire_space_by_rows() -> None:
    batch = funnel_batch(400)
    space = entire_space(batch)
    for row in range(400):
        came: bool | None = True
        for task in range(3):
            known, label = batch.label_mask[row, task].item(), batch.labels[row, task].item()
            counts = came is True and known
            if came is not False:
                came = (None if came is None else bool(label)) if known else None
                if known and not label:
                    came = False
            assert reached(space)[row, task].item() == counts
            assert space.label_mask[row, task].item() == (came is not None)
            assert space.labels[row, task].item() == (came is True)
    assert not space.label_mask.all()


def test_without_a_mask_all_labels_are_known() -> None:
    space = entire_space(labelled([[0, 0], [1, 0], [1, 1]]))
    assert space.label_mask.all()
    assert space.labels.tolist() == [[0, 0], [1, 0], [1, 1]]


def build(name: str, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = parse_config(CATALOG[name].config, SMALL | settings, name)
    return spread(build_model(name, config, FUNNEL))


@pytest.mark.parametrize("name", MODELS)
def test_batches_in_which_nothing_happens(name: str) -> None:
    model = build(name)
    batch = funnel_batch()
    everything = torch.ones_like(batch.label_mask)
    nothing = torch.zeros_like(batch.labels)
    clicks = nothing.clone()
    clicks[:, 0] = 1
    for labels, mask in (
        (nothing, everything),  # no click
        (clicks, everything),  # clicks, no conversion
        (clicks, everything & (clicks > 0)),  # clicks, all conversions unknown
        (nothing, ~everything),  # nothing known
    ):
        model.zero_grad()
        loss = model.loss(replace(batch, labels=labels, label_mask=mask))
        loss.total.backward()
        assert loss.total.isfinite()
        assert all(part.isfinite() for part in loss.parts.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # With nothing known only the calibrator of AITM has something to say.
    assert all(value == 0 for key, value in loss.parts.items() if key != "calibrator")


@pytest.mark.parametrize("name", MODELS)
def test_every_part_is_reached_by_the_loss(name: str) -> None:
    model = build(name)
    model.loss(funnel_batch(256)).total.backward()
    unreached = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_needs_labels(name: str) -> None:
    with pytest.raises(ValueError, match="^the loss needs labels; got a batch without them"):
        build(name).loss(funnel_batch().without_labels())


@pytest.mark.parametrize("name", MODELS)
def test_a_conversion_that_is_unknown_after_a_click_counts_for_nothing(name: str) -> None:
    model = build(name)
    batch = funnel_batch()
    unknown = ~entire_space(batch).label_mask[:, 1]  # a click, and what then?
    assert unknown.any()
    labels = batch.labels.clone()
    labels[unknown, 1:] = 1 - labels[unknown, 1:]
    mask = batch.label_mask.clone()
    mask[unknown, 1:] = False
    losses = [
        model.loss(replace(batch, labels=one, label_mask=mask)).total
        for one in (batch.labels, labels)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", MODELS)
def test_weights_count_as_repeated_rows(name: str) -> None:
    model = build(name)
    batch = replace(funnel_batch(30), weight=None)
    twice = torch.tensor([1.0, 2.0, 0.0]).repeat(10)
    rows = torch.repeat_interleave(torch.arange(30), twice.long())
    weighted = model.loss(replace(batch, weight=twice))
    repeated = model.loss(batch.select(rows))
    torch.testing.assert_close(weighted.total, repeated.total)


def biased_log(rows: int, num_ids: int, seed: int) -> tuple[Batch, Tensor]:
    """A log in which what makes a click likely makes a conversion likely, and its true CVR."""
    generator = torch.Generator().manual_seed(seed)
    taste = torch.randn(2, num_ids, generator=generator)
    ids = torch.randint(num_ids, (rows, 2), generator=generator)
    cause = 2**0.5 * (taste[0][ids[:, 0]] + taste[1][ids[:, 1]])
    truth = torch.sigmoid(cause - 1.0)
    click = torch.rand(rows, generator=generator) < torch.sigmoid(cause - 2.5)
    conversion = click & (torch.rand(rows, generator=generator) < truth)
    batch = Batch(
        categorical=(ids + 2).int(),
        numeric=torch.zeros(rows, 0),
        labels=torch.stack([click, conversion], 1).float(),
        label_mask=torch.stack([torch.ones_like(click), click], 1),
    )
    return batch, truth


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("esmm", {}),
        ("escm2", {"risk": {"kind": "ips"}, "counterfactual_weight": 1.0}),
    ],
)
def test_the_entire_space_corrects_for_the_selection_by_clicks(
    name: str, settings: dict[str, object], seed: int
) -> None:
    batch, truth = biased_log(4000, 50, seed)
    schema = FUNNEL.model_copy(
        update={"labels": FUNNEL.labels[:2], "tables": {"item": 52, "c0": 52}}
    )
    settings = settings | {
        "bottom": {"name": "dnn", "hidden": [16], "embedding_dim": 4},
        "width": 16,
        "tower": {"hidden": [8]},
    }
    clicked = batch.select(batch.labels[:, 0].nonzero().squeeze(1))
    assert truth[batch.labels[:, 0] == 1].mean() > truth.mean() + 0.3

    def error(*, clicks_only: bool) -> float:
        torch.manual_seed(seed)
        model = build_model(name, parse_config(CATALOG[name].config, settings, name), schema)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(100):
            if clicks_only:
                loss = ranking_loss(model(clicked), clicked).parts["task_1"]
            else:
                loss = model.loss(batch).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = model.eval()(batch)[:, 1].sigmoid().mean()
        return abs(float(predicted - truth.mean()))

    naive = error(clicks_only=True)
    assert naive > 0.08
    assert error(clicks_only=False) < 0.6 * naive
