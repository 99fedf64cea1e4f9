"""Generated files in the formats of three public click logs that come with histories.

AmazonElectronics_x1, TaobaoAd_x1 and KuaiVideo_x1 as RecZoo publishes them: `train.csv` and
`test.csv` with a header, histories as ids joined by `^`, oldest first. Every user likes one
category; earlier items are mostly of it, and so are clicked ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.planted import planted_normal, sigmoid

NUM_USERS = 200
"""Users of a generated log."""
NUM_ITEMS = 120
"""Items; item k is of category k % NUM_CATEGORIES."""
NUM_CATEGORIES = 6
"""Categories of items."""
NUM_BRANDS = 15
"""Brands of Taobao's advertisements; 0 means none."""
VISUAL_WIDTH = 64
"""Width of KuaiVideo's visual vectors."""
USER_FIELDS = {
    "cms_segid": 97,
    "cms_group_id": 13,
    "final_gender_code": 2,
    "age_level": 7,
    "pvalue_level": 4,
    "shopping_level": 3,
    "occupation": 2,
    "new_user_class_level": 5,
}
"""Taobao's fields of a user and about how many values each has."""
_TASTE = 0.8
_START_SECONDS = 1_494_000_000

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class _Log:
    users: Ids
    items: Ids
    clicked: NDArray[np.bool_]
    histories: tuple[Ids, ...]


def write_amazon_electronics(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Write files of the form AmazonElectronics_x1: pairs of a reviewed item and a drawn one.

    Columns: label, user_id, item_id, cate_id, item_history, cate_history. The two histories of a
    row run in step.

    Args:
        folder: where the files go.
        train: rows of `train.csv`, rounded down to pairs.
        test: rows of `test.csv`, rounded down to pairs.
        seed: seed of the rows.
    """
    for name, rows in (("train", train), ("test", test)):
        generator = _generator(seed, name, 1)
        users = np.repeat(generator.integers(0, NUM_USERS, rows // 2), 2)
        histories = _histories(generator, users[::2], longest=8, shortest=1)
        liked = _liked(generator, users)
        positive = np.arange(len(users)) % 2 == 0
        items = np.where(positive, liked, generator.integers(0, NUM_ITEMS, len(users)))
        both = [history for history in histories for _ in range(2)]
        frame = pl.DataFrame(
            {
                "label": positive.astype(np.int64),
                "user_id": users,
                "item_id": items,
                "cate_id": items % NUM_CATEGORIES,
                "item_history": _joined(both),
                "cate_history": _joined(history % NUM_CATEGORIES for history in both),
            }
        )
        frame.write_csv(Path(folder) / f"{name}.csv")


def write_taobao_ad(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Write files of the form TaobaoAd_x1: shown advertisements, fields of user and item.

    A history's kinds of action, categories and brands are lists of their own. Brand 0 means none
    and is left out of its list, so the lists of a row may differ in length. A field without a value
    holds 0.

    Args:
        folder: where the files go.
        train: rows of `train.csv`.
        test: rows of `test.csv`.
        seed: seed of the rows.
    """
    for name, rows in (("train", train), ("test", test)):
        generator = _generator(seed, name, 2)
        log = _log(generator, rows, longest=12)
        kinds = [generator.integers(1, 5, len(history)) for history in log.histories]
        brands = [history % NUM_BRANDS for history in log.histories]
        frame = pl.DataFrame(
            {
                "clk": log.clicked.astype(np.int64),
                "btag_his": _joined(kinds),
                "cate_his": _joined(history % NUM_CATEGORIES + 1 for history in log.histories),
                "brand_his": _joined(brand[brand > 0] for brand in brands),
                "userid": log.users + 1,
                **{
                    field: log.users * (place + 3) % (size + 1)
                    for place, (field, size) in enumerate(USER_FIELDS.items())
                },
                "adgroup_id": log.items + 1,
                "cate_id": log.items % NUM_CATEGORIES + 1,
                "campaign_id": log.items // 2 + 1,
                "customer": log.items // 4 + 1,
                "brand": log.items % NUM_BRANDS,
                "price": np.round(np.exp(planted_normal(log.items, 2, 1)), 2),
                "pid": np.where(generator.random(rows) < 0.5, "430548_1007", "430539_1007"),
                "btag": np.ones(rows, dtype=np.int64),
            }
        )
        frame.write_csv(Path(folder) / f"{name}.csv")


def write_kuaivideo(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Write files of the form KuaiVideo_x1: shown videos, with those clicked and passed over.

    Beside them lies `items.parquet` (item_id, visual): the vectors that the publisher's HDF5 file
    holds. Some rows have empty histories. Rows are in the order of their time.

    Args:
        folder: where the files go.
        train: rows of `train.csv`.
        test: rows of `test.csv`.
        seed: seed of the rows.
    """
    for place, (name, rows) in enumerate((("train", train), ("test", test))):
        generator = _generator(seed, name, 3)
        log = _log(generator, rows, longest=12)
        passed = _histories(generator, (log.users + 1) % NUM_USERS, longest=12)
        times = _START_SECONDS + 10**6 * place + np.sort(generator.integers(0, 10**6, rows))
        frame = pl.DataFrame(
            {
                "timestamp": times,
                "user_id": log.users,
                "item_id": log.items,
                "is_click": log.clicked.astype(np.int64),
                "is_like": (log.clicked & (generator.random(rows) < 0.1)).astype(np.int64),
                "is_follow": np.zeros(rows, dtype=np.int64),
                "pos_items": _joined(log.histories),
                "neg_items": _joined(passed),
            }
        )
        frame.write_csv(Path(folder) / f"{name}.csv")
    items = np.arange(NUM_ITEMS)
    cells = items[:, None] * VISUAL_WIDTH + np.arange(VISUAL_WIDTH)
    vectors = planted_normal(cells, 3, 1).astype(np.float32)
    table = pl.DataFrame({"item_id": items, "visual": vectors})
    table.write_parquet(Path(folder) / "items.parquet")


def _generator(seed: int, name: str, log: int) -> np.random.Generator:
    return np.random.default_rng([seed, log, len(name)])


def _log(generator: np.random.Generator, rows: int, longest: int) -> _Log:
    """Shown items, each clicked or not; the more likely the more its user likes its category."""
    users = generator.integers(0, NUM_USERS, rows)
    shown = generator.integers(0, NUM_ITEMS, rows)
    items = np.where(generator.random(rows) < 0.5, _liked(generator, users), shown)
    fits = items % NUM_CATEGORIES == users % NUM_CATEGORIES
    logits = np.where(fits, 1.0, -1.5) + 0.5 * planted_normal(items, 4, 1)
    clicked = generator.random(rows) < sigmoid(logits)
    return _Log(users, items, clicked, _histories(generator, users, longest))


def _liked(generator: np.random.Generator, users: Ids) -> Ids:
    """An item for each user, most often of the category that the user likes."""
    number = generator.integers(0, NUM_ITEMS // NUM_CATEGORIES, len(users))
    fitting = number * NUM_CATEGORIES + users % NUM_CATEGORIES
    other = generator.integers(0, NUM_ITEMS, len(users))
    return np.where(generator.random(len(users)) < _TASTE, fitting, other)


def _histories(
    generator: np.random.Generator, users: Ids, longest: int, shortest: int = 0
) -> tuple[Ids, ...]:
    lengths = generator.integers(shortest, longest + 1, len(users))
    events = _liked(generator, np.repeat(users, lengths))
    return tuple(np.split(events, np.cumsum(lengths)[:-1]))


def _joined(lists: Iterable[Ids]) -> list[str | None]:
    # None leaves the cell empty; an empty text would be written in quotes.
    return ["^".join(map(str, values)) or None for values in lists]
