"""Checkpoints from which training goes on exactly.

The folder holds `state.json` (small values: position, history, schedule, what the checkpoint
belongs to) and the safetensors files it names: one with the weights, the optimizer's state and the
random generators, one with the best weights so far. `state.json` is replaced last and in one step,
so at every moment it names files that are whole. Nothing in it is executable.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankloom.runs.atomic import replacing, write_text
from rankloom.training.config import TrainingConfig

STATE_FILE = "state.json"
"""The file that makes a checkpoint valid."""
FORMAT_VERSION = 1
"""Version of this layout."""
FREE_SETTINGS = ("checkpoint_steps", "device")
"""Training settings that may differ between a checkpoint and the run that goes on from it."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; only a run with an equal one may go on from it."""

    training: dict[str, Any]
    """The training settings that decide the result."""
    model: dict[str, str]
    """Class, structure and parameter shapes of the model."""
    data: dict[str, Any]
    """Steps per epoch, batch order, and the caller's fingerprint of the data."""
    seed: int
    """Seed of the run."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read."""

    state: dict[str, Any]
    """The JSON values given to `CheckpointFolder.save`."""
    tensors: dict[str, Tensor]
    """The tensors given to `CheckpointFolder.save`."""


def identify(model: nn.Module, config: TrainingConfig, seed: int, data: dict[str, Any]) -> Identity:
    """The identity of a run."""
    training = config.model_dump(mode="json", exclude=set(FREE_SETTINGS))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    return Identity(
        training=training,
        model={
            "class": type(model).__name__,
            "parameters": _digest(json.dumps(shapes)),
            "structure": _digest(repr(model)),
        },
        data=data,
        seed=seed,
    )


class CheckpointFolder:
    """The checkpoints of one run: at most one valid at a time.

    Args:
        path: a folder of their own, made when the first is written. Other safetensors files in it
            are removed.
        identity: what they belong to.
    """

    def __init__(self, path: str | Path, identity: Identity) -> None:
        self.path = Path(path)
        # Through JSON, so that a tuple equals the list it is read back as.
        self._identity = json.loads(json.dumps(vars(identity)))
        self._best: str | None = None

    def load(self) -> Saved | None:
        """The checkpoint to go on from; None when there is none.

        Raises:
            ValueError: it is damaged, of another version, or belongs to another run; the message
                says what differs.
        """
        file = self.path / STATE_FILE
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = content["format_version"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(self._damaged(STATE_FILE, error)) from None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{file}: checkpoint format {version!r} is not readable; this rankloom reads "
                f"format {FORMAT_VERSION}: start anew with resume=False or in another folder"
            )
        self._compare(content["identity"])
        self._best = content["best"]
        tensors = {} if content["tensors"] is None else self._read(content["tensors"])
        return Saved(content["state"], tensors)

    def save(self, name: str, state: dict[str, Any], tensors: dict[str, Tensor] | None) -> None:
        """Write a checkpoint; the one before stays valid until this one is whole.

        Args:
            name: distinguishes it from the one before, such as `step-120`.
            state: JSON values.
            tensors: what the run needs to go on; None at its end.

        Raises:
            OSError: the folder cannot be written; the checkpoint before is still valid.
        """
        file = None
        if tensors is not None:
            file = f"{name}.safetensors"
            self._write(file, tensors)
        content = {
            "format_version": FORMAT_VERSION,
            "identity": self._identity,
            "tensors": file,
            "best": self._best,
            "state": state,
        }
        write_text(self.path / STATE_FILE, json.dumps(content, indent=1) + "\n")
        for other in self.path.glob("*.safetensors"):
            if other.name not in (file, self._best):
                other.unlink()
        for part in self.path.glob(".*.part"):  # left by a process that was killed while writing
            part.unlink()

    def save_best(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write the best weights so far; they count from the next `save` on.

        Raises:
            OSError: the folder cannot be written.
        """
        file = f"{name}.safetensors"
        self._write(file, tensors)
        self._best = file

    def load_best(self) -> dict[str, Tensor]:
        """The best weights.

        Raises:
            ValueError: there are none, or the file is damaged.
        """
        if self._best is None:
            raise ValueError(f"{self.path} holds no best weights")
        return self._read(self._best)

    def clear(self) -> None:
        """Forget what is there, so that a run that starts anew is never taken for the old one."""
        self._best = None
        (self.path / STATE_FILE).unlink(missing_ok=True)

    def _write(self, file: str, tensors: dict[str, Tensor]) -> None:
        with replacing(self.path / file) as part:
            save_file(separate(tensors), part)

    def _read(self, file: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / file)
        except (SafetensorError, OSError) as error:
            raise ValueError(self._damaged(file, error)) from None

    def _damaged(self, file: str, error: Exception) -> str:
        return (
            f"{self.path / file}: the checkpoint is damaged ({error}); "
            "start anew with resume=False or in another folder"
        )

    def _compare(self, found: dict[str, Any]) -> None:
        differences = []
        for part, ours in self._identity.items():
            theirs = found.get(part)
            if not isinstance(ours, dict) or not isinstance(theirs, dict):
                if ours != theirs:
                    differences.append(f"{part} was {theirs}, is {ours}")
                continue
            differences += [
                f"{part} {key} was {theirs.get(key)}, is {ours.get(key)}"
                for key in sorted(ours.keys() | theirs.keys())
                if ours.get(key) != theirs.get(key)
            ]
        if differences:
            raise ValueError(
                f"the checkpoint in {self.path} belongs to another run: {'; '.join(differences)}; "
                "set it back, or start anew with resume=False or in another folder"
            )


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, detached and contiguous, with a copy wherever two share memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        pointer = value.untyped_storage().data_ptr()
        if pointer in seen:
            value = value.clone()
        seen.add(pointer)
        result[name] = value
    return result


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
