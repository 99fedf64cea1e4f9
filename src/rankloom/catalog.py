"""The one hand-written table of models: name -> config, class, family, paper.

A model is added by writing its file and its line here; nothing registers itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rankloom.config import Config
from rankloom.ranking.afm import AFM, AFMConfig
from rankloom.ranking.afn import AFN, AFNConfig
from rankloom.ranking.autoint import AutoInt, AutoIntConfig
from rankloom.ranking.bst import BST, BSTConfig
from rankloom.ranking.dcn import DCN, DCNConfig
from rankloom.ranking.dcnv2 import DCNv2, DCNv2Config
from rankloom.ranking.dcnv3 import DCNv3, DCNv3Config
from rankloom.ranking.deepfm import DeepFM, DeepFMConfig
from rankloom.ranking.deres import DeRes, DeResConfig
from rankloom.ranking.dhen import DHEN, DHENConfig
from rankloom.ranking.dien import DIEN, DIENConfig
from rankloom.ranking.din import DIN, DINConfig
from rankloom.ranking.dlf import DLF, DLFConfig
from rankloom.ranking.dlf_code import DLFCode, DLFCodeConfig
from rankloom.ranking.dlrm import DLRM, DLRMConfig
from rankloom.ranking.dmin import DMIN, DMINConfig
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.ranking.edcn import EDCN, EDCNConfig
from rankloom.ranking.est import EST, ESTConfig
from rankloom.ranking.eta import ETA, ETAConfig
from rankloom.ranking.fat import FAT, FATConfig
from rankloom.ranking.fibinet import FiBiNET, FiBiNETConfig
from rankloom.ranking.finalmlp import FinalMLP, FinalMLPConfig
from rankloom.ranking.finalnet import FinalNet, FinalNetConfig
from rankloom.ranking.fm import FM, FMConfig
from rankloom.ranking.gdcn import GDCN, GDCNConfig
from rankloom.ranking.hiformer import HiFormer, HiFormerConfig
from rankloom.ranking.hstu import HSTU, HSTUConfig
from rankloom.ranking.ipnn import IPNN, IPNNConfig
from rankloom.ranking.loopctr import LoopCTR, LoopCTRConfig
from rankloom.ranking.lr import LR, LRConfig
from rankloom.ranking.masknet import MaskNet, MaskNetConfig
from rankloom.ranking.onetrans import OneTrans, OneTransConfig
from rankloom.ranking.rankmixer import RankMixer, RankMixerConfig
from rankloom.ranking.sam import SAM, SAMConfig
from rankloom.ranking.sdim import SDIM, SDIMConfig
from rankloom.ranking.sim import SIM, SIMConfig
from rankloom.ranking.stackctr import StackCTR, StackCTRConfig
from rankloom.ranking.tokenmixer_large import TokenMixerLarge, TokenMixerLargeConfig
from rankloom.ranking.transact import TransAct, TransActConfig
from rankloom.ranking.transformer import Transformer, TransformerConfig
from rankloom.ranking.unimixer import UniMixer, UniMixerConfig
from rankloom.ranking.wide_deep import WideDeep, WideDeepConfig
from rankloom.ranking.wukong import Wukong, WukongConfig
from rankloom.ranking.xdeepfm import XDeepFM, XDeepFMConfig
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
        name="ipnn",
        family="ranking",
        title="IPNN (PNN)",
        paper="Qu et al., ICDM 2016, arXiv:1611.00144",
        year=2016,
        idea="A network reads the embeddings and the inner products of all their pairs.",
        config=IPNNConfig,
        build=IPNN,
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
        name="afm",
        family="ranking",
        title="AFM",
        paper="Xiao et al., IJCAI 2017, arXiv:1708.04617",
        year=2017,
        idea="A factorization machine that learns by attention which pairs matter.",
        config=AFMConfig,
        build=AFM,
    ),
    Entry(
        name="dcn",
        family="ranking",
        title="DCN",
        paper="Wang et al., ADKDD 2017, arXiv:1708.05123",
        year=2017,
        idea="Cross layers of one vector each raise the order, with a network beside them.",
        config=DCNConfig,
        build=DCN,
    ),
    Entry(
        name="transformer",
        family="ranking",
        title="Transformer",
        paper="Vaswani et al., NeurIPS 2017, arXiv:1706.03762",
        year=2017,
        idea="Pre-norm attention and networks over all events and fields of a row as tokens.",
        config=TransformerConfig,
        build=Transformer,
    ),
    Entry(
        name="xdeepfm",
        family="ranking",
        title="xDeepFM",
        paper="Lian et al., KDD 2018, arXiv:1803.05170",
        year=2018,
        idea="Interactions of growing order, compressed per dimension, beside a network.",
        config=XDeepFMConfig,
        build=XDeepFM,
    ),
    Entry(
        name="din",
        family="ranking",
        title="DIN",
        paper="Zhou et al., KDD 2018, arXiv:1706.06978",
        year=2018,
        idea="Past events, weighed by a network that compares each of them with the target.",
        config=DINConfig,
        build=DIN,
    ),
    Entry(
        name="dlrm",
        family="ranking",
        title="DLRM",
        paper="Naumov et al., 2019, arXiv:1906.00091",
        year=2019,
        idea="Numeric fields become one vector that meets the ids' vectors in inner products.",
        config=DLRMConfig,
        build=DLRM,
    ),
    Entry(
        name="fibinet",
        family="ranking",
        title="FiBiNET",
        paper="Huang et al., RecSys 2019, arXiv:1905.09433",
        year=2019,
        idea="Fields weighed by their importance meet in bilinear products.",
        config=FiBiNETConfig,
        build=FiBiNET,
    ),
    Entry(
        name="autoint",
        family="ranking",
        title="AutoInt",
        paper="Song et al., CIKM 2019, arXiv:1810.11921",
        year=2019,
        idea="Fields attend to each other in several heads, with or without a network beside.",
        config=AutoIntConfig,
        build=AutoInt,
    ),
    Entry(
        name="bst",
        family="ranking",
        title="BST",
        paper="Chen et al., DLP-KDD 2019, arXiv:1905.06874",
        year=2019,
        idea="A Transformer over the history, in which the target is one more event.",
        config=BSTConfig,
        build=BST,
    ),
    Entry(
        name="dien",
        family="ranking",
        title="DIEN",
        paper="Zhou et al., AAAI 2019, arXiv:1809.03672",
        year=2019,
        idea="A GRU over past events, and a second one that follows what concerns the target.",
        config=DIENConfig,
        build=DIEN,
    ),
    Entry(
        name="afn",
        family="ranking",
        title="AFN",
        paper="Cheng et al., AAAI 2020, arXiv:1909.03276",
        year=2020,
        idea="Products of fields to learned powers, as sums of logarithms.",
        config=AFNConfig,
        build=AFN,
    ),
    Entry(
        name="sim",
        family="ranking",
        title="SIM",
        paper="Pi et al., CIKM 2020, arXiv:2006.05639",
        year=2020,
        idea="A long history is searched for events like the target, and attention reads those.",
        config=SIMConfig,
        build=SIM,
    ),
    Entry(
        name="dmin",
        family="ranking",
        title="DMIN",
        paper="Xiao et al., CIKM 2020, doi:10.1145/3340531.3412092",
        year=2020,
        idea="Every head of self-attention over the history is an interest of its own.",
        config=DMINConfig,
        build=DMIN,
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
        name="edcn",
        family="ranking",
        title="EDCN",
        paper="Chen et al., CIKM 2021, doi:10.1145/3459637.3481915",
        year=2021,
        idea="Crosses and network meet after every layer and part again through field gates.",
        config=EDCNConfig,
        build=EDCN,
    ),
    Entry(
        name="masknet",
        family="ranking",
        title="MaskNet",
        paper="Wang et al., DLP-KDD 2021, arXiv:2102.07619",
        year=2021,
        idea="Hidden layers multiplied, unit by unit, with masks that the row's embeddings give.",
        config=MaskNetConfig,
        build=MaskNet,
    ),
    Entry(
        name="sam",
        family="ranking",
        title="SAM",
        paper="Cheng and Xue, SIGIR 2021, arXiv:2105.05563",
        year=2021,
        idea="The similarity of two fields weighs what they say together.",
        config=SAMConfig,
        build=SAM,
    ),
    Entry(
        name="eta",
        family="ranking",
        title="ETA",
        paper="Chen et al., 2021, arXiv:2108.04468",
        year=2021,
        idea="Hash codes of the embeddings find the events nearest to the target, end to end.",
        config=ETAConfig,
        build=ETA,
    ),
    Entry(
        name="dhen",
        family="ranking",
        title="DHEN",
        paper="Zhang et al., 2022, arXiv:2203.11014",
        year=2022,
        idea="Every layer is an ensemble of different interactions over the last layer's tokens.",
        config=DHENConfig,
        build=DHEN,
    ),
    Entry(
        name="sdim",
        family="ranking",
        title="SDIM",
        paper="Cao et al., CIKM 2022, arXiv:2205.10249",
        year=2022,
        idea="Events whose random hash equals the target's are summed, mean of several rounds.",
        config=SDIMConfig,
        build=SDIM,
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
    Entry(
        name="finalnet",
        family="ranking",
        title="FinalNet",
        paper="Zhu et al., SIGIR 2023, doi:10.1145/3539618.3591988",
        year=2023,
        idea="Layers whose outputs multiply, in two blocks that learn from their mean.",
        config=FinalNetConfig,
        build=FinalNet,
    ),
    Entry(
        name="gdcn",
        family="ranking",
        title="GDCN",
        paper="Wang et al., CIKM 2023, arXiv:2311.04635",
        year=2023,
        idea="Cross layers whose every unit passes a learned gate.",
        config=GDCNConfig,
        build=GDCN,
    ),
    Entry(
        name="hiformer",
        family="ranking",
        title="HiFormer",
        paper="Gui et al., 2023, arXiv:2311.05884",
        year=2023,
        idea="Attention between fields whose queries, keys and values see every field.",
        config=HiFormerConfig,
        build=HiFormer,
    ),
    Entry(
        name="transact",
        family="ranking",
        title="TransAct",
        paper="Xia et al., KDD 2023, arXiv:2306.00248",
        year=2023,
        idea="An encoder over the latest actions, each of which stands beside the target.",
        config=TransActConfig,
        build=TransAct,
    ),
    Entry(
        name="wukong",
        family="ranking",
        title="Wukong",
        paper="Zhang et al., ICML 2024, arXiv:2403.02545",
        year=2024,
        idea="Stacked factorization machines double the interaction order with every layer.",
        config=WukongConfig,
        build=Wukong,
    ),
    Entry(
        name="dcnv3",
        family="ranking",
        title="DCN v3 (FCN)",
        paper="Li et al., 2024, arXiv:2407.13349",
        year=2024,
        idea="A tower of exponential and one of linear crosses, each with a loss of its own.",
        config=DCNv3Config,
        build=DCNv3,
    ),
    Entry(
        name="hstu",
        family="ranking",
        title="HSTU",
        paper="Zhai et al., ICML 2024, arXiv:2402.17152",
        year=2024,
        idea="Gated attention without a softmax over one sequence of events and fields.",
        config=HSTUConfig,
        build=HSTU,
    ),
    Entry(
        name="dlf",
        family="ranking",
        title="DLF",
        paper="Wang et al., SIGIR 2025, arXiv:2505.19182",
        year=2025,
        idea="Explicit and implicit interactions fused in every layer; low orders are kept.",
        config=DLFConfig,
        build=DLF,
    ),
    Entry(
        name="dlf_code",
        family="ranking",
        title="DLF (public code)",
        paper="Wang et al., SIGIR 2025, arXiv:2505.19182, as its public code has it",
        year=2025,
        idea="Wukong with a branch that crosses every layer's input with the raw embeddings.",
        config=DLFCodeConfig,
        build=DLFCode,
    ),
    Entry(
        name="fat",
        family="ranking",
        title="FAT",
        paper="From Scaling to Structured Expressivity, 2025, arXiv:2511.12081",
        year=2025,
        idea="Field-aware attention whose per-field matrices are mixed from a few shared bases.",
        config=FATConfig,
        build=FAT,
    ),
    Entry(
        name="rankmixer",
        family="ranking",
        title="RankMixer",
        paper="Zhu et al., 2025, arXiv:2507.15551",
        year=2025,
        idea="Tokens trade pieces without parameters; every token has a network of its own.",
        config=RankMixerConfig,
        build=RankMixer,
    ),
    Entry(
        name="onetrans",
        family="ranking",
        title="OneTrans",
        paper="Zhang et al., 2025, arXiv:2510.26104",
        year=2025,
        idea="One Transformer over events, which share weights, and fields, which have their own.",
        config=OneTransConfig,
        build=OneTrans,
    ),
    Entry(
        name="tokenmixer_large",
        family="ranking",
        title="TokenMixer-Large",
        paper="Jiang et al., 2026, arXiv:2602.06563",
        year=2026,
        idea="Networks for mixed tokens and for tokens in turn, with residuals that span layers.",
        config=TokenMixerLargeConfig,
        build=TokenMixerLarge,
    ),
    Entry(
        name="est",
        family="ranking",
        title="EST",
        paper="2026, arXiv:2602.10811",
        year=2026,
        idea="Fields ask the events, events meet by content, and every field has its own network.",
        config=ESTConfig,
        build=EST,
    ),
    Entry(
        name="unimixer",
        family="ranking",
        title="UniMixer",
        paper="2026, arXiv:2604.00590",
        year=2026,
        idea="Tokens are mixed by learned, nearly doubly stochastic matrices that grow sparse.",
        config=UniMixerConfig,
        build=UniMixer,
    ),
    Entry(
        name="deres",
        family="ranking",
        title="DeRes",
        paper="Cheng et al., 2026, arXiv:2606.07980",
        year=2026,
        idea="Layers read an identity path and attention over earlier blocks, joined by a gate.",
        config=DeResConfig,
        build=DeRes,
    ),
    Entry(
        name="stackctr",
        family="ranking",
        title="StackCTR",
        paper="Renmin University and Alibaba, 2026, arXiv:2604.19550",
        year=2026,
        idea="LoopCTR's layers with weights of their own: as much work for a row, more weights.",
        config=StackCTRConfig,
        build=StackCTR,
    ),
    Entry(
        name="loopctr",
        family="ranking",
        title="LoopCTR",
        paper="Renmin University and Alibaba, 2026, arXiv:2604.19550",
        year=2026,
        idea="One layer applied again and again in training, and not once in serving.",
        config=LoopCTRConfig,
        build=LoopCTR,
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
