"""RPG: all digits of a long unordered id predicted at once, and items ranked by their digits.

Source: Hou et al., KDD 2025, arXiv:2506.05781.
Equations: item vector = mean_j E[j, c_j], c its digits; h = causal Transformer over item vectors;
    h_j = h + SiLU(W_j h), W_j started at zero; p_j = softmax(cos(h_j, E[j, .]) / temperature);
    loss = mean_j -log p_j(c_j) of the next item; score of an item = mean_j log p_j(c_j).
    Graph decoding: similarity of items = mean_j (cos(E[j, c_j], E[j, c'_j]) + 1) / 2; from random
    items on, each round keeps the best of the items kept before and their nearest neighbours.
Published: Beauty, with 32 digits, NDCG@10 .0464.
Differs from the paper: the digits are those of `opq`, fitted on whatever vectors the catalogue has.
The paper does not say: what a history without items is answered with; here the state of a learned
    vector that stands before every history.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.dropout import Dropout
from rankloom.protocols import Loss
from rankloom.retrieval.generators.causal import CausalConfig, FeedForward, Network, NormName
from rankloom.retrieval.generators.inputs import INIT_STD, newest_items, schema_ids
from rankloom.retrieval.generators.item_graph import search_graph
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import SemanticIds

GRAPH_BLOCK = 256
"""Items whose similarities to all others are held at once."""


class RPGConfig(CausalConfig):
    """Sizes; the paper's are dim 448, 2 layers, 4 heads, hidden 1024, dropout 0.5."""

    num_layers: int = Field(2, ge=1)
    """Layers."""
    norm: NormName = "layer"
    """Norm before each sublayer and at the end."""
    network: Network = FeedForward(hidden_dim=1024, activation="gelu")
    """What follows attention in a layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of units dropped in training: of the input, of hidden units, of what sublayers add."""
    max_length: int = Field(50, ge=1)
    """Items of a history that are read: the newest ones."""
    temperature: float = Field(0.03, gt=0)
    """What cosines are divided by."""


class RPG(nn.Module):
    """Parallel prediction of digits.

    Raises:
        ValueError: the ids are missing, differ in length, are merged, or their levels differ in
            size; or `num_heads` does not divide `dim`.
    """

    training_rows: Literal["users", "prefixes"] = "users"
    """Whole sequences, with a target at each position."""

    def __init__(self, config: RPGConfig, schema: ItemSchema) -> None:
        super().__init__()
        ids = schema_ids(schema, "rpg")
        _check_digits(ids)
        self.max_length = config.max_length
        self.temperature = config.temperature
        num_digits, size = len(ids.level_sizes), ids.level_sizes[0]
        codes = torch.from_numpy(ids.codes).long() + size * torch.arange(num_digits)
        self.register_buffer("digits", codes, persistent=False)
        self.digits: Tensor
        """[items, digits] row of each digit in the embeddings of all digits, one after another."""
        self.embedding = nn.Parameter(torch.empty(num_digits, size, config.dim))
        """[digits, codes, dim]."""
        # DIFF: GPT-2 has no such vector; without it an empty history has no state.
        self.first = nn.Parameter(torch.empty(config.dim))
        self.place = nn.Embedding(config.max_length + 1, config.dim)
        for weight in (self.embedding, self.first, self.place.weight):
            nn.init.normal_(weight, std=INIT_STD)
        self.transformer = config.build_transformer()
        self.heads = nn.Parameter(torch.zeros(num_digits, config.dim, config.dim))
        """[digits, dim, dim] W_j, transposed."""
        self.dropout = Dropout(config.dropout)

    def loss(self, batch: HistoryBatch) -> Loss:
        """Mean cross-entropy over the digits of all targets.

        Raises:
            ValueError: there are no targets.
        """
        if batch.targets is None:
            raise ValueError("rpg learns from batches with targets; got targets=None")
        batch = newest_items(batch, self.max_length)
        assert batch.targets is not None
        targets = batch.targets.flatten()
        places = targets.nonzero().squeeze(1)  # [labels]
        states = self._states(batch)[:, 1:].flatten(0, 1).index_select(0, places)
        logits = self._digit_logits(states)  # [labels, digits, codes]
        codes = self.digits[targets.index_select(0, places) - 1] % logits.shape[2]
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), codes.flatten(), reduction="sum"
        )
        return Loss(total / max(codes.numel(), 1))

    def score_items(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Mean log-probability of every item's digits: exact."""
        return _mean_over_digits(self.digit_log_probabilities(batch).flatten(1), self.digits)

    def digit_log_probabilities(self, batch: HistoryBatch) -> Float[Tensor, "batch digits codes"]:
        """Log-probabilities of the next item's digits, in float32."""
        batch = newest_items(batch, self.max_length)
        states = self._states(batch)
        last = batch.lengths[:, None, None].expand(-1, 1, states.shape[2])
        logits = self._digit_logits(states.gather(1, last).squeeze(1))
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def neighbour_graph(self, num_neighbours: int) -> Int[Tensor, "items neighbours"]:
        """The items most similar to each item, itself among them, for `recommend_by_graph`.

        Args:
            num_neighbours: neighbours of an item; at most all items are taken.

        Returns:
            int64 rows of items (number - 1). They follow the embeddings: make it anew once those
            have changed.

        Raises:
            ValueError: fewer than one neighbour.
        """
        if num_neighbours < 1:
            raise ValueError(f"num_neighbours must be at least 1; got {num_neighbours}")
        unit = functional.normalize(self.embedding, dim=-1)
        alike = (unit @ unit.mT + 1) / 2  # [digits, codes, codes]
        by_row = alike.flatten(0, 1)  # [digits * codes, codes]
        count = min(num_neighbours, len(self.digits))
        blocks = []
        for block in torch.split(self.digits, GRAPH_BLOCK):
            # [block, digits, codes]: how like each code of each digit is to an item's own one.
            table = by_row[block].flatten(1)
            blocks.append(_mean_over_digits(table, self.digits).topk(count, dim=1).indices)
        return torch.cat(blocks)

    @torch.no_grad()
    def recommend_by_graph(
        self,
        batch: HistoryBatch,
        graph: Int[Tensor, "items neighbours"],
        *,
        count: int,
        num_beams: int,
        num_rounds: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
        """The best items that are met on a graph; only those are scored.

        Args:
            batch: histories.
            graph: of `neighbour_graph`.
            count: items wanted; at most `num_beams`.
            num_beams: items kept after each round.
            num_rounds: rounds of neighbours.
            generator: of the random first items, on the CPU; None: torch's default one.

        Returns:
            int64 item numbers, best first, 0 where fewer were met, and their scores, -inf there.

        Raises:
            ValueError: `count` is beyond `num_beams`.
        """
        log_p = self.digit_log_probabilities(batch).flatten(1)
        return search_graph(
            lambda items: _mean_over_some(log_p, self.digits[items]),
            graph,
            batch.size,
            count=count,
            num_beams=num_beams,
            num_rounds=num_rounds,
            generator=generator,
        )

    def _states(self, batch: HistoryBatch) -> Float[Tensor, "batch seq_plus_one dim"]:
        """States after the learned first vector and after each item."""
        table = self.embedding.flatten(0, 1)
        rows = self.digits[(batch.items - 1).clamp(min=0)]  # [batch, seq, digits]
        vectors = functional.embedding_bag(rows.flatten(0, 1), table, mode="mean")
        vectors = torch.unflatten(vectors, 0, batch.items.shape)
        x = torch.cat([self.first.expand(batch.size, 1, -1), vectors], dim=1)
        return self.transformer(self.dropout(x + self.place.weight[: x.shape[1]]))

    def _digit_logits(
        self, states: Float[Tensor, "rows dim"]
    ) -> Float[Tensor, "rows digits codes"]:
        by_digit = states + functional.silu(states @ self.heads)  # [digits, rows, dim]
        unit = functional.normalize(by_digit.float(), dim=-1)
        # Over so low a temperature a cosine of half precision would be wrong by a tenth.
        with torch.autocast(states.device.type, enabled=False):
            cosines = unit @ functional.normalize(self.embedding.float(), dim=-1).mT
        return cosines.transpose(0, 1) / self.temperature


def _mean_over_digits(
    table: Float[Tensor, "batch digit_codes"], digits: Int[Tensor, "items digits"]
) -> Float[Tensor, "batch items"]:
    """Mean of what a table has for each item's digits: one pass of gathered sums."""
    return functional.embedding_bag(digits, table.mT.contiguous(), mode="mean").mT


def _mean_over_some(
    table: Float[Tensor, "batch digit_codes"], digits: Int[Tensor, "batch items digits"]
) -> Float[Tensor, "batch items"]:
    """The same where every row has items of its own."""
    return table.gather(1, digits.flatten(1)).view(digits.shape).mean(2)


def _check_digits(ids: SemanticIds) -> None:
    if len(ids.merges) or (ids.codes < 0).any() or len(set(ids.level_sizes)) != 1:
        lengths = sorted(set(ids.lengths.tolist()))
        raise ValueError(
            "rpg needs ids of one length, of levels of one size, without merges, such as those of "
            f"opq; got lengths {lengths}, level sizes {ids.level_sizes}, {len(ids.merges)} merges"
        )
