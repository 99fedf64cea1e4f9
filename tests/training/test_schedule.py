import json
import math

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from toy_training import toy_model

from rankloom.training.config import (
    ConstantSchedule,
    CosineSchedule,
    PlateauSchedule,
    TableAdam,
    TrainingConfig,
)
from rankloom.training.optim import RankingOptimizer
from rankloom.training.schedule import TorchSchedule, start_schedule


def new_optimizer():
    config = TrainingConfig(learning_rate=0.1, table_optimizer=TableAdam(learning_rate=0.01))
    return RankingOptimizer(toy_model(), config)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_constant():
    optimizer = new_optimizer()
    running = start_schedule(ConstantSchedule(), optimizer, 10)
    running.after_step()
    running.after_evaluation(0.5, False)
    running.after_epoch()
    assert rates(optimizer) == [0.1, 0.01]


def test_plateau_multiplies_without_improvement_down_to_its_floor():
    optimizer = new_optimizer()
    running = start_schedule(PlateauSchedule(factor=0.1, min_learning_rate=5e-4), optimizer, 10)
    running.after_evaluation(0.5, True)
    running.after_evaluation(None, False)  # no evaluation function: nothing to judge by
    assert rates(optimizer) == [0.1, 0.01]
    running.after_evaluation(0.4, False)
    assert rates(optimizer) == pytest.approx([0.01, 0.001])
    running.after_evaluation(0.4, False)
    running.after_evaluation(0.4, False)
    assert rates(optimizer) == [5e-4, 5e-4]
    fresh = new_optimizer()
    start_schedule(PlateauSchedule(), fresh, 10).restore(json.loads(json.dumps(running.state())))
    assert rates(fresh) == rates(optimizer)


def test_cosine_by_hand():
    optimizer = new_optimizer()
    running = start_schedule(
        CosineSchedule(warmup_steps=2, min_learning_rate=0.02), optimizer, total_steps=6
    )
    seen = []
    for _ in range(8):
        seen.append(rates(optimizer))
        running.after_step()
    half = [0.02 + 0.08 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)]
    assert [rate for rate, _ in seen] == pytest.approx([0.1 / 3, 0.2 / 3, *half, half[-1]])
    assert [rate for _, rate in seen[2:]] == [0.01] * 6  # its floor is above the tables' rate
    fresh = new_optimizer()
    start_schedule(CosineSchedule(warmup_steps=2, min_learning_rate=0.02), fresh, 6).restore(
        {"steps": 3}
    )
    assert rates(fresh) == seen[3]
    with pytest.raises(
        ValueError, match="warmup_steps must be below the planned steps; got 6 of 6"
    ):
        start_schedule(CosineSchedule(warmup_steps=6), new_optimizer(), 6)


TORCH_SCHEDULES = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=9),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=6),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.5, total_steps=20),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.8)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.8)], o
    ),
}


def test_every_scheduler_of_torch_is_tried():
    bases = {"LRScheduler", "SWALR"}
    known = {
        name
        for name in schedulers.__all__
        if issubclass(getattr(schedulers, name), schedulers.LRScheduler)
    }
    assert known - bases == TORCH_SCHEDULES.keys()


def groups(optimizer):
    return [(group["lr"], *group["betas"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("every", ["step", "epoch", "evaluation"])
@pytest.mark.parametrize("name", TORCH_SCHEDULES)
def test_torch_scheduler_runs_and_goes_on_exactly(name, every):
    def advance(running, optimizer, count):
        for number in range(count):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            running.after_step()
            running.after_evaluation(1.0 + number, False)
            running.after_epoch()

    optimizer = new_optimizer()
    before = groups(optimizer)
    running = TorchSchedule(TORCH_SCHEDULES[name], every).start(optimizer)
    advance(running, optimizer, 4)
    assert groups(optimizer) != before
    other = new_optimizer()
    again = TorchSchedule(TORCH_SCHEDULES[name], every).start(other)
    again.restore(json.loads(json.dumps(running.state())))
    assert groups(other) == groups(optimizer)
    advance(running, optimizer, 2)
    advance(again, other, 2)
    assert groups(other) == groups(optimizer)


def test_when_a_torch_scheduler_is_stepped():
    for every, expected in {"step": 0.5**3, "evaluation": 0.5**2, "epoch": 0.5}.items():
        optimizer = new_optimizer()
        optimizer.step()
        running = TorchSchedule(lambda o: schedulers.ExponentialLR(o, 0.5), every).start(optimizer)
        optimizer.step()
        for _ in range(3):
            running.after_step()
        for _ in range(2):
            running.after_evaluation(0.5, True)
        running.after_epoch()
        assert rates(optimizer)[0] == pytest.approx(0.1 * expected)
