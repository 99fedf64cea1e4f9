"""The retrieval models of the catalog: name -> config, class, paper."""

from rankloom.entry import Entry
from rankloom.retrieval.generators.cobra import Cobra, CobraConfig
from rankloom.retrieval.generators.decoder import Decoder, DecoderConfig
from rankloom.retrieval.generators.encdec import EncDec, EncDecConfig
from rankloom.retrieval.generators.rpg import RPG, RPGConfig
from rankloom.retrieval.sequential.bert4rec import BERT4Rec, BERT4RecConfig
from rankloom.retrieval.sequential.gru4rec import GRU4Rec, GRU4RecConfig
from rankloom.retrieval.sequential.hstu import SequentialHSTU, SequentialHSTUConfig
from rankloom.retrieval.sequential.item_knn import ItemKNN, ItemKNNConfig
from rankloom.retrieval.sequential.popularity import Popularity, PopularityConfig
from rankloom.retrieval.sequential.sasrec import SASRec, SASRecConfig
from rankloom.retrieval.tokenizers.famae import FAMAE, FAMAEConfig

RETRIEVAL_ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="popularity",
        family="retrieval",
        title="Popularity",
        paper="Cremonesi et al., RecSys 2010, doi:10.1145/1864708.1864721",
        year=2010,
        idea="The items most often taken, whatever the history.",
        config=PopularityConfig,
        build=Popularity,
    ),
    Entry(
        name="item_knn",
        family="retrieval",
        title="Item-KNN",
        paper="Sarwar et al., WWW 2001, doi:10.1145/371920.372071",
        year=2001,
        idea="Items that the users of a history's items also took.",
        config=ItemKNNConfig,
        build=ItemKNN,
    ),
    Entry(
        name="gru4rec",
        family="retrieval",
        title="GRU4Rec",
        paper="Hidasi et al., ICLR 2016, arXiv:1511.06939",
        year=2016,
        idea="A recurrent network over the items of a history.",
        config=GRU4RecConfig,
        build=GRU4Rec,
    ),
    Entry(
        name="sasrec",
        family="retrieval",
        title="SASRec",
        paper="Kang and McAuley, ICDM 2018, arXiv:1808.09781",
        year=2018,
        idea="Causal self-attention over the items of a history, against all items.",
        config=SASRecConfig,
        build=SASRec,
    ),
    Entry(
        name="bert4rec",
        family="retrieval",
        title="BERT4Rec",
        paper="Sun et al., CIKM 2019, arXiv:1904.06690",
        year=2019,
        idea="Masked items are told from both sides of the history.",
        config=BERT4RecConfig,
        build=BERT4Rec,
    ),
    Entry(
        name="famae",
        family="retrieval",
        title="FAMAE",
        paper="ReSID, 2026, arXiv:2602.02338",
        year=2026,
        idea="Masked fields of the next item are told from the history; tables make item vectors.",
        config=FAMAEConfig,
        build=FAMAE,
    ),
    Entry(
        name="sequential_hstu",
        family="retrieval",
        title="HSTU (item sequences)",
        paper="Zhai et al., ICML 2024, arXiv:2402.17152",
        year=2024,
        idea="Gated attention without a softmax over the items of a history.",
        config=SequentialHSTUConfig,
        build=SequentialHSTU,
    ),
    Entry(
        name="decoder",
        family="retrieval",
        title="Generative decoder",
        paper="after TIGER, Rajput et al., NeurIPS 2023, arXiv:2305.05065",
        year=2023,
        idea="A causal Transformer writes the next item's semantic id, trained at all positions.",
        config=DecoderConfig,
        build=Decoder,
        requires=("semantic_ids",),
    ),
    Entry(
        name="encdec",
        family="retrieval",
        title="TIGER",
        paper="Rajput et al., NeurIPS 2023, arXiv:2305.05065",
        year=2023,
        idea="An encoder-decoder of T5's form writes the semantic id of the next item.",
        config=EncDecConfig,
        build=EncDec,
        requires=("semantic_ids",),
    ),
    Entry(
        name="cobra",
        family="retrieval",
        title="COBRA",
        paper="Yang et al., NeurIPS 2025, arXiv:2503.02453",
        year=2025,
        idea="Coarse codes first, then a dense vector that tells the items of an id apart.",
        config=CobraConfig,
        build=Cobra,
        requires=("semantic_ids",),
    ),
    Entry(
        name="rpg",
        family="retrieval",
        title="RPG",
        paper="Hou et al., KDD 2025, arXiv:2506.05781",
        year=2025,
        idea="All codes of a long unordered id are predicted at once.",
        config=RPGConfig,
        build=RPG,
        requires=("semantic_ids",),
    ),
)
