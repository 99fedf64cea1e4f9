"""SDIM: events that fall into the target's hash bucket, mean of several rounds of hashing.

Source: Cao et al., CIKM 2022, arXiv:2205.10249, section 4, and the public code of FuxiCTR
    (LongCTR).
Equations, for every history, with target t, the parts k[j] of its events e[j] that a target has
    too, and b random vectors r[i,1] ... r[i,b] for each of g rounds, drawn once:
    sign[i](x) = (r[i,1] . x > 0, ..., r[i,b] . x > 0)
    s[i]       = sum over events with sign[i](k[j]) = sign[i](t) of e[j]
    long       = mean over i of s[i] / ||s[i]||, zeros where a round finds nothing
    logits     = MLP([fields; A(t, latest events); long]), A being multi-head target attention
    An event at an angle a to the target is found with probability (1 - a / pi)^b, so without the
    unit length `long` is, on average, a sum over all events with these weights.
Differs from the paper: buckets are compared for every row, not stored in tables that one server
    fills for all candidates. The signatures are of what target and event have in common; all of an
    event is summed.
The paper does not say: how the latest events are read. Here as in the public code.
Data without a history leaves a network over fields.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.batch import Batch
from rankloom.layers.event_search import RandomPlanes
from rankloom.ranking.histories import History
from rankloom.ranking.long_histories import LongHistoryNetwork, comparable, side_by_side
from rankloom.schema import Schema

EPS = 1e-6
"""Least length that a round's sum is divided by."""


class SDIMConfig(LongHistoryNetwork):
    """Sizes of the embeddings, the hashing, the attention and the network."""

    num_rounds: int = Field(16, gt=0)
    """Rounds of hashing; the paper's 48 hash functions are 16 rounds of 3."""
    num_bits: int = Field(3, gt=0)
    """Bits of a signature, the paper's tau; the more, the closer an event must be to be found."""
    unit_length: bool = True
    """Scale every round's sum to length one, as in the paper; without it, as in the public code by
    default, the number of matching events counts too."""


class _UnitLength(nn.Module):
    def forward(self, x: Float[Tensor, "batch rounds dim"]) -> Float[Tensor, "batch rounds dim"]:
        return functional.normalize(x, dim=2, eps=EPS)


class _SampledInterest(nn.Module):
    """The mean of what several rounds of hashing find."""

    def __init__(self, target_dim: int, config: SDIMConfig) -> None:
        super().__init__()
        self.planes = RandomPlanes(target_dim, config.num_bits * config.num_rounds)
        self.signature = (config.num_bits, config.num_rounds)
        self.scaled = _UnitLength() if config.unit_length else nn.Identity()

    def forward(self, history: History) -> Float[Tensor, "batch dim"]:
        # DIFF: keys are the members that the target has too
        same = self.planes(history.keys) == self.planes(history.target).unsqueeze(1)
        found = torch.unflatten(same, 2, self.signature).all(2)  # [batch, events, rounds]
        weights = (found & comparable(history).unsqueeze(2)).to(history.events.dtype)
        sums = weights.mT @ history.events  # [batch, rounds, dim]
        return self.scaled(sums).mean(1)


class SDIM(nn.Module):
    """A network over fields, and the short and the long interest of every history."""

    def __init__(self, config: SDIMConfig, schema: Schema) -> None:
        super().__init__()
        self.input = config.build_input(schema)
        shapes = self.input.shapes
        self.short = nn.ModuleList(config.build_short(shape) for shape in shapes)
        self.long = nn.ModuleList(_SampledInterest(shape.target_dim, config) for shape in shapes)
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
