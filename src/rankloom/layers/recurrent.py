"""Recurrent networks over events: GRU, and GRUs that follow the events by their attention weights.

Sequences stand at the left here, their padding after them (`align_left`): a state starts at the
first event, and what comes after the last one changes nothing that is read.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rankloom.layers.event_search import events_at


def align_left(
    mask: Bool[Tensor, "batch events"],
) -> tuple[Int[Tensor, "batch events"], Bool[Tensor, "batch events"]]:
    """Where the events of left-padded rows go, so that padding comes last.

    Args:
        mask: True at real events, which stand at the right.

    Returns:
        For every new place the old one, padding included (a rotation of each row), and the new
        mask.
    """
    length = mask.shape[1]
    count = mask.sum(1, keepdim=True)  # [batch, 1]
    places = torch.arange(length, device=mask.device)
    return (places - count).remainder(length), places < count


class GRU(nn.Module):
    """Gated recurrent units: the state after every event.

    Source: Cho et al., EMNLP 2014, arXiv:1406.1078, in torch's form, from a state of zeros:
        r, z = sigmoid(W x + b + U h + c),  n = tanh(W x + b + r * (U h + c))
        h'   = (1 - z) * n + z * h
    where r, z and n have weights of their own.

    torch's own GRU takes a CPU no less time than this loop over events, and programs that hold it
    cannot be compiled as one graph or exported for any number of rows.

    Args:
        in_dim: width of an event.
        dim: width of a state.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.of_event = _gate_layer(in_dim, 3 * dim, dim)
        """W and b of r, z and n, one below another."""
        self.of_state = _gate_layer(dim, 3 * dim, dim)
        """U and c."""
        self.dim = dim

    def forward(self, x: Float[Tensor, "batch events in_dim"]) -> Float[Tensor, "batch events dim"]:
        """The states; at padding they mean nothing."""
        h = x.new_zeros(x.shape[0], self.dim)
        states = []
        for of_event in self.of_event(x).unbind(1):
            _, z, n = _gates(of_event, self.of_state(h))
            h = n + z * (h - n)
            states.append(h)
        return torch.stack(states, dim=1)


class AIGRU(nn.Module):
    """A GRU whose inputs are multiplied by their attention weights (DIEN, section 4.3).

    Args:
        in_dim: width of an input.
        dim: width of a state.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.gru = GRU(in_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch events in_dim"],
        weights: Float[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch dim"]:
        """The state after the last event; zeros without events.

        Args:
            x: the inputs.
            weights: their attention weights.
            mask: True at real events; padding comes last.
        """
        states = self.gru(weights.unsqueeze(2) * x)
        count = mask.sum(1, keepdim=True)  # [batch, 1]
        return events_at((count - 1).clamp(min=0), states).squeeze(1) * (count > 0)


class _EvolvingGRU(nn.Module):
    """A GRU whose steps, h' = h + rate * (n - h), follow attention weights."""

    num_gates: ClassVar[int]
    """Gates and candidates, each as wide as a state."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.of_event = _gate_layer(in_dim, self.num_gates * dim, dim)
        """W and b of all gates, one below another, r first and n last."""
        self.of_state = _gate_layer(dim, self.num_gates * dim, dim)
        self.dim = dim

    def forward(
        self,
        x: Float[Tensor, "batch events in_dim"],
        weights: Float[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch dim"]:
        """The state after the last event; arguments as of `AIGRU`, the weights zero at padding."""
        h = x.new_zeros(x.shape[0], self.dim)
        shares = weights.unsqueeze(2).unbind(1)  # each [batch, 1]
        for of_event, share in zip(self.of_event(x).unbind(1), shares, strict=True):
            rate, n = self.step(of_event, self.of_state(h), share)
            h = h + rate * (n - h)
        return h

    def step(self, of_event: Tensor, of_state: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The rate and n [batch, dim]; of the two layers' outputs and the weights [batch, 1]."""
        raise NotImplementedError


class AGRU(_EvolvingGRU):
    """A GRU with the attention weight for its update gate (DIEN, section 4.3).

    h' = (1 - a) h + a n; reset gate and n as in `GRU`.

    Args:
        in_dim: width of an input.
        dim: width of a state.
    """

    num_gates = 2

    def step(self, of_event: Tensor, of_state: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The weight itself, and n."""
        (r_event, n_event), (r_state, n_state) = of_event.chunk(2, dim=1), of_state.chunk(2, dim=1)
        return share, torch.tanh(n_event + torch.sigmoid(r_event + r_state) * n_state)


class AUGRU(_EvolvingGRU):
    """A GRU whose update gate is multiplied by the attention weight (DIEN, section 4.3).

    h' = (1 - a u) * h + a u * n, with u = 1 - z; z and n as in `GRU`.

    Args:
        in_dim: width of an input.
        dim: width of a state.
    """

    num_gates = 3

    def step(self, of_event: Tensor, of_state: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The weight times the update gate, and n."""
        _, z, n = _gates(of_event, of_state)
        return share - share * z, n


def _gates(of_event: Tensor, of_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r, z and n of a step, each [batch, dim], from the two layers' [batch, 3 dim]."""
    dim = of_state.shape[1] // 3
    r, z = torch.sigmoid(of_event[:, : 2 * dim] + of_state[:, : 2 * dim]).chunk(2, dim=1)
    return r, z, torch.tanh(of_event[:, 2 * dim :] + r * of_state[:, 2 * dim :])


def _gate_layer(in_dim: int, out_dim: int, state_dim: int) -> nn.Linear:
    """A linear layer that starts as torch's GRU does."""
    layer = nn.Linear(in_dim, out_dim)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(state_dim**-0.5), state_dim**-0.5)
    return layer
