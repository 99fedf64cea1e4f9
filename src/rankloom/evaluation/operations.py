"""What one tensor operation costs: floating-point operations and bytes moved, by stated rules.

A counter that sees only matrix products gives a factorisation machine zero and a gate zero. Here
every operation that reads or writes floating-point numbers counts:

- matrix products, convolutions and attention: torch's own formulas (2mnk for [m, k] x [k, n]); a
  bias adds one per output element, attention adds its softmax;
- element-wise operations: one per output element, a transcendental function (exp, sigmoid, tanh,
  erf, log, sqrt) being one; functions made of several are counted as such (`ELEMENTWISE`);
- reductions: one per input element, times the passes they need (`REDUCTIONS`);
- softmax: five per element (maximum, subtract, exp, sum, divide); normalisations: five per element
  (sum, subtract, square, sum, multiply), two per row (add epsilon, root), one per element for a
  weight and one for a bias;
- copies, gathers, casts and index arithmetic: none; they show in the bytes.

Bytes moved are the bytes that an operation reads and writes when nothing is fused or cached: every
input and every output once, broadcast dimensions once, of a gather only what it picks. Views are
free.
"""

from collections.abc import Sequence
from math import ceil, log2, prod
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

ELEMENTWISE = {
    "silu": 2,  # sigmoid, multiply
    "gelu": 5,  # scale, erf, add, halve, multiply
    "softplus": 2,  # exp, log1p
    "log_sigmoid_forward": 2,
    "mish": 4,  # softplus, tanh, multiply
    "elu": 2,  # exp, subtract
    "hardsigmoid": 3,
    "hardswish": 4,
    "addcmul": 2,
    "addcdiv": 2,
    "lerp": 3,
    "native_dropout": 2,  # mask, scale
}
"""Operations per output element where it is not one."""

REDUCTIONS = {
    "sum": 1,
    "mean": 1,
    "prod": 1,
    "amax": 1,
    "amin": 1,
    "max": 1,
    "min": 1,
    "argmax": 1,
    "argmin": 1,
    "cumsum": 1,
    "cumprod": 1,
    "cummax": 1,
    "topk": 1,  # a lower bound: every element is looked at once
    "segment_reduce": 1,
    "norm": 2,  # square, add
    "linalg_vector_norm": 2,
    "var": 4,  # add, subtract, square, add
    "std": 4,
    "var_mean": 4,
    "std_mean": 4,
    "logsumexp": 4,  # maximum, subtract, exp, add
    "_softmax": 5,
    "_log_softmax": 5,
    "_safe_softmax": 5,
    "mse_loss": 3,  # subtract, square, add
    "binary_cross_entropy_with_logits": 9,  # (1 - y) z + max(-z, 0) + log1p(exp(-|z|)), its sum
}
"""Operations per input element."""

NORMALISATIONS = {
    # name -> (operations per element, argument positions of weight and bias)
    "native_layer_norm": (5, (2, 3)),
    "native_group_norm": (5, (1, 2)),
    "_fused_rms_norm": (3, (2,)),  # square, add, multiply
}
"""Normalisations of each row (or group) by its own statistics."""

# fmt: off
MOVES = frozenset((
    "clone", "copy", "_to_copy", "cat", "stack", "index_select", "index", "gather", "take",
    "embedding", "repeat", "tile", "constant_pad_nd", "flip", "roll", "repeat_interleave",
    "scatter", "slice_scatter", "select_scatter", "index_copy", "index_put", "masked_scatter",
    "masked_select", "nonzero", "fill", "zero", "zeros", "ones", "full", "zeros_like", "ones_like",
    "full_like", "new_zeros", "new_ones", "new_full", "arange", "unfold_copy", "pixel_shuffle",
    "as_strided_copy", "_pin_memory",
))
# fmt: on
"""Operations that only move or fill memory."""

# fmt: off
FREE = frozenset((
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
    "lift_fresh", "_unsafe_view", "_reshape_alias", "_local_scalar_dense", "is_same_size", "size",
    "stride", "numel", "dim", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset",
    "storage_offset", "is_contiguous", "device", "record_stream", "resize", "set_data",
    "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk",
    # in place these change a view, and their schemas claim a write
    "transpose", "t", "squeeze", "unsqueeze", "as_strided", "swapaxes", "swapdims",
))
# fmt: on
"""Operations that touch no element."""

GATHERS = frozenset(("index_select", "index", "gather", "take", "embedding"))
"""Operations that read of their first argument only what their output holds."""

ADDING_SCATTERS = {"scatter_add": 3, "index_add": 3, "scatter_reduce": 3, "index_reduce": 3}
"""Scatters that add: name -> position of the argument whose elements are added."""


def operation_name(func: OpOverload) -> str:
    """Name without namespace, overload and the underscore of in-place forms: `add`, `_softmax`."""
    name = func._schema.name.rpartition("::")[2]
    in_place = name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place else name


def is_free(func: OpOverload) -> bool:
    """Whether the operation touches no element: a view, an allocation, a question."""
    if operation_name(func) in FREE:
        return True
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def matmul_flops(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: object) -> int:
    """2mnk operations of a matrix product, convolution or attention; 0 of anything else."""
    name = operation_name(func)
    if func._overloadpacket in flop_registry:
        return int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
    if name.startswith("_scaled_dot_product_"):
        query, key, value = (tensor.shape for tensor in args[:3])
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
    # Products that torch's table leaves out.
    if name in ("mv", "dot", "vdot"):
        return 2 * int(args[0].numel())
    if name == "addmv":
        return 2 * int(args[1].numel())
    if name == "_addmm_activation":
        return 2 * int(args[1].numel()) * int(args[2].shape[1])
    return 0


def other_flops(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: object) -> int:
    """Operations that are no product: element-wise, reductions, normalisations, biases."""
    name = operation_name(func)
    outputs = _tensors(out)
    tensors = _tensors((args, kwargs))
    if name in MOVES or not any(tensor.is_floating_point() for tensor in (*tensors, *outputs)):
        return 0
    size = outputs[0].numel() if outputs else 0
    if func._overloadpacket in flop_registry or matmul_flops(func, args, kwargs, out):
        return _beside_product(name, args, kwargs, size)
    if name in NORMALISATIONS:
        per_element, affine = NORMALISATIONS[name]
        given = sum(1 for place in affine if len(args) > place and args[place] is not None)
        return size * (per_element + given) + 2 * outputs[-1].numel()
    if "batch_norm" in name:
        return _batch_norm(name, args, size)
    if name in ADDING_SCATTERS:
        return _numel(args[ADDING_SCATTERS[name]])
    if name.startswith("_embedding_bag"):
        return _embedding_bag(args, kwargs, size)
    if name == "sort":
        shape = args[0].shape
        return prod(shape) * ceil(log2(max(2, shape[-1] if shape else 1)))
    if name == "_cdist_forward":
        return 3 * size * int(args[0].shape[-1])
    if name in REDUCTIONS and func._overloadname != "other":
        return REDUCTIONS[name] * int(args[0].numel()) + _per_row(name, args, size)
    scaled = name in ("add", "sub", "rsub") and kwargs.get("alpha", 1) != 1
    return size * (ELEMENTWISE.get(name, 1) + scaled)


def moved_bytes(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: object) -> int:
    """Bytes read and written by one operation on its own."""
    name = operation_name(func)
    written = sum(_bytes(tensor) for tensor in _tensors(out))
    if name in ("copy", "fill", "zero"):
        return written + sum(_bytes(tensor) for tensor in _tensors(args[1:]))
    if name in GATHERS:
        return 2 * written + sum(_bytes(tensor) for tensor in _tensors((args[1:], kwargs)))
    if name.startswith("_embedding_bag"):
        weight, indices = args[0], args[1]
        picked = indices.numel() * weight.shape[1] * weight.element_size()
        return int(
            picked + written + sum(_bytes(tensor) for tensor in _tensors((args[1:], kwargs)))
        )
    return written + sum(_bytes(tensor) for tensor in _tensors((args, kwargs)))


def _beside_product(name: str, args: Sequence[Any], kwargs: dict[str, Any], size: int) -> int:
    """Bias, activation or softmax that comes with a product; `size` is its output's."""
    if name in ("addmm", "baddbmm", "addmv"):
        scaled = (kwargs.get("alpha", 1) != 1) + (kwargs.get("beta", 1) not in (0, 1))
        return size * (int(kwargs.get("beta", 1) != 0) + scaled)
    if name == "_addmm_activation":
        return size * (1 + (ELEMENTWISE["gelu"] if kwargs.get("use_gelu") else 1))
    if "convolution" in name:
        return size if args[2] is not None else 0
    if "attention" in name:
        query, key = args[0].shape, args[1].shape
        scores = prod(query[:-1]) * int(key[-2])
        masked = kwargs.get("attn_mask") is not None or kwargs.get("attn_bias") is not None
        return scores * (1 + REDUCTIONS["_softmax"] + masked)  # scale, softmax, mask
    return 0


def _per_row(name: str, args: Sequence[Any], size: int) -> int:
    """The one root or logarithm that ends the reduction of each row."""
    if name in ("logsumexp", "std", "std_mean", "norm", "linalg_vector_norm"):
        return size
    if name == "_log_softmax" and args[0].ndim:
        return size // max(1, int(args[0].shape[args[1]]))  # its output is as large as its input
    return 0


def _batch_norm(name: str, args: Sequence[Any], size: int) -> int:
    """Subtract and multiply per element, with the statistics' three where they are computed."""
    features = int(args[0].shape[1])
    given = sum(1 for value in args[1:3] if value is not None)
    # Only `_no_training` and a false training flag use the running statistics.
    flag = next((value for value in args[3:] if isinstance(value, bool)), False)
    training = "no_training" not in name and flag
    return size * (2 + given + (3 if training else 0)) + 2 * features


def _embedding_bag(args: Sequence[Any], kwargs: dict[str, Any], size: int) -> int:
    """One addition per gathered element, one more for weights; a mean divides each output."""
    weight, indices = args[0], args[1]
    mode = args[4] if len(args) > 4 else kwargs.get("mode", 0)
    weights = args[6] if len(args) > 6 else kwargs.get("per_sample_weights")
    gathered = int(indices.numel() * weight.shape[1])
    return gathered * (1 + (weights is not None)) + (size if mode == 1 else 0)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _numel(value: object) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements a tensor reaches; an expanded dimension is there once."""
    if tensor.numel() == 0:
        return 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride != 0) * tensor.element_size()
