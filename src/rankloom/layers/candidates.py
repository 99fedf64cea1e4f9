"""Candidates that attend to the events of their requests, of which none is copied.

The candidates of a request are laid side by side, as many for every request as the largest one has,
so that all of them are one product with the request's keys and values as they lie.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rankloom.layers.attention import attention_of_heads


class CandidateRows:
    """Which request every candidate belongs to.

    Args:
        request: each candidate's request; any order.
        num_requests: requests.
    """

    def __init__(self, request: Int[Tensor, " candidates"], num_requests: int) -> None:
        request = request.long()
        counts = torch.bincount(request, minlength=num_requests)
        self._num_requests = num_requests
        self._width = max(int(counts.max()), 1) if counts.numel() else 1
        """Candidates of the largest request."""
        order = request.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(request), device=request.device) - starts[request[order]]
        self._slot = torch.empty_like(order).scatter_(0, order, place) + request * self._width
        """[candidates]: each one's row in [requests * width]."""

    def attend(
        self,
        q: Float[Tensor, "candidates heads fields head_dim"],
        k: Float[Tensor, "candidates heads fields head_dim"],
        v: Float[Tensor, "candidates heads fields head_dim"],
        events_k: Float[Tensor, "requests heads events head_dim"],
        events_v: Float[Tensor, "requests heads events head_dim"],
        *,
        mask: Bool[Tensor, "requests events"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "candidates heads fields head_dim"]:
        """One softmax over the request's events and the candidate's own fields.

        Args:
            q: queries of the candidates' fields.
            k: their keys.
            v: their values.
            events_k: keys of the requests' events.
            events_v: values of the requests' events.
            mask: False at padding; None: all events are real.
            causal: whether a field reads only itself and the fields before it; else all.
        """
        q, k, v = (self._side_by_side(part) for part in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        fields, events = q.shape[3], events_k.shape[2]
        past = q.flatten(2, 3) @ events_k.mT  # [requests, heads, width * fields, events]
        if mask is not None:
            past = past.masked_fill(~mask[:, None, None], -torch.inf)
        own = q @ k.mT
        if causal:
            before = torch.ones(fields, fields, dtype=torch.bool, device=q.device).tril()
            own = own.masked_fill(~before, -torch.inf)
        # [requests, heads, width, fields, events + fields]
        scores = torch.cat([torch.unflatten(past, 2, (-1, fields)), own], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(v.dtype)
        from_events, from_fields = torch.split(weights, [events, fields], dim=-1)
        found = torch.unflatten(from_events.flatten(2, 3) @ events_v, 2, (-1, fields))
        return self._by_candidate(found + from_fields @ v)

    def read(
        self,
        q: Float[Tensor, "candidates heads fields head_dim"],
        events_k: Float[Tensor, "requests heads events head_dim"],
        events_v: Float[Tensor, "requests heads events head_dim"],
        *,
        mask: Bool[Tensor, "requests events"] | None = None,
    ) -> Float[Tensor, "candidates heads fields head_dim"]:
        """What the candidates' fields find in the events alone, zeros where there are none.

        Arguments as of `attend`.
        """
        fields = q.shape[2]
        side_by_side = self._side_by_side(q).flatten(2, 3)
        seen = None if mask is None else mask[:, None, None]
        found = attention_of_heads(side_by_side, events_k, events_v, mask=seen)
        return self._by_candidate(torch.unflatten(found, 2, (-1, fields)))

    def _side_by_side(
        self, x: Float[Tensor, "candidates heads fields head_dim"]
    ) -> Float[Tensor, "requests heads width fields head_dim"]:
        """The candidates of every request; zeros where it has fewer than the largest."""
        num_rows = self._num_requests * self._width
        rows = x.new_zeros(num_rows, *x.shape[1:]).index_copy(0, self._slot, x)
        return torch.unflatten(rows, 0, (self._num_requests, self._width)).transpose(1, 2)

    def _by_candidate(
        self, x: Float[Tensor, "requests heads width fields head_dim"]
    ) -> Float[Tensor, "candidates heads fields head_dim"]:
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self._slot)
