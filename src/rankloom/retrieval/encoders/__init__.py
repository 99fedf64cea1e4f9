"""Item encoders: a catalogue of items to vectors, one file each."""

from typing import Annotated

from pydantic import Field

from rankloom.retrieval.encoders.concatenation import ConcatenationConfig
from rankloom.retrieval.encoders.famae import FamaeConfig
from rankloom.retrieval.encoders.given import GivenConfig
from rankloom.retrieval.encoders.ppmi import PpmiConfig
from rankloom.retrieval.encoders.sasrec import SasrecConfig
from rankloom.retrieval.encoders.sentence import SentenceConfig
from rankloom.retrieval.encoders.tfidf import TfidfConfig

EncoderConfig = Annotated[
    GivenConfig
    | TfidfConfig
    | SentenceConfig
    | PpmiConfig
    | SasrecConfig
    | FamaeConfig
    | ConcatenationConfig,
    Field(discriminator="kind"),
]
"""Any encoder, chosen by its `kind`."""

__all__ = [
    "ConcatenationConfig",
    "EncoderConfig",
    "FamaeConfig",
    "GivenConfig",
    "PpmiConfig",
    "SasrecConfig",
    "SentenceConfig",
    "TfidfConfig",
]
