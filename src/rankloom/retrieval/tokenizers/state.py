"""A tokenizer's learned state from disk, where the data decided the shapes of its buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_state(tokenizer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a `state_dict` into a tokenizer that was built from its config but not fitted.

    Buffers take the shape they have in `state`; parameters must have it already.

    Raises:
        RuntimeError: names do not agree, or a parameter has another shape.
    """
    for name, value in state.items():
        path, _, last = name.rpartition(".")
        module = tokenizer.get_submodule(path)
        buffer = module._buffers.get(last)
        if buffer is not None and buffer.shape != value.shape:
            module._buffers[last] = torch.empty_like(value)
    tokenizer.load_state_dict(dict(state))
