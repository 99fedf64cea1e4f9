"""Gradient norms: what they are, that watching changes nothing, and exact resumption."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import CONFIG, ToyLoader, ToyModel, resumable, run_toy, toy_batch, toy_model

from rankloom.layers.losses import ranking_loss
from rankloom.training.config import ConstantSchedule, LazyAdam
from rankloom.training.gradients import GradientNorms

CPU = torch.device("cpu")
WATCHED = {"watch_gradients": ("hidden", "*")}


class KilledError(Exception):
    pass


def fill(module, value):
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_norms_by_hand():
    model = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(2, 1), "c": nn.ReLU()})
    norms = GradientNorms(model, ("a", "[ab]"), CPU)
    fill(model["a"], 2.0)  # 4 values of 2: a norm of 4
    fill(model["b"], 1.0)  # 3 values of 1
    norms.add()
    assert norms.means() == pytest.approx(
        {"gradient_norm/a": 4.0, "gradient_norm/[ab]": math.sqrt(19)}
    )
    fill(model["a"], 1.0)
    model["b"].zero_grad()
    norms.add()
    expected = {"gradient_norm/a": math.sqrt((16 + 4) / 2), "gradient_norm/[ab]": math.sqrt(23 / 2)}
    assert norms.means() == pytest.approx(expected)
    norms.reset()
    assert norms.means() == {"gradient_norm/a": 0.0, "gradient_norm/[ab]": 0.0}


def test_every_parameter_counts_once_and_frozen_ones_never():
    shared = nn.Linear(1, 1, bias=False)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared, "c": nn.Linear(1, 1)})
    for parameter in model["c"].parameters():
        parameter.requires_grad_(False)
    norms = GradientNorms(model, ("*",), CPU)
    fill(model, 3.0)
    norms.add()
    assert norms.means() == pytest.approx({"gradient_norm/*": 3.0})


def test_a_part_without_gradient_counts_as_zero():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})
    norms = GradientNorms(model, ("a",), CPU)
    norms.add()
    fill(model, 2.0)
    norms.add()
    assert norms.means()["gradient_norm/a"] == pytest.approx(math.sqrt(4 / 2))


def test_adding_waits_for_nothing():
    class Reads(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    model = nn.Linear(2, 2)
    fill(model, 1.0)
    norms = GradientNorms(model, ("*",), CPU)
    with Reads() as reads:
        norms.add()
        assert reads.seen == 0
        norms.means()
        assert reads.seen == 1


@pytest.mark.parametrize(
    "table_optimizer", [CONFIG.table_optimizer, LazyAdam()], ids=["adam", "lazy"]
)
def test_the_norm_is_of_the_loss_before_clipping_without_l2_and_tables(table_optimizer):
    batch = toy_batch(4)
    config = CONFIG.model_copy(
        update={"epochs": 1, "clip_norm": 1e-3, "table_optimizer": table_optimizer, **WATCHED}
    )
    model = ToyModel(dropout=0.0)
    expected = ToyModel(dropout=0.0)
    expected.load_state_dict(model.state_dict())
    result = run_toy(model, config, loader=ToyLoader(batch))
    ranking_loss(expected(batch), batch).total.backward()
    dense = [p.grad for name, p in expected.named_parameters() if not name.startswith("table")]
    total = math.sqrt(sum(float(g.double().square().sum()) for g in dense))
    hidden = math.sqrt(
        sum(float(p.grad.double().square().sum()) for p in expected.hidden.parameters())
    )
    (row,) = result.history
    assert row["gradient_norm/*"] == pytest.approx(total, rel=1e-5)
    assert row["gradient_norm/hidden"] == pytest.approx(hidden, rel=1e-5)
    assert total > 1e-2  # else clipping would not show


def test_watching_changes_nothing_else():
    plain, watched = toy_model(), toy_model()
    without = run_toy(plain)
    with_norms = run_toy(watched, CONFIG.model_copy(update=WATCHED))
    for ours, theirs in zip(
        plain.state_dict().values(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    columns = with_norms.history[0].keys() - without.history[0].keys()
    assert columns == {"gradient_norm/hidden", "gradient_norm/*"}
    norms = [row["gradient_norm/*"] for row in with_norms.history]
    assert len(set(norms)) == len(norms)  # each evaluation starts anew
    assert all(norm > 0 for norm in norms)


def test_every_evaluation_counts_its_own_steps_only():
    config = CONFIG.model_copy(update={"epochs": 2, **WATCHED})
    batch = toy_batch(4)  # one step per epoch
    first, both = ToyModel(dropout=0.0), ToyModel(dropout=0.0)
    both.load_state_dict(first.state_dict())
    once = config.model_copy(update={"epochs": 1})
    run_toy(first, once, loader=ToyLoader(batch), evaluate=None)
    first.zero_grad()  # the last step left its own
    ranking_loss(first(batch), batch).total.backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in first.hidden.parameters()))
    history = run_toy(both, config, loader=ToyLoader(batch)).history
    assert history[1]["gradient_norm/hidden"] == pytest.approx(expected, rel=1e-5)
    assert history[0]["gradient_norm/hidden"] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kill", [9, 15])
def test_resumed_norms_are_exact(tmp_path, kill):
    config = resumable(schedule=ConstantSchedule(), **WATCHED)
    expected = run_toy(toy_model(), config, folder=tmp_path / "whole")
    loader = ToyLoader(toy_batch())

    def killed(count):
        if count == kill:
            raise KilledError

    loader.before = killed
    with pytest.raises(KilledError):
        run_toy(toy_model(), config, folder=tmp_path / "broken", loader=loader)
    result = run_toy(toy_model(seed=9), config, folder=tmp_path / "broken")
    assert result.resumed
    names = ("step", "gradient_norm/hidden", "gradient_norm/*")
    assert [[row[n] for n in names] for row in result.history] == [
        [row[n] for n in names] for row in expected.history
    ]


def test_state_survives_json():
    model = nn.Linear(2, 2)
    norms = GradientNorms(model, ("*",), CPU)
    fill(model, 0.1)
    norms.add()
    again = GradientNorms(model, ("*",), CPU)
    again.restore(json.loads(json.dumps(norms.state())))
    for one in (norms, again):
        fill(model, 0.7)
        one.add()
    assert again.means() == norms.means()


def test_a_checkpoint_that_watched_something_else_is_refused(tmp_path):
    loader = ToyLoader(toy_batch())

    def killed(count):
        if count == 9:
            raise KilledError

    loader.before = killed
    with pytest.raises(KilledError):
        run_toy(toy_model(), resumable(), folder=tmp_path, loader=loader)
    with pytest.raises(ValueError, match="watch_gradients was"):
        run_toy(toy_model(), resumable(**WATCHED), folder=tmp_path)


def test_patterns_that_name_nothing_are_errors():
    with pytest.raises(
        ValueError, match=r"watch_gradients: no module fits 'hiden'; modules are .*hidden, out"
    ):
        run_toy(toy_model(), CONFIG.model_copy(update={"watch_gradients": ("hiden",)}))
    with pytest.raises(ValueError, match=r"fit 't\*' \(table\) have no trained parameter"):
        GradientNorms(toy_model(), ("t*",), CPU)
