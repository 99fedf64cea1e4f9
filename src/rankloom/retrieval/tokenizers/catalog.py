"""The tokenizers of semantic ids, by the `kind` of their config."""

from typing import Annotated

from pydantic import Field

from rankloom.retrieval.protocols import Tokenizer
from rankloom.retrieval.tokenizers.action_piece import ActionPieceConfig
from rankloom.retrieval.tokenizers.attribute_prefix import AttributePrefixConfig
from rankloom.retrieval.tokenizers.capsid import CapsIDConfig
from rankloom.retrieval.tokenizers.gaoq import GAOQConfig
from rankloom.retrieval.tokenizers.letter import LETTERConfig
from rankloom.retrieval.tokenizers.opq import OPQConfig
from rankloom.retrieval.tokenizers.rq_kmeans import RQKMeansConfig
from rankloom.retrieval.tokenizers.rq_vae import RQVAEConfig

TokenizerConfig = Annotated[
    RQKMeansConfig
    | RQVAEConfig
    | LETTERConfig
    | OPQConfig
    | CapsIDConfig
    | GAOQConfig
    | ActionPieceConfig
    | ActionPieceConfig
    | AttributePrefixConfig,
    Field(discriminator="kind"),
]
"""Any tokenizer, chosen by its `kind`."""


def build_tokenizer(config: TokenizerConfig, width: int) -> Tokenizer:
    """A new tokenizer of vectors of `width` numbers, its parameters from torch's global generator.

    Raises:
        ValueError: a setting does not go with the width.
    """
    return config.build(width)
