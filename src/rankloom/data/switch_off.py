"""Fields switched off: rows as if a field were not known of them.

A log shows what its own ranking put in front of people: the position of an impression explains
much of its click, and nothing knows it when the ranking is made. A model may learn with such a
field and be scored without it.

A field that is switched off is missing, as at serving when a request leaves its cell empty:

- categorical: padding, id 0, which is what the data set stores for an empty cell. Its vector is
  zero, so the field adds nothing. It is not the out-of-vocabulary id: that row of the table stands
  for the rare values it was trained on, or was never trained at all.
- sequence group: no events. vector field: zeros.
- numeric: 0, where the field's vector times its value is zero too; an empty cell may be stored as
  another number (`fill` of the table schema). For a standardised field 0 is the mean.

Fields that an entity carries are switched off by their own names, not by that of its key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from rankloom.batch import Batch, clear_rows
from rankloom.data.order import generator_for
from rankloom.schema import PADDING, Schema

_DROPOUT = 4  # keeps the streams apart from those of the orders


class SwitchOff:
    """Switches fields off in every row: `map(SwitchOff(schema, ["position"]), loader)`.

    Args:
        schema: of the batches.
        names: categorical, numeric and vector fields and sequence groups; none leaves batches as
            they are.

    Raises:
        ValueError: a name is no field, or stands there twice; the message lists the fields.
    """

    def __init__(self, schema: Schema, names: Iterable[str]) -> None:
        self._schema = schema
        self._names = tuple(names)
        check_fields(schema, self._names)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the fields switched off."""
        everywhere = torch.ones(batch.size, dtype=torch.bool, device=batch.categorical.device)
        return switch_off(batch, self._schema, dict.fromkeys(self._names, everywhere))


class FieldDropout:
    """Switches fields off in a random share of the rows, so that a model learns to do without.

    Which rows depends on (seed, epoch, position, rank) alone. Fields are drawn one by one.

    Args:
        schema: of the batches.
        shares: field -> share of the rows.
        seed: seed of the draw.

    Raises:
        ValueError: a name is no field; the message lists the fields.
    """

    def __init__(self, schema: Schema, shares: Mapping[str, float], seed: int) -> None:
        self._schema = schema
        self._shares = dict(shares)
        self._seed = seed
        check_fields(schema, tuple(self._shares))

    def __call__(self, batch: Batch, epoch: int, position: int, rank: int = 0) -> Batch:
        """The batch with fields switched off here and there.

        Args:
            batch: training rows.
            epoch: the epoch under way.
            position: which batch of the epoch it is.
            rank: the process it belongs to.
        """
        if not self._shares:
            return batch
        generator = generator_for(self._seed, epoch, position, _DROPOUT, rank)
        device = batch.categorical.device
        rows = {
            # Drawn on the CPU, so that an accelerator drops the same rows.
            name: (torch.rand(batch.size, generator=generator) < share).to(
                device, non_blocking=True
            )
            for name, share in self._shares.items()
        }
        return switch_off(batch, self._schema, rows)


def switch_off(batch: Batch, schema: Schema, rows: Mapping[str, Bool[Tensor, " batch"]]) -> Batch:
    """The batch with fields switched off in the rows that are True; the batch itself is kept.

    Args:
        batch: any rows.
        schema: of the batch.
        rows: field -> where to switch it off.
    """
    if not rows:
        return batch
    categorical = _with_columns(
        batch.categorical, [field.name for field in schema.categorical], rows, PADDING
    )
    numeric = _with_columns(batch.numeric, [field.name for field in schema.numeric], rows, 0)
    vectors = {
        name: value.masked_fill(rows[name].unsqueeze(1), 0) if name in rows else value
        for name, value in batch.vectors.items()
    }
    sequences = {
        name: clear_rows(group, rows[name]) if name in rows else group
        for name, group in batch.sequences.items()
    }
    return replace(
        batch, categorical=categorical, numeric=numeric, vectors=vectors, sequences=sequences
    )


def check_fields(schema: Schema, names: tuple[str, ...]) -> None:
    """Check that all of them are fields.

    Raises:
        ValueError: one is not, or stands there twice; the message lists the fields.
    """
    known = [*schema.field_names, *(vector.name for vector in schema.vectors)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"no field {', '.join(unknown)} to switch off; the fields are {', '.join(known)}"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"switch each field off once; repeated: {', '.join(repeated)}")


def _with_columns(
    values: Tensor, names: list[str], rows: Mapping[str, Tensor], absent: int
) -> Tensor:
    """The columns [batch, columns] with `absent` where they are switched off."""
    columns = [index for index, name in enumerate(names) if name in rows]
    if not columns:
        return values
    changed = values.clone()
    for column in columns:
        changed[:, column].masked_fill_(rows[names[column]], absent)
    return changed
