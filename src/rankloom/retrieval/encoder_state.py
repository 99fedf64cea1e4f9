"""What an item encoder has learned, on disk: numbers as safetensors, all else as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankloom.config import read_json_values

ARRAYS_FILE = "encoder.safetensors"
"""Arrays of a state, in its folder."""
STATE_FACTS_FILE = "encoder.json"
"""Facts of a state, in its folder."""


@dataclass(frozen=True, eq=False)
class EncoderState:
    """Everything besides its settings that an encoder needs for items it has not seen."""

    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    """Means, axes, weights of terms, by name; a part's names begin with its number and a dot."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can hold: `width` of the vectors before centring, and terms, for example."""

    def part(self, number: int) -> "EncoderState":
        """The state of a part, of those that `of_parts` put together."""
        prefix = f"{number}."
        own = {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }
        return EncoderState(own, self.facts["parts"][number])

    @classmethod
    def of_parts(cls, parts: list["EncoderState"], arrays: Mapping[str, Tensor]) -> "EncoderState":
        """The states of several encoders, and arrays of the whole."""
        named = {
            f"{number}.{name}": array
            for number, part in enumerate(parts)
            for name, array in part.arrays.items()
        }
        return cls({**arrays, **named}, {"parts": [part.facts for part in parts]})

    def save(self, folder: str | Path) -> None:
        """Write the two files of a state into a folder that exists."""
        path = Path(folder)
        arrays = {name: array.contiguous() for name, array in self.arrays.items()}
        save_file(arrays, path / ARRAYS_FILE)
        text = json.dumps(self.facts, ensure_ascii=False)
        (path / STATE_FACTS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "EncoderState":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder has no such files.
            ValueError: they are damaged.
        """
        path = Path(folder)
        for name in (ARRAYS_FILE, STATE_FACTS_FILE):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"{path} has no {name}, which holds what the encoder has learned; tokenize "
                    "again (--fresh)"
                )
        try:
            arrays = load_file(path / ARRAYS_FILE)
        except SafetensorError as error:
            raise ValueError(f"{path / ARRAYS_FILE} is damaged: {error}; tokenize afresh") from None
        return cls(arrays, read_json_values(path / STATE_FACTS_FILE))
