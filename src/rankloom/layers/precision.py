"""The precision of element-wise work beside matrix products."""

import torch
from jaxtyping import Float
from torch import Tensor


def in_product_dtype(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` as autocast would round it for a matrix product; outside autocast `x` itself.

    For a tensor that both enters products and multiplies their results: rounded once, it is not
    rounded again at every product, and the element-wise part does not fall back to float32 at more
    than twice the memory.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x
