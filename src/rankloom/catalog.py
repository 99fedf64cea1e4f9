"""The one hand-written table of models: name -> config, class, family, paper.

A model is added by writing its file and its line here; nothing registers itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rankloom.config import Config
from rankloom.ranking.dcnv2 import DCNv2, DCNv2Config
from rankloom.ranking.deepfm import DeepFM, DeepFMConfig
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.ranking.finalmlp import FinalMLP, FinalMLPConfig
from rankloom.ranking.fm import FM, FMConfig
from rankloom.ranking.lr import LR, LRConfig
from rankloom.ranking.wide_deep import WideDeep, WideDeepConfig
from rankloom.schema import Schema


@dataclass(frozen=True)
class Entry:
    """One model of the catalog."""

    name: str
    """Name in recipes."""
    family: str
    """ranking, scenario or retrieval."""
    title: str
    """The model's name as its paper writes it."""
    paper: str
    """Authors, venue, identifier."""
    year: int
    """Year of the paper."""
    idea: str
    """One line."""
    config: type[Config]
    """Its config."""
    build: Callable[..., nn.Module]
    """Its class, called with (config, schema)."""


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="lr",
        family="ranking",
        title="LR",
        paper="Richardson et al., WWW 2007, doi:10.1145/1242572.1242643",
        year=2007,
        idea="A weight per id: what each feature says on its own.",
        config=LRConfig,
        build=LR,
    ),
    Entry(
        name="fm",
        family="ranking",
        title="FM",
        paper="Rendle, ICDM 2010, doi:10.1109/ICDM.2010.127",
        year=2010,
        idea="Every pair of fields interacts through the product of two vectors.",
        config=FMConfig,
        build=FM,
    ),
    Entry(
        name="dnn",
        family="ranking",
        title="DNN",
        paper="Covington et al., RecSys 2016, doi:10.1145/2959100.2959190",
        year=2016,
        idea="Embeddings side by side into a multi-layer network.",
        config=DNNConfig,
        build=DNN,
    ),
    Entry(
        name="wide_deep",
        family="ranking",
        title="Wide&Deep",
        paper="Cheng et al., DLRS 2016, arXiv:1606.07792",
        year=2016,
        idea="A linear term that memorises beside a network that generalises.",
        config=WideDeepConfig,
        build=WideDeep,
    ),
    Entry(
        name="deepfm",
        family="ranking",
        title="DeepFM",
        paper="Guo et al., IJCAI 2017, arXiv:1703.04247",
        year=2017,
        idea="A factorization machine and a network share their embeddings.",
        config=DeepFMConfig,
        build=DeepFM,
    ),
    Entry(
        name="dcnv2",
        family="ranking",
        title="DCN V2",
        paper="Wang et al., WWW 2021, arXiv:2008.13535",
        year=2021,
        idea="Cross layers build interactions of growing order, with a network beside them.",
        config=DCNv2Config,
        build=DCNv2,
    ),
    Entry(
        name="finalmlp",
        family="ranking",
        title="FinalMLP",
        paper="Mao et al., AAAI 2023, arXiv:2304.00902",
        year=2023,
        idea="Two networks over differently gated features, fused bilinearly.",
        config=FinalMLPConfig,
        build=FinalMLP,
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def lookup(name: str) -> Entry:
    """The catalog entry called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in CATALOG:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(sorted(CATALOG))}")
    return CATALOG[name]


def build_model(name: str, config: Config, schema: Schema) -> nn.Module:
    """A new model, its parameters drawn from torch's global generator."""
    return lookup(name).build(config, schema)
