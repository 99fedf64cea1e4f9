from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from rankloom.data.cells import read_cells, table_kinds
from rankloom.data.fit import Fitter
from rankloom.data.plan import make_plan
from rankloom.data.table_schema import (
    Categorical,
    LabelSpec,
    Numeric,
    Sequence,
    TableInput,
    TableSchema,
)

SCHEMA = TableSchema(
    name="x",
    input=TableInput(files="x"),
    features={
        "item": Categorical(min_count=2),
        "seen": Sequence(vocabulary="item"),
        "tags": Sequence(),
        "price": Numeric(fill="median"),
    },
    labels={"y": LabelSpec()},
)
FRAME = pl.DataFrame(
    {
        "item": ["a", "b", "a", None],
        "seen": ["b|b|b", "c|c", "", None],
        "tags": ["x|y", "y", None, "z"],
        "price": [1.0, 2.0, 9.0, None],
    }
)


def make_fitter(frame: pl.DataFrame, chunk: int) -> tuple[Fitter, list[np.ndarray]]:
    plan = make_plan(SCHEMA, dict(frame.schema))
    kinds = table_kinds(plan, {None: dict(frame.schema)})
    coded = []
    with ThreadPoolExecutor(2) as pool:
        fitter = Fitter(plan, kinds, pool)
        for start in range(0, frame.height, chunk):
            cells = read_cells(frame[start : start + chunk], plan.main, plan.tables, kinds)
            cells = fitter.code(cells, plan.main)
            fitter.count(cells, plan.main)
            coded.append(cells.rows["categorical/item"].to_numpy())
    return fitter, coded


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_only_the_plain_feature_fits_a_shared_vocabulary(chunk):
    fitter, coded = make_fitter(FRAME, chunk)
    occurs = fitter.occurs("item", pl.Series(["a", "b", "c", "new"]))
    assert occurs.tolist() == [True, True, False, False]
    fitted = fitter.fit(group_is_text=False, has_scenarios=False)
    assert fitted.vocabularies["item"].values.to_list() == ["a"]
    assert fitted.vocabularies["tags"].values.to_list() == ["y", "x", "z"]
    assert fitted.transforms.numbers["numeric/price"].fill == 2.0
    lookup = fitter.lookups(fitted)["item"]
    assert lookup(pl.Series(np.concatenate(coded))).tolist() == [2, 1, 2, 0]


def test_a_number_without_values_is_refused():
    frame = FRAME.with_columns(price=pl.lit(None, dtype=pl.Float64))
    fitter, _ = make_fitter(frame, 4)
    with pytest.raises(ValueError, match="numeric feature price has no value in the training"):
        fitter.fit(group_is_text=False, has_scenarios=False)
