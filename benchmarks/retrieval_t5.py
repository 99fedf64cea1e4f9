"""The peer of decoding: Hugging Face's T5 and its `generate`, held to a catalogue by a dict trie.

As research code does it: the trie is nested dictionaries, `prefix_allowed_tokens_fn` walks it in
Python for every beam at every step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rankloom.layers.t5 import T5Attention
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.histories import HistoryBatch
from rankloom.retrieval.semantic_ids import END, PADDING, START, SemanticIds

DictTrie = dict[int, Any]


class HuggingFaceSearch:
    """`generate` with the weights of an `EncDec`, on the same histories.

    Args:
        model: whose weights are copied; without user tokens and adapters.
        config: its settings.
        ids: the catalogue.
    """

    def __init__(self, model: EncDec, config: EncDecConfig, ids: SemanticIds) -> None:
        self.t5 = t5_with_weights_of(model, config)
        self.model = model
        self.steps = ids.tokens.shape[1]
        self.trie: DictTrie = {}
        self.leaves: dict[tuple[int, ...], int] = {}
        for sequence in sorted({tuple(row) for row in ids.tokens.tolist()}):
            self.leaves[sequence] = len(self.leaves)
            node = self.trie
            for token in sequence[: sequence.index(END) + 1]:
                node = node.setdefault(token, {})

    def allowed(self, _: int, written: Tensor) -> list[int]:
        """Tokens that may follow what a beam has written."""
        node = self.trie
        for token in written.tolist()[1:]:  # after the start token
            if token == PADDING:
                break
            node = node[token]
        return list(node) or [PADDING]

    @torch.inference_mode()
    def __call__(self, batch: HistoryBatch, beams: int) -> Tensor:
        """Tokens of the best ids, [batch, beams, width]."""
        tokens = self.model.history.encode(batch.items).tokens
        tokens = torch.cat([tokens.new_full((batch.size, 1), START), tokens], dim=1)
        written = self.t5.generate(
            input_ids=tokens,
            attention_mask=(tokens != PADDING).long(),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=self.steps,
            length_penalty=0.0,  # the sum of the log-probabilities, as ours
            do_sample=False,
            prefix_allowed_tokens_fn=self.allowed,
        )
        return written[:, 1:].unflatten(0, (batch.size, beams))

    def found(self, batch: HistoryBatch, beams: int) -> list[set[int]]:
        """Leaves that are found for each user, numbered as our trie does."""
        written = self(batch, beams)
        padded = nn.functional.pad(written, (0, self.steps - written.shape[2]))
        return [{self.leaves[tuple(beam)] for beam in user} for user in padded.tolist()]


@torch.no_grad()
def t5_with_weights_of(model: EncDec, config: EncDecConfig) -> Any:
    """Hugging Face's T5 of the same sizes with the same weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=model.token.num_embeddings,
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.hidden_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            pad_token_id=PADDING,
            eos_token_id=END,
            decoder_start_token_id=START,
        )
    ).eval()
    t5.shared.weight.copy_(model.token.weight)
    for ours, bias, norm, theirs in (
        (model.encoder, model.encoder_bias, model.encoder_norm, t5.encoder),
        (model.decoder, model.decoder_bias, model.decoder_norm, t5.decoder),
    ):
        theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(
            bias.table.weight
        )
        theirs.final_layer_norm.weight.copy_(norm.weight)
        for layer, block in zip(ours, theirs.block, strict=True):
            _copy_attention(layer.attention, block.layer[0].SelfAttention)
            block.layer[0].layer_norm.weight.copy_(layer.attention_norm.weight)
            if len(block.layer) == 3:
                _copy_attention(layer.cross, block.layer[1].EncDecAttention)
                block.layer[1].layer_norm.weight.copy_(layer.cross_norm.weight)
            block.layer[-1].layer_norm.weight.copy_(layer.network_norm.weight)
            block.layer[-1].DenseReluDense.wi.weight.copy_(layer.network.expand.weight)
            block.layer[-1].DenseReluDense.wo.weight.copy_(layer.network.reduce.weight)
    return t5


def _copy_attention(ours: T5Attention, theirs: Any) -> None:
    keys, values = ours.key_value.weight.chunk(2)
    for part, weight in (("q", ours.query.weight), ("k", keys), ("v", values)):
        getattr(theirs, part).weight.copy_(weight)
    theirs.o.weight.copy_(ours.out.weight)
