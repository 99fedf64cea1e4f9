"""Where a loader stands in its epochs."""


class Place:
    """The epoch and the batch a loader stands at: what `BatchSource` asks of a loader's position.

    Args:
        num_batches: batches of an epoch.
        identity: numbers that tell the data and the settings apart from others.
    """

    epoch: int
    """Epoch, from 0."""
    position: int
    """Batches of the epoch that were handed out."""

    def __init__(self, num_batches: int, identity: dict[str, int]) -> None:
        self.epoch = self.position = 0
        self._resume_at = 0
        self._num_batches = num_batches
        self._identity = identity

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position that was restored for this very one is kept.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative; got {epoch}")
        if epoch != self.epoch:
            self._resume_at = 0
        self.epoch = epoch
        self.position = self._resume_at

    def state(self) -> dict[str, int]:
        """Plain numbers that `restore` takes."""
        return {"epoch": self.epoch, "position": self.position, **self._identity}

    def restore(self, state: dict[str, int]) -> None:
        """Go to a place that `state` gave.

        Raises:
            ValueError: it is a place in other data or with other settings, or beyond the epoch.
        """
        different = [
            f"{name} {state.get(name)}, here {own}"
            for name, own in self._identity.items()
            if state.get(name) != own
        ]
        if different:
            raise ValueError(f"loader state does not fit: {'; '.join(different)}")
        if not 0 <= state["position"] <= self._num_batches:
            raise ValueError(f"position must be 0 to {self._num_batches}; got {state['position']}")
        self.epoch = state["epoch"]
        self._resume_at = self.position = state["position"]

    def remaining(self) -> range:
        """The batches still to come; the iteration after this one starts at the first again."""
        first, self._resume_at = self._resume_at, 0
        self.position = first
        return range(first, self._num_batches)


def count_batches(rows: int, batch_size: int) -> int:
    """Batches of an epoch; a last batch of one row joins the one before."""
    full, rest = divmod(rows, batch_size)
    return max(full + (rest > 1), 1)
