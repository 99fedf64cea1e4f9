"""What loops and layers make of tokens: sums that batches add to, and what they amount to.

- How alike the states are that a loop, or a stack of layers, gives one after another. A state is
  what one call gives for a token, all streams side by side. For two of them, X and Y over the same
  tokens: the mean cosine similarity, token by token, and linear CKA (Kornblith et al., ICML 2019),

      CKA = |Y_c^T X_c|^2 / (|X_c^T X_c| |Y_c^T Y_c|)    Frobenius norms, columns centred

  which no rotation and no common factor of either changes. It is NaN for a state without variance,
  and biased upwards where tokens are not many times the width.
- Where routers send tokens at each of their calls: the share of the tokens that chose an expert,
  the mean gate, the entropy -sum p ln p of a token's scores made to sum to one, and how far the
  chosen sets of one call are those of the call before: experts in both over experts in either.
- The coefficients of hyper-connections at each of their calls, mean over tokens.

Only moments are kept, in float64.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.routing import Routing
from rankloom.runs.record import Number

Padding = Literal["none", "excluded", "counted"]
"""Padding among the tokens: no module was given a mask, so there is none; or it does not count; or
no mask is known that fits, so that what there may be of it counts like any token."""

Real = Bool[Tensor, "batch tokens"] | None
"""True at tokens that count; None: all do."""


class StateSimilarity(Config):
    """How alike the states of one loop or of one list of layers are."""

    run: str
    """Label of the run."""
    path: str
    """Path of the module that is called again and again, or of the list of layers."""
    calls: tuple[str, ...]
    """Path of the module whose call gave each state but the first, which is the input."""
    tokens_per_row: int = Field(ge=0)
    """Tokens of a row, padding included."""
    padding: Padding
    """What became of padding."""
    tokens: int = Field(ge=0)
    """Tokens of all rows that counted."""
    width: int = Field(ge=1)
    """Numbers of a token."""
    cosine: tuple[tuple[Number, ...], ...]
    """Mean cosine similarity of every pair of states."""
    cka: tuple[tuple[Number, ...], ...]
    """Linear CKA of every pair of states."""


class RouterCall(Config):
    """Where one call of a router sent its tokens."""

    call: int = Field(ge=0)
    """Call over these tokens within a forward pass, from 0."""
    tokens: int = Field(ge=0)
    """Tokens of all rows that counted."""
    share: tuple[Number, ...]
    """Share of the tokens that chose the expert, by expert; they sum to the experts per token."""
    gate: tuple[Number, ...]
    """Mean gate over all tokens, by expert."""
    entropy: Number
    """Mean entropy of a token's scores, at most ln(experts); a token without scores has 0."""
    agreement: Number
    """Mean overlap of a token's experts with those of the call before; NaN at the first call."""


class RouterUse(Config):
    """One router of one run."""

    run: str
    """Label of the run."""
    router: str
    """Path of the router."""
    tokens_per_row: int = Field(ge=0)
    """Tokens of a row, padding included."""
    padding: Padding
    """What became of padding."""
    calls: tuple[RouterCall, ...]
    """In the order of the forward pass."""


class CoefficientCall(Config):
    """Mean coefficients of one call."""

    call: int = Field(ge=0)
    """Call over these tokens within a forward pass, from 0."""
    tokens: int = Field(ge=0)
    """Tokens of all rows that counted."""
    pre: tuple[Number, ...]
    """H_pre: what the sublayer reads of every stream."""
    res: tuple[tuple[Number, ...], ...]
    """H_res: a row per stream after, its parts in the streams before."""
    post: tuple[Number, ...]
    """H_post: what of the update goes to every stream."""


class StreamCoefficients(Config):
    """Coefficients of one sublayer of one run."""

    run: str
    """Label of the run."""
    module: str
    """Path of the module that makes them."""
    tokens_per_row: int = Field(ge=0)
    """Tokens of a row, padding included."""
    padding: Padding
    """What became of padding."""
    calls: tuple[CoefficientCall, ...]
    """In the order of the forward pass."""


class StateSums:
    """Moments of the states of one loop or list of layers."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_states = 0
        self.width = 0
        self.cosine: Tensor | None = None  # [states, states]
        self.total: Tensor | None = None  # [states * width]
        self.products: Tensor | None = None  # [states * width, states * width]

    def add(self, states: list[Float[Tensor, "batch tokens width"]], real: Real) -> None:
        """Add the states of some rows."""
        x = torch.stack([_chosen(state.double(), real) for state in states])
        self.num_states, num_tokens, self.width = x.shape  # x: [states, tokens, width]
        unit = functional.normalize(x, dim=2).flatten(1)
        flat = x.transpose(0, 1).flatten(1)  # [tokens, states * width]
        self.num_tokens += num_tokens
        self.cosine = _plus(self.cosine, unit @ unit.mT)
        self.total = _plus(self.total, flat.sum(0))
        self.products = _plus(self.products, flat.mT @ flat)

    def similarities(self) -> tuple[Tensor, Tensor]:
        """Mean cosine similarity and linear CKA of every pair, [states, states] each.

        Raises:
            ValueError: nothing was added.
        """
        if self.cosine is None or self.total is None or self.products is None:
            raise ValueError("no states were added")
        mean = self.total / self.num_tokens
        centred = self.products - self.num_tokens * torch.outer(mean, mean)
        shape = (self.num_states, self.width)
        # [states, width, states, width] -> squared Frobenius norm of every pair of states
        squares = centred.reshape(*shape, *shape).square().sum((1, 3))
        own = squares.diagonal().sqrt()
        # What float32 cannot tell from a constant is one.
        raw = self.products.diagonal().reshape(shape).sum(1)
        own = torch.where(own > torch.finfo(torch.float32).eps ** 2 * raw, own, torch.nan)
        return self.cosine / self.num_tokens, squares / torch.outer(own, own)


class RouterSums:
    """What one call of a router chose, summed."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_compared = 0
        self.chosen: Tensor | None = None  # [experts]
        self.gates: Tensor | None = None  # [experts]
        self.entropy: Tensor | None = None
        self.overlap: Tensor | None = None

    def add(self, routing: Routing, before: Routing | None, real: Real) -> None:
        """Add some rows; `before` is what the call before chose for the same tokens, if any."""
        gates = _chosen(routing.gates.double(), real)  # [tokens, experts]
        scores = _chosen(routing.scores.double(), real)
        total = scores.sum(1, keepdim=True)
        p = scores / torch.where(total > 0, total, 1.0)
        chosen = gates != 0
        self.num_tokens += len(gates)
        self.chosen = _plus(self.chosen, chosen.double().sum(0))
        self.gates = _plus(self.gates, gates.sum(0))
        self.entropy = _plus(self.entropy, torch.special.entr(p).sum())
        if before is not None:
            earlier = _chosen(before.gates, real) != 0
            either = (chosen | earlier).sum(1)
            both = (chosen & earlier).sum(1)
            # Two empty sets are the same set.
            each = torch.where(either > 0, both / either.clamp(min=1), 1.0)
            self.num_compared += len(each)
            self.overlap = _plus(self.overlap, each.double().sum())

    def result(self, call: int) -> RouterCall:
        """What the sums amount to.

        Raises:
            ValueError: nothing was added.
        """
        if self.chosen is None or self.gates is None or self.entropy is None:
            raise ValueError("no routing was added")
        agreement = float("nan")
        if self.overlap is not None and self.num_compared:
            agreement = float(self.overlap / self.num_compared)
        return RouterCall(
            call=call,
            tokens=self.num_tokens,
            share=tuple((self.chosen / self.num_tokens).tolist()),
            gate=tuple((self.gates / self.num_tokens).tolist()),
            entropy=float(self.entropy / self.num_tokens),
            agreement=agreement,
        )


class CoefficientSums:
    """Coefficients of one call, summed."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.mix: Tensor | None = None  # [1 + streams, streams]
        self.post: Tensor | None = None  # [streams]

    def add(
        self,
        mix: Float[Tensor, "batch tokens 1+streams streams"],
        post: Float[Tensor, "batch tokens streams"],
        real: Real,
    ) -> None:
        """Add the coefficients of some rows: H_pre above H_res, and H_post."""
        chosen = _chosen(mix.double(), real)
        self.num_tokens += len(chosen)
        self.mix = _plus(self.mix, chosen.sum(0))
        self.post = _plus(self.post, _chosen(post.double(), real).sum(0))

    def result(self, call: int) -> CoefficientCall:
        """What the sums amount to.

        Raises:
            ValueError: nothing was added.
        """
        if self.mix is None or self.post is None:
            raise ValueError("no coefficients were added")
        pre, *res = (self.mix / self.num_tokens).tolist()
        return CoefficientCall(
            call=call,
            tokens=self.num_tokens,
            pre=tuple(pre),
            res=tuple(map(tuple, res)),
            post=tuple((self.post / self.num_tokens).tolist()),
        )


def _plus(total: Tensor | None, added: Tensor) -> Tensor:
    return added if total is None else total + added


def _chosen(values: Float[Tensor, "batch tokens *rest"], real: Real) -> Tensor:
    return values.flatten(0, 1) if real is None else values[real]
