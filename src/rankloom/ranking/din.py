"""DIN: past events, weighed by what they have to do with the target.

Source: Zhou et al., KDD 2018, arXiv:1706.06978, sections 4.3 and 5; form and settings as in the
    tuned runs of BARS (reczoo/BARS).
Equations, for every history with events x[j], their part k[j] that the target t has too:
    a[j]   = MLP([t; k[j]; t - k[j]; t * k[j]]),  v = sum_j a[j] x[j]
    logits = MLP([fields; v of every history]),  Dice between the layers
Differs from the paper: its unit reads the outer product of target and event; the benchmarks' reads
    their difference and element-wise product. A Dice takes no statistics from padding.
    The paper's mini-batch aware regularisation is the in-batch L2 of the embedding tables, a
    setting of training.
The paper does not say: what becomes of a history without events; here v is zero. Data without a
    history gives a network over fields.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.mlp import ActivationName
from rankloom.ranking.attention_unit import AttentionUnit
from rankloom.ranking.histories import HistoryNetwork
from rankloom.schema import Schema


class DINConfig(HistoryNetwork):
    """Sizes of the embeddings, the attention units and the network."""

    activation: ActivationName = "dice"
    """Activation of the hidden layers."""
    attention: AttentionUnit = AttentionUnit()
    """The networks that weigh events, one of its own for every history."""
    softmax: bool = False
    """The weights of a row's events add up to one."""


class DIN(nn.Module):
    """One network over the fields and the weighed sum of every history."""

    def __init__(self, config: DINConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema)
        shapes = self.input.shapes
        # DIFF: difference and element-wise product for the outer product
        self.units = nn.ModuleList(
            [config.attention.build_unit(s.target_dim, softmax=config.softmax) for s in shapes]
        )
        width = self.input.width + sum(shape.dim for shape in shapes)
        self.network = config.build_network(width, out_features=schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        fields, histories = self.input(batch)
        vectors = [
            unit(history.target, history.keys, history.events, history.mask)
            for unit, history in zip(self.units, histories, strict=True)
        ]  # each [batch, dim of its events]
        return self.network(torch.cat([fields.flatten(1), *vectors], dim=1))
