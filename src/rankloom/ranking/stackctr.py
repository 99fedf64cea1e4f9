"""StackCTR: LoopCTR's layers with weights of their own, one after another.

Source: the control that LoopCTR, 2026, arXiv:2604.19550, compares loops with, as third parties
    describe it: as many layers as loops, the same work for a row, more weights.
Equations: those of `loopctr.py`, but H[l] = Layer_l(H[l-1]).
Differs from the paper: nothing known.
The paper does not say: where its loss is taken; here after the last layer alone, as in an ordinary
    stack. What LoopCTR leaves open is done as there.
"""

from pydantic import Field

from rankloom.ranking.prefix_config import PrefixNetworkConfig
from rankloom.ranking.prefix_network import PrefixNetwork
from rankloom.ranking.prefix_ranker import PrefixRanker
from rankloom.ranking.supervision import LastSupervision, Supervision
from rankloom.schema import Schema


class StackCTRConfig(PrefixNetworkConfig):
    """Sizes of the layers, and where the loss is taken."""

    num_layers: int = Field(3, ge=0)
    """Layers between entry and exit."""
    supervision: Supervision = LastSupervision()
    """How much the loss at every depth counts: uniform, last, first or weighted."""


class StackCTR(PrefixRanker):
    """Entry, layers and exit; tasks share everything but the head's last layer.

    Raises:
        ValueError: `num_heads` does not divide `dim`, more experts are to run than there are, or
            the weights do not fit the depths.
    """

    def __init__(self, config: StackCTRConfig, schema: Schema) -> None:
        network = PrefixNetwork(config, schema, range(config.num_layers))
        super().__init__(network, config.supervision.weights(network.num_depths))
