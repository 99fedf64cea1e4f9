"""COBRA: sparse codes, then a dense vector, item by item; beams are fused with nearest neighbours.

Source: Yang et al., NeurIPS 2025, arXiv:2503.02453.
Equations: sequence = START, then of every item its codes and its vector v = f(item);
    p(id | history) = prod_l softmax(E h[l])[code l]; query q = W h at the id's last code;
    loss = mean cross-entropy of codes
        + weight * mean of -log softmax over the batch's items(cos(q, v) / temperature)[target];
    recommendation by BeamFusion (`beam_fusion`).
Published: Beauty, Recall@10 .0725, NDCG@10 .0456, with 3 levels of 32 codes: items share ids, and
    the vectors tell them apart.
Differs from the paper: f is a small network over the items' given vectors, where the paper trains a
    Transformer over their text. An id's end is predicted too (END), which costs nothing where ids
    have one length; the vector is read at END's place, whose embedding tells it from codes. W is
    added. The batch's softmax holds every item once.
The paper does not say: the temperature; here 0.2, as public code takes. tau
    and psi are from memory.
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankloom.layers.linear_cross_entropy import linear_cross_entropy
from rankloom.layers.mlp import MLP, linear
from rankloom.protocols import Loss
from rankloom.retrieval.decoding import beam_search
from rankloom.retrieval.generators.beam_fusion import fuse_beams
from rankloom.retrieval.generators.inputs import schema_vectors
from rankloom.retrieval.generators.token_decoder import (
    DecoderState,
    TokenDecoder,
    TokenDecoderConfig,
)
from rankloom.retrieval.generators.token_generator import TokenGenerator
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.semantic_ids import END
from rankloom.retrieval.trie import Trie

ITEM_BLOCK = 2**16
"""Items whose vectors are made at once."""


class CobraConfig(TokenDecoderConfig):
    """Sizes, the dense part and its fusion."""

    num_layers: int = Field(2, ge=1)
    """Layers."""
    dense_hidden: int = Field(256, gt=0)
    """Width of the hidden layer of the network over item vectors."""
    dense_temperature: float = Field(0.2, gt=0)
    """What cosines are divided by in training."""
    dense_weight: float = Field(1.0, ge=0)
    """Weight of the dense loss."""
    tau: float = Field(0.9, gt=0)
    """Weight of a beam's log-likelihood in the fused score."""
    psi: float = Field(16.0, gt=0)
    """Weight of a cosine in the fused score."""


class DenseEncoder(nn.Module):
    """A vector of every item, made of its given one.

    Args:
        vectors: [items + 1, width] given vectors; row 0 is padding.
        hidden_dim: width of the hidden layer.
        dim: width of what it makes.
    """

    def __init__(
        self, vectors: Float[Tensor, "items_plus_one width"], hidden_dim: int, dim: int
    ) -> None:
        super().__init__()
        # DIFF: the paper's encoder reads the item's text.
        self.register_buffer("vectors", functional.normalize(vectors, dim=1), persistent=False)
        self.vectors: Tensor
        self.network = MLP(vectors.shape[1], [hidden_dim], out_features=dim, activation="gelu")

    def forward(self, items: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Vectors of item numbers, of any length; each item is computed once."""
        distinct, place = torch.unique(items, return_inverse=True)
        return functional.embedding(place, self.network(self.vectors[distinct]))


class _OneContext:
    """A generator whose encoded histories are kept for a second reading."""

    def __init__(self, generator: "Cobra") -> None:
        self.training_rows = generator.training_rows
        self.advance, self.logits = generator.advance, generator.logits
        self.logits_of, self.loss = generator.logits_of, generator.loss
        self._start = generator.start
        self.states: list[DecoderState] = []

    def start(self, batch: HistoryBatch) -> tuple[Float[Tensor, "batch 1 dim"], DecoderState]:
        hidden, state = self._start(batch)
        self.states.append(state)
        return hidden, state


class Cobra(TokenGenerator):
    """The cascade. Its sparse part is a `Generator`; `recommend` uses both.

    Raises:
        ValueError: the schema has no ids or no vectors, or `num_heads` does not divide `dim`.
    """

    def __init__(self, config: CobraConfig, schema: ItemSchema) -> None:
        vectors = schema_vectors(schema, "cobra")
        dense = DenseEncoder(vectors, config.dense_hidden, config.dim)
        super().__init__(TokenDecoder(config, schema, model="cobra", item_part=dense))
        self.dense = dense
        # DIFF: the paper compares the state itself.
        self.query = linear(config.dim, config.dim, bias=False)
        self.config = config

    def loss(self, batch: HistoryBatch) -> Loss:
        """Codes and vectors of all targets.

        Raises:
            ValueError: there are no targets, or a target is not the item that follows.
        """
        states, labels, items = self.tokens.train_states(batch)
        sparse = self.tokens.cross_entropy(states, labels)
        ends = (labels == END).nonzero().squeeze(1)  # the state after an id's last code
        distinct, target = torch.unique(items.index_select(0, ends), return_inverse=True)
        unit = functional.normalize(self.dense(distinct).float(), dim=1)  # [distinct, dim]
        queries = functional.normalize(self.query(states.index_select(0, ends)).float(), dim=1)
        # Cosines of all queries and vectors are the logits.
        dense = linear_cross_entropy(queries / self.config.dense_temperature, unit, target)
        return Loss(sparse + self.config.dense_weight * dense, {"sparse": sparse, "dense": dense})

    @torch.no_grad()
    def item_vectors(self) -> Float[Tensor, "items_plus_one dim"]:
        """Unit vectors of all items by number, in float32, for `recommend`."""
        numbers = torch.arange(len(self.dense.vectors), device=self.dense.vectors.device)
        blocks = [self.dense(block).float() for block in torch.split(numbers, ITEM_BLOCK)]
        return functional.normalize(torch.cat(blocks), dim=1)

    @torch.no_grad()
    def recommend(
        self,
        batch: HistoryBatch,
        trie: Trie,
        *,
        count: int,
        beams: int,
        item_vectors: Float[Tensor, "items_plus_one dim"] | None = None,
        blocked: Int[Tensor, "batch blocked"] | None = None,
        memory_bytes: int | None = None,
    ) -> tuple[Int[Tensor, "batch count"], Float[Tensor, "batch count"]]:
        """Items by BeamFusion: beams of codes, a dense query each, the items of their ids.

        Args:
            batch: histories, in evaluation mode.
            trie: the catalogue.
            count: items wanted.
            beams: ids kept.
            item_vectors: of `item_vectors`, where it is to be made once; None: made here.
            blocked: numbers of items that a request may not get; 0: none.
            memory_bytes: as of `beam_search`. The encoded histories of the whole batch are kept.

        Returns:
            int64 item numbers, best first, 0 where there are fewer, and the logarithms of their
            fused scores, -inf there.
        """
        vectors = self.item_vectors() if item_vectors is None else item_vectors
        kept = _OneContext(self)
        decoded = beam_search(
            kept, batch, trie, beams=beams, blocked=blocked, memory_bytes=memory_bytes
        )
        # An id's tokens are those of its first item.
        item = trie.leaf_items[trie.leaf_offsets[decoded.leaves.clamp(min=0)].long()].long()
        tokens = self.tokens.history.of_items(item)  # [batch, beams, width]
        sizes = [len(state.place) for state in kept.states]
        queries = torch.cat(
            [
                self._queries(state, part)
                for state, part in zip(kept.states, torch.split(tokens, sizes), strict=True)
            ]
            or [vectors.new_zeros(0, beams, vectors.shape[1])]
        )
        return fuse_beams(
            decoded,
            queries,
            vectors,
            trie,
            count=count,
            tau=self.config.tau,
            psi=self.config.psi,
            blocked=blocked,
        )

    def _queries(
        self, state: DecoderState, tokens: Int[Tensor, "batch beams width"]
    ) -> Float[Tensor, "batch beams dim"]:
        """Dense query of each id, from the state after its last code."""
        batch, beams, width = tokens.shape
        last = torch.zeros(batch, beams, self.query.in_features, device=tokens.device)
        parents = torch.zeros(batch, beams, dtype=torch.int64, device=tokens.device)
        for step in range(width - 1):
            hidden, state = self.advance(state, tokens[:, :, step], parents)
            last = torch.where((tokens[:, :, step + 1] == END).unsqueeze(2), hidden, last)
            parents = torch.arange(beams, device=tokens.device).expand(batch, -1)
        return self.query(last)
