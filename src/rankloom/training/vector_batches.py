"""Training batches of item vectors, for tokenizers that are trained by steps."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from rankloom.data.order import generator_for
from rankloom.retrieval.protocols import VectorBatch
from rankloom.training.place import Place, count_batches


class VectorBatches:
    """Batches of the rows of a table of item vectors, every row once per epoch, shuffled.

    What a batch holds depends on (seed, epoch, position) alone, so that a training that is taken up
    anywhere goes on exactly. A last batch of one row joins the one before it.

    Args:
        vectors: float32 item vectors; they stay where they are, and batches are made there.
        batch_size: rows of a batch.
        epochs: planned epochs: what a batch's `progress` is a share of. Epochs beyond them have the
            progress of the last planned batch.
        seed: seed of the order.

    Raises:
        ValueError: sizes or seed that make no sense, or no vectors.
    """

    order = "full"
    """How rows are ordered, for the record."""
    batch_size: int
    """Rows of a batch."""

    def __init__(
        self,
        vectors: Float[Tensor, "items width"],
        batch_size: int,
        *,
        epochs: int,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or epochs < 1 or seed < 0:
            raise ValueError(
                "batch_size and epochs must be positive and seed not negative; "
                f"got batch_size={batch_size}, epochs={epochs}, seed={seed}"
            )
        if len(vectors) == 0:
            raise ValueError("a tokenizer is trained on at least one item; got no vectors")
        self.batch_size = batch_size
        self._vectors, self._seed = vectors, seed
        self._num_batches = count_batches(len(vectors), batch_size)
        self._total = epochs * self._num_batches
        identity = {
            "seed": seed,
            "rows": len(vectors),
            "batch_size": batch_size,
            "epochs": epochs,
        }
        self._place = Place(self._num_batches, identity)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next `iter` runs through; errors as in `Place.set_epoch`."""
        self._place.set_epoch(epoch)

    def state(self) -> dict[str, int]:
        """The position after the batch given last."""
        return self._place.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go to a position that `state` gave; errors as in `Place.restore`."""
        self._place.restore(state)

    def __iter__(self) -> Iterator[VectorBatch]:
        """Batches from the current position to the end of the epoch."""
        remaining, epoch = self._place.remaining(), self._place.epoch
        generator = generator_for(self._seed, epoch)
        order = torch.randperm(len(self._vectors), generator=generator).to(self._vectors.device)
        for number in remaining:
            start = number * self.batch_size
            last = number + 1 == self._num_batches
            rows = order[start:] if last else order[start : start + self.batch_size]
            done = min(epoch * self._num_batches + number, self._total - 1)
            self._place.position = number + 1
            yield VectorBatch(rows, self._vectors.index_select(0, rows), done / self._total)
