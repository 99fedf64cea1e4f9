"""StackCTR: LoopCTR's layers with weights of their own, one after another.

Source: the control that LoopCTR, 2026, arXiv:2604.19550, compares loops with, as third parties
    describe it: as many layers as loops, the same work for a row, more weights.
Equations: those of `loopctr.py`, but H[l] = Layer_l(H[l-1]).
Differs from the paper: nothing known.
The paper does not say: where its loss is taken; here after the last layer alone, as in an ordinary
    stack. What LoopCTR leaves open is done as there.
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.protocols import Loss
from rankloom.ranking.prefix_config import PrefixNetworkConfig
from rankloom.ranking.prefix_network import PrefixNetwork
from rankloom.ranking.prefix_parts import EncodedEvents
from rankloom.ranking.prefix_steps import DepthState, next_depth, start_depths, state_logits
from rankloom.ranking.supervision import LastSupervision, Supervision
from rankloom.schema import Schema


class StackCTRConfig(PrefixNetworkConfig):
    """Sizes of the layers, and where the loss is taken."""

    num_layers: int = Field(3, ge=0)
    """Layers between entry and exit."""
    supervision: Supervision = LastSupervision()
    """How much the loss at every depth counts: uniform, last, first or weighted."""


class StackCTR(nn.Module):
    """Entry, layers and exit; tasks share everything but the head's last layer.

    As in LoopCTR a request can be scored in two steps: `encode_events` once, then `score` for any
    number of candidates.

    Raises:
        ValueError: `num_heads` does not divide `dim`, more experts are to run than there are, or
            the weights do not fit the depths.
    """

    def __init__(self, config: StackCTRConfig, schema: Schema) -> None:
        super().__init__()
        self.num_layers = config.num_layers
        self.network = PrefixNetwork(config, schema, range(config.num_layers))
        self.num_depths = self.network.num_depths
        self.weights = config.supervision.weights(self.num_depths)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task after the last layer."""
        logits: Tensor = self.network(batch, [self.num_layers])[0]
        return logits

    def depth_logits(
        self, batch: Batch, num_depths: int | None = None
    ) -> Float[Tensor, "depths batch tasks"]:
        """Logits after 0, 1, ... layers, `num_depths` of them; None: all."""
        return self.network.depth_logits(batch, num_depths)

    def start_depths(self, batch: Batch) -> DepthState:
        """All rows before the first layer."""
        return start_depths(self.network, batch)

    def next_depth(self, state: DepthState) -> DepthState:
        """The same rows after one more layer."""
        return next_depth(self.network, state)

    def select_rows(self, state: DepthState, rows: Int[Tensor, " selected"]) -> DepthState:
        """Some rows of a state, in the given order."""
        return state.select(rows)

    def state_logits(self, state: DepthState) -> Float[Tensor, "rows tasks"]:
        """Logits of the rows at their depth."""
        return state_logits(self.network, state)

    def loss(self, batch: Batch) -> Loss:
        """The losses at all depths, weighted, and the experts' balance.

        Parts: `depth_0` ..., unweighted, of the depths that have a weight, and `balance`, weighted.

        Raises:
            ValueError: the batch has no labels.
        """
        return self.network.loss(batch, self.weights)

    def encode_events(self, requests: Batch) -> EncodedEvents:
        """Encode the events of some requests, once for all of their candidates.

        Args:
            requests: a row for every request; only its sequences and its time are read.

        Raises:
            ValueError: events are pooled fields too, or the data has none.
        """
        return self.network.encode_events(requests, self.num_layers)

    def score(
        self, candidates: Batch, cache: EncodedEvents, request: Int[Tensor, " candidates"]
    ) -> Float[Tensor, "candidates tasks"]:
        """Logits of candidates against events that were encoded before.

        Args:
            candidates: a row for every candidate; its events are not read.
            cache: what `encode_events` gave.
            request: for every candidate the row of the cache that it belongs to.
        """
        return self.network.score(candidates, cache, request, self.num_layers)
