"""What a ranker around a prefix network offers: scores at a depth, its loss, events once.

Sources and equations stand in `loopctr.py`.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.protocols import Loss
from rankloom.ranking.prefix_network import PrefixNetwork
from rankloom.ranking.prefix_parts import EncodedEvents
from rankloom.ranking.prefix_steps import DepthState, next_depth, start_depths, state_logits


class PrefixRanker(nn.Module):
    """Logits after some of a network's blocks; trained at several depths.

    Sequence tokens never read field tokens, so a request can be scored in two steps:
    `encode_events` once, then `score` for any number of candidates. The logits are those of
    `forward`.

    Args:
        network: the network.
        weights: weight of the loss at every depth, shallowest first.
    """

    num_depths: int
    """Depths that it can be left at."""
    predict_depth: int
    """Blocks that a score takes; all, unless told otherwise."""

    def __init__(self, network: PrefixNetwork, weights: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.num_depths = network.num_depths
        self.predict_depth = network.num_depths - 1

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task at `predict_depth`."""
        logits: Tensor = self.network(batch, [self.predict_depth])[0]
        return logits

    def depth_logits(
        self, batch: Batch, num_depths: int | None = None
    ) -> Float[Tensor, "depths batch tasks"]:
        """Logits after 0, 1, ... blocks, `num_depths` of them; None: all."""
        return self.network.depth_logits(batch, num_depths)

    def start_depths(self, batch: Batch) -> DepthState:
        """All rows before the first block."""
        return start_depths(self.network, batch)

    def next_depth(self, state: DepthState) -> DepthState:
        """The same rows after one more block.

        Raises:
            ValueError: they are at the last depth.
        """
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
        return self.network.encode_events(requests, self.predict_depth)

    def score(
        self, candidates: Batch, cache: EncodedEvents, request: Int[Tensor, " candidates"]
    ) -> Float[Tensor, "candidates tasks"]:
        """Logits of candidates against events that were encoded before.

        Args:
            candidates: a row for every candidate; its events are not read.
            cache: what `encode_events` gave, at the same `predict_depth`.
            request: for every candidate the row of the cache that it belongs to. Attention weighs
                requests * most candidates of one * fields * events pairs in every head at once:
                score requests with like numbers of candidates together.

        Raises:
            ValueError: the events were encoded for another depth.
        """
        return self.network.score(candidates, cache, request, self.predict_depth)
