"""ETA: the events nearest to the target by hash codes, then target attention to them.

Source: Chen et al., 2021, arXiv:2108.04468, section 4, and the public code of FuxiCTR (LongCTR).
Equations, for every history, with target t, the parts k[j] of its events e[j] that a target has
    too, random vectors r[1] ... r[m] that are drawn once, and A multi-head target attention:
    code(x)  = (r[1] . x > 0, ..., r[m] . x > 0)
    nearest  = the events with the fewest bits between code(k[j]) and code(t), the latest of equals
    logits   = MLP([fields; A_short(t, latest events); A_long(t, nearest)])
    The codes follow the embeddings as these are trained; the search itself has no gradient.
Differs from the paper: the search compares what target and event have in common, and attention
    reads all of an event. The codes are computed for every batch, not stored beside the table.
The paper does not say: which of several events at one distance is taken; here the latest.
Data without a history leaves a network over fields.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rankloom.batch import Batch
from rankloom.layers.event_search import RandomPlanes, best_events, events_at
from rankloom.layers.multi_head_target import MultiHeadTargetAttention
from rankloom.ranking.histories import History
from rankloom.ranking.long_histories import LongHistoryNetwork, MultiHead, comparable, side_by_side
from rankloom.schema import Schema


class ETAConfig(LongHistoryNetwork):
    """Sizes of the embeddings, the search, both attentions and the network."""

    num_bits: int = Field(32, gt=0)
    """Bits of a hash code."""
    num_found: int = Field(50, gt=0)
    """Events that the search finds."""
    long: MultiHead = MultiHead()
    """How the events that were found are read."""


class _HashSearch(nn.Module):
    """Attention to the events whose codes are nearest to the target's."""

    def __init__(
        self, planes: RandomPlanes, num_found: int, attention: MultiHeadTargetAttention
    ) -> None:
        super().__init__()
        self.planes = planes
        self.num_found = num_found
        self.attention = attention

    def forward(self, history: History) -> Float[Tensor, "batch dim"]:
        # DIFF: keys are the members that the target has too
        distances = self.planes.distances(history.keys, history.target)  # [batch, events]
        index, mask = best_events(-distances, comparable(history), self.num_found)
        return self.attention(history.target, events_at(index, history.events), mask)


class ETA(nn.Module):
    """A network over fields, and the short and the long interest of every history."""

    def __init__(self, config: ETAConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema)
        shapes = self.input.shapes
        self.short = nn.ModuleList(config.build_short(shape) for shape in shapes)
        self.long = nn.ModuleList(
            _HashSearch(
                RandomPlanes(shape.target_dim, config.num_bits),
                config.num_found,
                config.long.build(shape),
            )
            for shape in shapes
        )
        self.network = config.build_top(self.input, schema.num_tasks)

    def forward(self, batch: Batch) -> Float[Tensor, "batch tasks"]:
        """Logits of every task."""
        fields, histories = self.input(batch)
        interests = [
            unit(history)
            for history, *units in zip(histories, self.short, self.long, strict=True)
            for unit in units
        ]
        return self.network(side_by_side(fields, interests))
