"""FAMAE: item vectors from fields, learned by predicting masked fields of the next item.

Source: ReSID, arXiv:2602.02338, field-aware masked auto-encoding; gaoq is fitted on its vectors.
Equations: an item has J fields, of which the first is the item itself. Token t of a history is
sum_j e[j](f[t, j]) + p[t]. The last token is the target's, some of whose fields, K ~ U{1 .. J} of
them, are replaced by vectors m[j]. With h the last hidden state of a bidirectional Transformer,
loss = sum over masked j of -log softmax_v(sqrt(d) cos(h, e[j](v)))[f[j]]. The item vector is the
concatenation of its J field embeddings.
Differs from the paper: see `# DIFF:`. Large vocabularies have 128 sampled negatives there, all of
their values count here. All fields weigh alike (alpha_j = 1).
The paper does not say: how missing values (0) are treated (here they add zeros and are predicted by
nobody), where positions begin (here at the target, going back), how embeddings start.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.config import Config
from rankloom.layers.dropout import Dropout
from rankloom.layers.encoder import EncoderLayer
from rankloom.protocols import Loss
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema

INIT_STD = 0.02
"""Standard deviation of new embeddings."""


class FAMAEConfig(Config):
    """Settings of field-aware masked auto-encoding."""

    dim: int = Field(128, gt=0)
    """Width of a field's embedding and of the Transformer."""
    num_layers: int = Field(2, ge=1)
    """Transformer layers."""
    num_heads: int = Field(4, ge=1)
    """Heads; they must divide `dim`."""
    hidden_dim: int = Field(512, gt=0)
    """Width of the hidden layer of each layer's network."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of units dropped in training."""
    max_length: int = Field(50, ge=1)
    """Items of a history that are read, the newest."""


class FAMAE(nn.Module):
    """The encoder, and the field embeddings that it leaves behind.

    Without side fields in the schema the item number is the only field.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    training_rows: Literal["users", "prefixes"] = "prefixes"
    fields: Tensor

    def __init__(self, config: FAMAEConfig, schema: ItemSchema) -> None:
        super().__init__()
        self.config = config
        fields = torch.arange(schema.num_items + 1)[:, None]
        if schema.attributes is not None:
            side = functional.pad(schema.attributes.cpu().long(), (0, 0, 1, 0))
            fields = torch.cat([fields, side], dim=1)
        self.register_buffer("fields", fields)
        """[items + 1, fields] values of each item number's fields, the item number first."""
        sizes = (self.fields.amax(0) + 1).tolist()
        self.tables = nn.ParameterList(torch.empty(size, config.dim) for size in sizes)
        """For each field [values, dim]; row 0, of a missing value, stays zero."""
        self.masks = nn.Parameter(torch.empty(len(sizes), config.dim))
        """[fields, dim] what stands for a masked field."""
        self.positions = nn.Parameter(torch.empty(config.max_length + 1, config.dim))
        """[max_length + 1, dim]: how far before the target an item stands."""
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.dim,
                config.num_heads,
                config.hidden_dim,
                attention_dropout=config.dropout,
                dropout=config.dropout,
                hidden_dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.dropout = Dropout(config.dropout)
        for weight in (self.masks, self.positions, *self.tables):
            nn.init.normal_(weight, std=INIT_STD)
        for table in self.tables:
            nn.init.zeros_(table[0])

    def forward(
        self, items: Int[Tensor, "batch seq"], masked: Bool[Tensor, "batch fields"]
    ) -> Float[Tensor, "batch dim"]:
        """The state of each row's last item, some of whose fields are hidden.

        Args:
            items: item numbers, the target last, then 0; one at least in each row.
            masked: True at fields of the target that are hidden.
        """
        embedded = self.embed_fields(items)  # [batch, seq, fields, dim]
        last = (items > 0).sum(1) - 1  # [batch]
        row = torch.arange(len(items), device=items.device)
        hidden = torch.zeros_like(embedded[..., 0], dtype=torch.bool)
        hidden[row, last] = masked
        tokens = torch.where(hidden[..., None], self.masks, embedded).sum(2)  # [batch, seq, dim]
        back = last[:, None] - torch.arange(items.shape[1], device=items.device)
        tokens = self.dropout(tokens + self.positions[back.clamp(min=0)])
        real = (items > 0)[:, None, None]  # [batch, 1, 1, seq]
        for layer in self.layers:
            tokens = layer(tokens, real)
        return tokens[row, last]

    def loss(self, batch: HistoryBatch) -> Loss:
        """Cross-entropy of the masked fields of each row's target, a mean over rows.

        Rows without a target do not count. Fields are masked by torch's default generator.

        Raises:
            ValueError: there are no targets.
        """
        if batch.targets is None:
            raise ValueError("famae learns from batches with targets; got targets=None")
        items, targets = self.with_targets(batch.items, batch.targets)
        masked = self.draw_masks(targets)
        state = self(items, masked)
        values = self.fields[targets]  # [batch, fields]
        total = state.new_zeros(())
        parts = {}
        for field in range(values.shape[1]):
            # DIFF: a missing value is never predicted.
            wanted = values[:, field] * masked[:, field]
            lost = functional.cross_entropy(
                self.field_logits(state, field), wanted, ignore_index=0, reduction="sum"
            ) / max(len(targets), 1)
            total = total + lost
            parts[f"field_{field}"] = lost
        return Loss(total, parts)

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Scores of all items as the next one, all of whose fields are hidden.

        The paper's first measure of a checkpoint; the log-probability of the item number alone.
        """
        newest = self.with_targets(batch.items, torch.ones_like(batch.items[:, 0]))[0]
        hidden = torch.ones(len(newest), self.fields.shape[1], dtype=torch.bool)
        state = self(newest, hidden.to(newest.device))
        return self.field_logits(state, 0)[:, 1:]

    @torch.no_grad()
    def item_vectors(self) -> Float[Tensor, "items width"]:
        """The field embeddings of each item side by side; row i is of item number i + 1."""
        return self.embed_fields(
            torch.arange(1, len(self.fields), device=self.fields.device)
        ).flatten(1)

    def embed_fields(self, items: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape fields dim"]:
        """Embeddings of the items' fields; zeros for padding and missing values."""
        values = self.fields[items]
        embedded = [
            functional.embedding(values[..., field], table, padding_idx=0)
            for field, table in enumerate(self.tables)
        ]
        return torch.stack(embedded, -2)

    def field_logits(
        self, state: Float[Tensor, "batch dim"], field: int
    ) -> Float[Tensor, "batch values"]:
        """sqrt(d) cos(h, e(v)) of all values of a field; minus infinity of a missing one."""
        table = self.tables[field]
        cosines = functional.normalize(state, dim=1) @ functional.normalize(table, dim=1).T
        missing = torch.arange(len(table), device=state.device) == 0
        return (self.config.dim**0.5 * cosines).masked_fill(missing, -torch.inf)

    def with_targets(
        self, items: Int[Tensor, "batch seq"], targets: Int[Tensor, "..."]
    ) -> tuple[Int[Tensor, "rows length"], Int[Tensor, " rows"]]:
        """The newest items of each row with its target behind them, and the targets.

        Args:
            items: histories.
            targets: [batch, seq], one at the last position of a row, or none; or [batch].
        """
        if targets.ndim == 2:
            targets = targets.sum(1)
            items, targets = items[targets > 0], targets[targets > 0]
        lengths = (items > 0).sum(1)
        width = min(items.shape[1], self.config.max_length)
        drop = (lengths - width).clamp(min=0)[:, None]
        place = torch.arange(width, device=items.device) + drop
        newest = torch.cat([items.gather(1, place), torch.zeros_like(items[:, :1])], 1)
        newest = newest.scatter(1, (lengths - drop[:, 0])[:, None], targets[:, None])
        return newest, targets

    def draw_masks(self, targets: Int[Tensor, " rows"]) -> Bool[Tensor, "rows fields"]:
        """For each row a number of fields, all numbers alike, and so many of them at random."""
        num_fields = self.fields.shape[1]
        count = torch.randint(1, num_fields + 1, (len(targets), 1), device=targets.device)
        order = torch.rand(len(targets), num_fields, device=targets.device).argsort(1).argsort(1)
        return order < count
