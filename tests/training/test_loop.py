import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_training
from torch import nn
from torch.optim.lr_scheduler import StepLR
from toy_training import (
    CONFIG,
    ToyLoader,
    ToyModel,
    log_loss,
    resumable,
    run_toy,
    toy_batch,
    toy_model,
)

from rankloom.layers.losses import ranking_loss
from rankloom.protocols import Loss
from rankloom.training.config import (
    ConstantSchedule,
    CosineSchedule,
    LazyAdam,
    PlateauSchedule,
    RowWiseAdagrad,
)
from rankloom.training.course import evaluation_steps
from rankloom.training.loop import select_device
from rankloom.training.schedule import TorchSchedule

STEPS = 6  # per epoch


def assert_equal_weights(model, other):
    for (name, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def scripted(values):
    """An evaluation that gives these values, one after another."""
    remaining = iter(values)
    return lambda model: {"log_loss": next(remaining)}


def test_training_learns_and_reports_what_it_did():
    model = toy_model()
    before = log_loss(model)["log_loss"]
    result = run_toy(model, CONFIG.model_copy(update={"epochs": 15}))
    assert result.best_metrics["log_loss"] < 0.95 * before
    assert log_loss(model) == result.best_metrics
    assert (result.epochs, result.steps, result.stopped) == (15, 15 * STEPS, "epochs")
    assert (result.table_optimizer, result.shuffle_order, result.resumed) == ("adam", "full", False)
    assert [row["step"] for row in result.history] == [STEPS * (k + 1) for k in range(15)]
    assert [row["epoch"] for row in result.history] == list(range(1, 16))
    assert result.history[-1]["train_loss"] < 0.8 * result.history[0]["train_loss"]
    assert result.rows_per_second > 0
    assert 0 < result.history[0]["seconds"] <= result.history[-1]["seconds"] <= result.seconds


def test_same_seed_same_weights_and_callers_random_state_is_kept():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, second, other = toy_model(), toy_model(), toy_model()
    run_toy(first)
    run_toy(second)
    run_toy(other, seed=4)
    assert_equal_weights(first, second)
    assert not torch.equal(first.table.weight, other.table.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_models_share_nothing():
    first, second = toy_model(), toy_model()
    run_toy(first)
    assert_equal_weights(second, toy_model())


def test_model_is_in_training_mode_at_every_step():
    modes = []

    class Watched(ToyModel):
        def forward(self, batch):
            if torch.is_grad_enabled():
                modes.append([module.training for module in self.modules()])
            return super().forward(batch)

    # `log_loss` leaves the model in evaluation mode.
    run_toy(Watched(), CONFIG.model_copy(update={"evaluations_per_epoch": 3, "patience": 99}))
    assert len(modes) == CONFIG.epochs * STEPS
    assert all(all(step) for step in modes)


def test_train_loss_is_the_mean_over_steps():
    seen = []

    class Watched(ToyModel):
        def loss(self, batch):
            loss = ranking_loss(self(batch), batch)
            seen.append(loss.total.item())
            return Loss(loss.total, {"double": 2 * loss.total})

    result = run_toy(Watched(), CONFIG.model_copy(update={"epochs": 2}))
    for number, row in enumerate(result.history):
        mean = sum(seen[number * STEPS : (number + 1) * STEPS]) / STEPS
        assert row["train_loss"] == pytest.approx(mean)
        assert row["loss/double"] == pytest.approx(2 * mean)


def test_own_loss_is_what_is_trained():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.point = nn.Parameter(torch.tensor(3.0))

        def loss(self, batch):
            return Loss((self.point - 1.0).square())

    model = Distance()
    result = run_toy(model, CONFIG.model_copy(update={"epochs": 40}), evaluate=None)
    assert model.point.item() == pytest.approx(1.0, abs=0.05)
    assert (result.best_step, result.best_metrics) == (40 * STEPS, {})
    assert result.history[0].keys() == {"step", "epoch", "seconds", "learning_rate", "train_loss"}


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("patience", [2, 10])
def test_best_weights_are_restored_stopped_early_or_not(tmp_path, in_folder, patience):
    weights = []
    values = iter([0.9, 0.5, 0.7, 0.6])

    def evaluate(model):
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"log_loss": next(values), "auc": 0.5}

    model = toy_model()
    config = CONFIG.model_copy(update={"patience": patience})
    result = run_toy(model, config, evaluate=evaluate, folder=tmp_path if in_folder else None)
    assert result.stopped == ("patience" if patience == 2 else "epochs")
    assert result.best_step == 2 * STEPS
    assert result.best_metrics == {"log_loss": 0.5, "auc": 0.5}
    assert not torch.equal(weights[1]["table.weight"], weights[-1]["table.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[1][name])


def test_patience_counts_evaluations_in_a_row_and_min_delta():
    config = CONFIG.model_copy(update={"epochs": 9, "patience": 2, "min_delta": 0.1})
    result = run_toy(toy_model(), config, evaluate=scripted([0.9, 0.85, 0.7, 0.65, 0.61, 0.1]))
    assert (result.best_step, result.epochs, result.stopped) == (3 * STEPS, 5, "patience")


def test_mode_max():
    config = CONFIG.model_copy(update={"monitor_mode": "max"})
    result = run_toy(toy_model(), config, evaluate=scripted([0.9, 0.5, 0.95, 0.6]))
    assert result.best_step == 3 * STEPS


def test_evaluations_within_an_epoch():
    config = CONFIG.model_copy(update={"evaluations_per_epoch": 4, "epochs": 2})
    result = run_toy(toy_model(), config)
    steps = [2, 3, 5, 6]
    assert [row["step"] for row in result.history] == steps + [STEPS + step for step in steps]
    assert evaluation_steps(3, 10) == {1, 2, 3}
    assert evaluation_steps(100, 1) == {100}


def test_plateau_lowers_the_rate_that_the_history_shows():
    config = CONFIG.model_copy(update={"schedule": PlateauSchedule(factor=0.5)})
    result = run_toy(toy_model(), config, evaluate=scripted([0.9, 0.95, 0.8, 0.7]))
    rates = [row["learning_rate"] for row in result.history]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025])


def test_scheduler_of_torch_replaces_the_configured_schedule():
    schedule = TorchSchedule(lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5))
    result = run_toy(toy_model(), schedule=schedule)
    rates = [row["learning_rate"] for row in result.history]
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.00625])


class KilledError(Exception):
    pass


def killed_at(given):
    def before(count):
        if count == given:
            raise KilledError

    return before


VARIANTS = {
    "plain": resumable(),
    "cosine": resumable(schedule=CosineSchedule(warmup_steps=3)),
    "plateau": resumable(schedule=PlateauSchedule(), min_delta=1.0),
    "lazy": resumable(table_optimizer=LazyAdam(), schedule=ConstantSchedule()),
    "adagrad": resumable(table_optimizer=RowWiseAdagrad(learning_rate=0.1)),
    "bf16": resumable(precision="bf16"),
    "evaluations": resumable(checkpoint_steps=None, evaluations_per_epoch=2),
}


@pytest.mark.parametrize(
    ("variant", "kill"),
    [*((variant, 9) for variant in VARIANTS), *(("plain", kill) for kill in (1, 2, 12, 23))],
)
def test_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path, variant, kill):
    config = VARIANTS[variant]
    whole, broken = toy_model(), toy_model()
    expected = run_toy(whole, config, folder=tmp_path / "whole")
    loader = ToyLoader(toy_batch())
    loader.before = killed_at(kill)
    with pytest.raises(KilledError):
        run_toy(broken, config, folder=tmp_path / "broken", loader=loader)
    assert not broken.table.row_gradients  # given back to autograd
    again = toy_model(seed=99)  # its own weights must not matter
    if kill < (config.checkpoint_steps or 3):
        again = toy_model()  # nothing to go on from yet
    result = run_toy(again, config, folder=tmp_path / "broken")
    assert_equal_weights(whole, again)
    assert result.resumed == (kill >= (config.checkpoint_steps or 3))
    assert without_times(result.history) == without_times(expected.history)
    assert (result.best_step, result.best_metrics) == (expected.best_step, expected.best_metrics)
    assert (result.steps, result.stopped) == (expected.steps, expected.stopped)


def test_killed_twice_with_a_torch_scheduler(tmp_path):
    schedule = TorchSchedule(lambda optimizer: StepLR(optimizer, 4, gamma=0.5), every="step")
    whole = toy_model()
    run_toy(whole, resumable(), folder=tmp_path / "whole", schedule=schedule)
    again = toy_model()
    for kill in (9, 6):
        loader = ToyLoader(toy_batch())
        loader.before = killed_at(kill)
        with pytest.raises(KilledError):
            run_toy(again, resumable(), folder=tmp_path / "b", loader=loader, schedule=schedule)
    assert run_toy(again, resumable(), folder=tmp_path / "b", schedule=schedule).resumed
    assert_equal_weights(whole, again)


def test_killed_by_the_system(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, again = toy_model(), toy_model(seed=99)
        run_toy(whole, resumable(), folder=tmp_path / "whole")
        command = [sys.executable, toy_training.__file__, str(tmp_path / "broken"), "15"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
        assert done.returncode == -9, done.stderr.decode()
        assert (tmp_path / "broken" / "state.json").exists()
        assert run_toy(again, resumable(), folder=tmp_path / "broken").resumed
        assert_equal_weights(whole, again)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("with_evaluation", [True, False])
def test_finished_run_is_not_trained_again(tmp_path, with_evaluation):
    others = {} if with_evaluation else {"evaluate": None}
    model, again = toy_model(), toy_model(seed=99)
    first = run_toy(model, folder=tmp_path, **others)
    loader = ToyLoader(toy_batch())
    second = run_toy(again, folder=tmp_path, loader=loader, **others)
    assert loader.given == 0
    assert_equal_weights(model, again)
    assert second.resumed
    assert replace(second, resumed=False, seconds=first.seconds) == first
    assert sum(file.suffix == ".safetensors" for file in tmp_path.iterdir()) == 1


def test_resume_false_starts_anew(tmp_path):
    run_toy(toy_model(), folder=tmp_path)
    loader = ToyLoader(toy_batch())
    result = run_toy(toy_model(), folder=tmp_path, loader=loader, resume=False)
    assert not result.resumed
    assert loader.given == CONFIG.epochs * STEPS


def test_other_data_are_refused(tmp_path):
    run_toy(toy_model(), folder=tmp_path, fingerprint="a")
    with pytest.raises(ValueError, match="data fingerprint was a, is b"):
        run_toy(toy_model(), folder=tmp_path, fingerprint="b")
    with pytest.raises(ValueError, match="data steps_per_epoch was 6, is 4"):
        run_toy(toy_model(), folder=tmp_path, fingerprint="a", loader=ToyLoader(toy_batch(16)))


def test_loss_that_is_not_finite_names_its_step(tmp_path):
    class Breaks(ToyModel):
        calls = 0

        def forward(self, batch):
            self.calls += self.training
            return super().forward(batch) * (math.nan if self.calls == 9 else 1.0)

    with pytest.raises(
        ValueError,
        match=r"not a finite number at step 9 \(epoch 1\): lower learning_rate \(now 0\.05",
    ):
        run_toy(Breaks(), resumable(), folder=tmp_path)
    # The checkpoint before is the last one that is sound.
    assert (tmp_path / "step-8.safetensors").exists()


def test_bf16_trains_with_float32_weights():
    seen = []

    class Watched(ToyModel):
        def forward(self, batch):
            x = self.table(batch.categorical)
            hidden = self.hidden(x.flatten(1))
            seen.append((x.dtype, hidden.dtype))
            return self.out(torch.relu(hidden))

    model = Watched()
    config = CONFIG.model_copy(update={"precision": "bf16", "epochs": 25})
    result = run_toy(model, config, evaluate=None)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.history[-1]["train_loss"] < 0.8 * result.history[0]["train_loss"]


def test_progress(monkeypatch):
    monkeypatch.setattr("rankloom.training.loop.PROGRESS_SECONDS", 0.0)
    reports = []
    run_toy(toy_model(), progress=reports.append)
    assert [report.step for report in reports] == list(range(1, CONFIG.epochs * STEPS + 1))
    assert [report.epoch for report in reports] == [
        k // STEPS for k in range(CONFIG.epochs * STEPS)
    ]
    assert {report.steps_total for report in reports} == {CONFIG.epochs * STEPS}
    assert reports[0].metric is None
    assert reports[STEPS - 1].metric is not None
    assert reports[-1].remaining_seconds == 0
    assert reports[-2].remaining_seconds > 0
    assert all(math.isfinite(report.loss) for report in reports)
    few = []
    monkeypatch.setattr("rankloom.training.loop.PROGRESS_SECONDS", 1e9)
    run_toy(toy_model(), progress=few.append)
    assert [report.step for report in few] == [STEPS * (k + 1) for k in range(CONFIG.epochs)]


def test_rate_leaves_evaluations_out():
    import time

    def slow(model):
        time.sleep(0.25)
        return log_loss(model)

    result = run_toy(toy_model(), evaluate=slow)
    counted = 22 * CONFIG.epochs - 12  # the first three steps warm up
    assert result.seconds > 1.0
    assert result.rows_per_second > counted / (result.seconds - 1.0)


def test_errors():
    with pytest.raises(ValueError, match=r"monitor log_loss is no metric.*it gives auc, gauc"):
        run_toy(toy_model(), evaluate=lambda model: {"gauc": 0.5, "auc": 0.5})
    with pytest.raises(ValueError, match="monitor log_loss is undefined on the validation split"):
        run_toy(toy_model(), evaluate=scripted([math.nan]))
    with pytest.raises(ValueError, match="gives no batches"):
        run_toy(toy_model(), loader=ToyLoader(toy_batch(0)))

    class Short(ToyLoader):
        def __len__(self):
            return super().__len__() + 1

        def __iter__(self):
            batches = list(super().__iter__())
            return iter(batches[:-1])

    with pytest.raises(ValueError, match="says 7 batches per epoch but gave another number"):
        run_toy(toy_model(), loader=Short(toy_batch()))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda is not available"):
            run_toy(toy_model(), CONFIG.model_copy(update={"device": "cuda"}))


def test_select_device():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_compiled_training_equals_plain_training():
    plain, compiled = toy_model(), toy_model()
    config = CONFIG.model_copy(update={"epochs": 2})
    for model in (plain, compiled):
        model.dropout.p = 0.0
    run_toy(plain, config, evaluate=None)
    run_toy(compiled, config.model_copy(update={"compile": True}), evaluate=None)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_training_on_cuda(tmp_path: Path):
    config = resumable(device="cuda")
    model = toy_model()
    result = run_toy(model, config, folder=tmp_path, evaluate=None)
    assert result.steps == CONFIG.epochs * STEPS
    assert model.table.weight.device.type == "cuda"
