"""DeRes: OneTrans layers with an identity path and a block path between them.

Source: Cheng et al., 2026, arXiv:2606.07980. Its full text was not to be had; known are the two
    paths, the vector gate, SiLU in place of softmax, the channel split and that it goes onto
    OneTrans, TokenMixer-Large and UniMixer. The connection is `rankloom.layers.connections.deres`,
    the layers are `rankloom.ranking.onetrans`.
Equations, for layer l with update f_l, blocks B and the query w_l:
    identity path  r_l = r_(l-1) + f_l
    block path     d_l = sum_b SiLU(w_l . RMSNorm(B_b)) B_b, B_0 the tokens below the first layer
    together       x_l = g_l * r_l + (1 - g_l) * d_l, g_l = sigmoid(a_l * r_l + c_l * d_l + b_l)
The paper does not say: how wide the paths are after the split and what follows it, what a block's
    summary is, what computes the gate, how anything starts, nor any size. The choices and the
    others that can be set stand in `rankloom.ranking.deres_parts` and docs/papers/deres.md. Fields
    read each other in any order; events, where there are any, stay causal.
"""

from typing import Literal

from pydantic import Field

from rankloom.ranking.connections import Connection
from rankloom.ranking.deres_parts import DeResConnection
from rankloom.ranking.onetrans import OneTrans, OneTransConfig


class DeResConfig(OneTransConfig):
    """OneTrans's settings, with DeRes between its layers."""

    dim: int = Field(128, gt=0)
    """Width of every token; even where the paths share it."""
    num_layers: int = Field(8, ge=1)
    """Layers."""
    order: Literal["causal", "open_fields", "none"] = "open_fields"
    """causal: tokens attend to those before them. open_fields: fields also to the fields behind
    them. none: all to all, and events cannot be encoded ahead."""
    connection: Connection = DeResConnection()
    """What lies between layers."""


DeRes = OneTrans
"""The model: layers, heads and two-step scoring are OneTrans's."""
