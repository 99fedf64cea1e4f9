import pytest
import torch
from funnel_batches import FUNNEL, SMALL, bce, funnel_batch, spread

from rankloom.config import parse_config
from rankloom.scenario.dbmtl import DBMTL, DBMTLConfig
from rankloom.scenario.funnel import entire_space


def build(**settings: object) -> DBMTL:
    torch.manual_seed(0)
    settings = {"relation": {"hidden": [4]}} | settings
    return spread(DBMTL(parse_config(DBMTLConfig, SMALL | settings, "test"), FUNNEL))


def test_every_task_reads_all_before_it() -> None:
    model, batch = build().eval(), funnel_batch(7)
    x = model.bottom(batch)
    first = model.relations[0](model.towers[0](x))
    second = model.relations[1](torch.cat([model.towers[1](x), first], 1))
    third = model.relations[2](torch.cat([model.towers[2](x), first, second], 1))
    heads = zip(model.heads, (first, second, third), strict=True)
    expected = torch.cat([head(units) for head, units in heads], 1)
    torch.testing.assert_close(model(batch), expected)
    assert [relation.layers[0].in_features for relation in model.relations] == [5, 9, 13]


def test_later_tasks_train_earlier_ones_and_not_the_other_way_round() -> None:
    model, batch = build(), funnel_batch()
    for task in range(3):
        model.zero_grad()
        model(batch)[:, task].sum().backward()
        layers = (relation.layers[0].weight.grad for relation in model.relations)
        trained = [gradient is not None and bool(gradient.any()) for gradient in layers]
        assert trained == [earlier <= task for earlier in range(3)]


def test_the_loss_is_the_likelihood_of_how_far_rows_came() -> None:
    model = build(weights=[1.0, 2.0, 0.5])
    batch = funnel_batch()
    loss = model.loss(batch)
    probability = model(batch).double().sigmoid()
    space = entire_space(batch)
    expected = []
    for task in range(3):
        total = share = 0.0
        for row in range(batch.size):
            if not space.label_mask[row, task]:
                continue
            share += batch.weight[row]
            before_it = all(batch.labels[row, earlier] == 1 for earlier in range(task))
            if before_it:  # otherwise the label is 0 for certain
                total += batch.weight[row] * bce(probability[row, task], batch.labels[row, task])
        expected.append(total / share)
    for task in range(3):
        torch.testing.assert_close(loss.parts[f"task_{task}"].double(), expected[task].double())
    weighted = expected[0] + 2 * expected[1] + 0.5 * expected[2]
    torch.testing.assert_close(loss.total.double(), weighted.double())


def test_with_all_labels_known_it_is_the_likelihood_of_the_outcome() -> None:
    model = build()
    batch = funnel_batch()
    far = entire_space(batch)
    complete = far.label_mask.all(1).nonzero().squeeze(1)
    batch = batch.select(complete)
    p = model(batch).double().sigmoid()
    total = torch.zeros(())
    for row in range(batch.size):
        likelihood = 1.0  # of stopping where the row stopped
        for task in range(3):
            if far.labels[complete[row], task]:
                likelihood = likelihood * p[row, task]
            else:
                likelihood = likelihood * (1 - p[row, task])
                break
        total = total - batch.weight[row] * likelihood.log()
    torch.testing.assert_close(model.loss(batch).total.double(), total / batch.weight.sum())


def test_one_weight_for_each_task() -> None:
    with pytest.raises(ValueError, match="^weights needs one number for each of 3 tasks; got 2"):
        build(weights=[1.0, 1.0])
