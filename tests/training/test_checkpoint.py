import json

import pytest
import torch
from toy_training import ToyModel, resumable

from rankloom.training import checkpoint as checkpoint_module
from rankloom.training.checkpoint import CheckpointFolder, identify, separate

DATA = {"steps_per_epoch": 6, "order": "full", "fingerprint": "abc"}


def folder(path, model=None, config=None, seed=0, data=DATA):
    return CheckpointFolder(path, identify(model or ToyModel(), config or resumable(), seed, data))


def values(number):
    return {"a": torch.full((3,), float(number)), "b": torch.tensor(number)}


def test_save_and_load(tmp_path):
    assert folder(tmp_path / "c").load() is None
    folder(tmp_path / "c").save("step-1", {"x": [1, 0.1, None, "t"]}, values(1))
    saved = folder(tmp_path / "c").load()
    assert saved.state == {"x": [1, 0.1, None, "t"]}
    assert saved.tensors.keys() == {"a", "b"}
    assert torch.equal(saved.tensors["a"], torch.ones(3))


def test_only_what_counts_is_kept(tmp_path):
    checkpoints = folder(tmp_path)
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / ".step-0.safetensors.x.part").write_text("half a file of a killed process")
    checkpoints.save_best("best-1", values(1))
    checkpoints.save("step-1", {}, values(1))
    checkpoints.save("step-2", {}, values(2))
    checkpoints.save_best("best-3", values(3))
    assert (tmp_path / "best-1.safetensors").exists()  # still named by the valid checkpoint
    checkpoints.save("step-3", {}, values(3))
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"state.json", "record.json", "step-3.safetensors", "best-3.safetensors"}
    again = folder(tmp_path)
    assert again.load().tensors["b"] == 3
    assert again.load_best()["b"] == 3
    again.save("end", {}, None)
    assert not (tmp_path / "step-3.safetensors").exists()
    assert folder(tmp_path).load().tensors == {}


@pytest.mark.parametrize("broken", ["save_file", "write_text"])
def test_failed_write_keeps_the_checkpoint_before(tmp_path, monkeypatch, broken):
    checkpoints = folder(tmp_path)
    checkpoints.save_best("best-1", values(1))
    checkpoints.save("step-1", {"n": 1}, values(1))

    def fail(target, *others):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, broken, fail)
    with pytest.raises(OSError, match="the disk is full|No space left"):
        checkpoints.save("step-2", {"n": 2}, values(2))
    monkeypatch.undo()
    again = folder(tmp_path)
    saved = again.load()
    assert (saved.state["n"], saved.tensors["b"], again.load_best()["b"]) == (1, 1, 1)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": resumable(learning_rate=0.5)}, "training learning_rate was 0.05, is 0.5"),
        ({"model": ToyModel(dropout=0.9)}, "model structure was"),
        ({"model": torch.nn.Linear(2, 1)}, "model class was ToyModel, is Linear"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"data": {**DATA, "fingerprint": "new"}}, "data fingerprint was abc, is new"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    folder(tmp_path).save("step-1", {}, values(1))
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}.*resume=False"):
        folder(tmp_path, **changes).load()


def test_settings_that_may_change(tmp_path):
    folder(tmp_path).save("step-1", {}, values(1))
    changed = resumable(checkpoint_steps=5, device="auto")
    assert folder(tmp_path, config=changed).load() is not None


def test_damage_is_reported(tmp_path):
    checkpoints = folder(tmp_path)
    checkpoints.save("step-1", {}, values(1))
    tensors, state = tmp_path / "step-1.safetensors", tmp_path / "state.json"
    with pytest.raises(ValueError, match="holds no best weights"):
        checkpoints.load_best()
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"step-1\.safetensors: the checkpoint is damaged"):
        folder(tmp_path).load()
    tensors.unlink()
    with pytest.raises(ValueError, match=r"step-1\.safetensors: the checkpoint is damaged"):
        folder(tmp_path).load()
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(ValueError, match="checkpoint format 99 is not readable"):
        folder(tmp_path).load()
    state.write_text("{")
    with pytest.raises(ValueError, match=r"state\.json: the checkpoint is damaged"):
        folder(tmp_path).load()


def test_clear(tmp_path):
    checkpoints = folder(tmp_path)
    checkpoints.clear()  # nothing there yet
    checkpoints.save("step-1", {}, values(1))
    checkpoints.clear()
    assert folder(tmp_path).load() is None


def test_shared_memory_is_separated(tmp_path):
    whole = torch.arange(6.0)
    shared = {"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3).t()}
    result = separate(shared)
    assert len({value.untyped_storage().data_ptr() for value in result.values()}) == 3
    folder(tmp_path).save("step-1", {}, shared)
    for name, value in folder(tmp_path).load().tensors.items():
        assert torch.equal(value, shared[name])
