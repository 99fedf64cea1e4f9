"""What token layers read of a batch."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenSet:
    """Tokens of some rows: events of their sequences, oldest first, then fields."""

    x: Float[Tensor, "batch tokens dim"]
    """Event tokens, aligned to the right (padding comes first), then field tokens."""
    num_events: int = 0
    """Event tokens, the same for all rows; 0: there are none."""
    mask: Bool[Tensor, "batch tokens"] | None = None
    """True at real tokens; None: all are."""
    time: Int[Tensor, "batch tokens"] | None = None
    """int64 seconds of each event, the row's own time at fields; None where the data has none."""

    @property
    def fields(self) -> Float[Tensor, "batch field_tokens dim"]:
        """The field tokens."""
        return self.x[:, self.num_events :]

    @property
    def events(self) -> Float[Tensor, "batch events dim"]:
        """The event tokens."""
        return self.x[:, : self.num_events]
