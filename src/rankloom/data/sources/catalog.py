"""The one hand-written table of public data sets."""

from rankloom.data.sources.amazon import AMAZON_BEAUTY, AMAZON_SPORTS, AMAZON_TOYS
from rankloom.data.sources.amazon_domains import AMAZON_DOMAINS
from rankloom.data.sources.avazu import AVAZU
from rankloom.data.sources.criteo import CRITEO
from rankloom.data.sources.frappe import FRAPPE
from rankloom.data.sources.hillstrom import HILLSTROM
from rankloom.data.sources.ijcai18_cvr import IJCAI18_CVR
from rankloom.data.sources.lastfm_tag import LASTFM_TAG
from rankloom.data.sources.movielens_1m import MOVIELENS_1M
from rankloom.data.sources.movielens_1m_age import MOVIELENS_1M_AGE
from rankloom.data.sources.movielens_100k import MOVIELENS_100K
from rankloom.data.sources.source import Source
from rankloom.data.sources.trivago import TRIVAGO

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        MOVIELENS_100K,
        MOVIELENS_1M,
        MOVIELENS_1M_AGE,
        FRAPPE,
        CRITEO,
        AVAZU,
        LASTFM_TAG,
        TRIVAGO,
        HILLSTROM,
        IJCAI18_CVR,
        AMAZON_BEAUTY,
        AMAZON_TOYS,
        AMAZON_SPORTS,
        AMAZON_DOMAINS,
    )
}


def lookup(name: str) -> Source:
    """The data set called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}; known data sets: {', '.join(SOURCES)}")
    return SOURCES[name]
