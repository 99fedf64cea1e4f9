"""Operations of our own: opaque to a compiler, transparent to whoever counts what they do."""

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef

Body = Callable[..., Any]

BODIES: dict[str, Body] = {}
"""Qualified name -> what the operation runs, in operations of torch."""


def own_operation(name: str) -> Callable[[Body], CustomOpDef]:
    """Make a function of tensors that writes to none of them one operation, `rankloom::<name>`."""

    def make(body: Body) -> CustomOpDef:
        qualified = f"rankloom::{name}"
        BODIES[qualified] = body
        return torch.library.custom_op(qualified, body, mutates_args=())

    return make
