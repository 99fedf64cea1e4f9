"""Search in long histories: the few events that a target asks for, and random hash codes for it.

Source of the codes: Charikar, STOC 2002 (SimHash): the side of random planes through zero on which
    a vector lies, a bit for each plane. Two vectors at an angle a lie on the same side of a plane
    with probability 1 - a / pi.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def best_events(
    scores: Float[Tensor, "batch events"], allowed: Bool[Tensor, "batch events"], count: int
) -> tuple[Int[Tensor, "batch found"], Bool[Tensor, "batch found"]]:
    """Where the events with the highest scores stand; of equal ones the latest, which stands last.

    Scores are compared in float32 and get no gradient from here.

    Args:
        scores: one for every event.
        allowed: True at the events that may be found.
        count: events wanted.

    Returns:
        int64 places of `min(count, events)` events, best first, and the mask that is True where an
        event was found: rows that allow fewer have any places at the end.
    """
    length = scores.shape[1]
    # Adding zero makes one zero of two. The bits of floats that are not negative grow with them,
    # those of negative ones fall.
    bits = (scores.detach().float() + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits)
    keys = ordered * length + torch.arange(length, device=scores.device)
    keys = keys.masked_fill(~allowed, torch.iinfo(torch.int64).min)
    index = keys.topk(min(count, length), dim=1).indices
    return index, allowed.gather(1, index)


def events_at(
    index: Int[Tensor, "batch found"], values: Float[Tensor, "batch events dim"]
) -> Float[Tensor, "batch found dim"]:
    """The events at the given places."""
    rows, length = values.shape[:2]
    starts = torch.arange(rows, device=index.device).unsqueeze(1) * length
    found = values.flatten(0, 1).index_select(0, (starts + index).flatten())
    return torch.unflatten(found, 0, index.shape)


class RandomPlanes(nn.Module):
    """Random planes through zero. They are not trained and are saved with the model.

    Their normals come from torch's global generator, as parameters do. Whether two vectors lie on
    the same side is decided in the normals' own precision, under autocast too.

    Args:
        dim: width of the vectors.
        num_planes: planes.
    """

    def __init__(self, dim: int, num_planes: int) -> None:
        super().__init__()
        self.register_buffer("normals", torch.randn(dim, num_planes))
        self.normals: Tensor
        """[dim, planes]."""

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Bool[Tensor, "*shape planes"]:
        """True on the side that a plane's normal points to. No gradient flows."""
        with torch.autocast(x.device.type, enabled=False):
            # A product of a part of wider vectors could not be exported for a batch of no rows.
            return x.detach().to(self.normals.dtype).contiguous() @ self.normals > 0

    def distances(
        self, x: Float[Tensor, "batch events dim"], target: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch events"]:
        """Hamming distances: planes that stand between an event and the target."""
        dtype = self.normals.dtype
        events, asked = (2 * side.to(dtype) - 1 for side in (self(x), self(target)))
        with torch.autocast(x.device.type, enabled=False):
            same_less_other = (events @ asked.unsqueeze(2)).squeeze(2)  # [batch, events]
        return (self.normals.shape[1] - same_less_other) / 2
