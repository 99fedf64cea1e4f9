"""What a model costs: parameters, operations, bytes moved, memory for backward, throughput.

Operations are counted by the rules of `rankloom.evaluation.operations`, on real batches, in the
forward pass at evaluation; a training step is about three times that. Figures per row are averages
over the measured batch, so that work done once per batch is shared among its rows.
"""

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rankloom.batch import Batch
from rankloom.config import Config
from rankloom.evaluation.operations import (
    is_free,
    matmul_flops,
    moved_bytes,
    operation_name,
    other_flops,
)
from rankloom.evaluation.protocol import Precision, autocast, evaluation_mode
from rankloom.layers.own_operation import BODIES
from rankloom.layers.table import table_parameters
from rankloom.protocols import HasLoss


class Cost(Config):
    """Cost of one model on one data set."""

    dense_parameters: int = Field(ge=0)
    """Parameters outside embedding tables."""
    embedding_parameters: int = Field(ge=0)
    """Parameters of embedding tables."""
    flops_per_row: float = Field(ge=0)
    """Floating-point operations of the forward pass, all kinds."""
    matmul_flops_per_row: float = Field(ge=0)
    """The part of them that is matrix products, convolutions and attention (2mnk)."""
    bytes_moved_per_row: float = Field(ge=0)
    """Bytes that the forward pass reads and writes, operation by operation, nothing fused."""
    saved_bytes_per_row: float = Field(ge=0)
    """Bytes that training keeps for backward (activation memory)."""
    batch_rows: int = Field(gt=0)
    """Rows of the measured batch."""
    precision: Precision = "float32"
    """Precision of the dense part."""

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense_parameters + self.embedding_parameters


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside `with OperationCounter() as counter:`.

    It sees operations below autograd and autocast, so casts show in the bytes, and a backward pass
    run inside is counted too (its element-wise formulas as one operation per element).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.matmul_flops = 0
        """Operations of matrix products, convolutions and attention."""
        self.other_flops = 0
        """All other floating-point operations."""
        self.bytes_moved = 0
        """Bytes read and written."""
        self.flops_by_operation: Counter[str] = Counter()
        """Operation name -> floating-point operations of both kinds."""
        self._fast_paths: list[bool] = []  # a stack: the mode enters itself again

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return self.matmul_flops + self.other_flops

    def __enter__(self) -> Self:
        """Start counting, with torch's one-kernel transformer layers off: their parts count."""
        self._fast_paths.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fast_paths.pop())

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and add its cost."""
        named = kwargs or {}
        if not isinstance(func, OpOverload):  # control flow of higher order
            return func(*args, **named)
        if func.namespace == "aten":
            # Under inference mode composite operations arrive whole: count their parts instead.
            with self:
                parts = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        if func.namespace == "rankloom":  # opaque to others, not to us
            with self:
                return BODIES[func._schema.name](*args, **named)
        out = func(*args, **named)
        if not is_free(func):
            products = matmul_flops(func, args, named, out)
            others = other_flops(func, args, named, out)
            self.matmul_flops += products
            self.other_flops += others
            self.flops_by_operation[operation_name(func)] += products + others
            self.bytes_moved += moved_bytes(func, args, named, out)
        return out


def measure_cost(model: nn.Module, batch: Batch, *, precision: Precision = "float32") -> Cost:
    """Count a model's parameters, operations, bytes and activation memory.

    The model is left as it was: modes, buffers and random state.

    Args:
        model: a ranker.
        batch: some rows; with labels where the model has a loss of its own.
        precision: as in training.

    Raises:
        ValueError: the batch has no rows.
    """
    if batch.size == 0:
        raise ValueError("cost is measured on a batch with rows; got one of 0 rows")
    batch = batch.to(_device(model))
    tables = sum(parameter.numel() for parameter in table_parameters(model).values())
    everything = sum(parameter.numel() for parameter in model.parameters())
    counter = OperationCounter()
    with (
        evaluation_mode(model),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        autocast(batch.categorical.device, precision),
        counter,
    ):
        model(batch.without_labels())
    return Cost(
        dense_parameters=everything - tables,
        embedding_parameters=tables,
        flops_per_row=counter.flops / batch.size,
        matmul_flops_per_row=counter.matmul_flops / batch.size,
        bytes_moved_per_row=counter.bytes_moved / batch.size,
        saved_bytes_per_row=saved_bytes(model, batch, precision=precision) / batch.size,
        batch_rows=batch.size,
        precision=precision,
    )


def saved_bytes(model: nn.Module, batch: Batch, *, precision: Precision = "float32") -> int:
    """Bytes that autograd keeps for the backward pass of one training step.

    Every storage counts once, whole, whichever views of it are kept; those of parameters, buffers
    and the batch itself, which are there anyway, do not count. A model with an objective of its own
    is measured on that (when the batch has labels), any other on its logits. Modes, buffers and
    random state are put back.

    Args:
        model: a ranker; it runs in training mode.
        batch: some rows.
        precision: as in training.
    """
    batch = batch.to(_device(model))
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor.detach()

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    there: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        there.add(tensor.untyped_storage().data_ptr())
        return tensor

    for tensor in (*model.parameters(), *model.buffers()):
        note(tensor)
    batch.map(note)
    with (
        _training_once(model, batch.categorical.device),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        autocast(batch.categorical.device, precision),
        saved_tensors_hooks(pack, unpack),
    ):
        # The result is held until the count is done: it owns the graph.
        result = (
            model.loss(batch)
            if isinstance(model, HasLoss) and batch.labels is not None
            else (model(batch))
        )
        total = sum(storage.nbytes() for place, storage in kept.items() if place not in there)
        del result
    return total


def peak_memory_bytes(device: str | torch.device = "cpu") -> int:
    """Peak memory so far: of this process (resident, mapped files included), or of a CUDA device.

    On CUDA it is what torch has allocated since the start or the last
    `torch.cuda.reset_peak_memory_stats`.
    """
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.max_memory_allocated(place))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux reports KiB


@contextmanager
def _training_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode whose traces (modes, buffers, random draws) are undone at the end."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        model.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
