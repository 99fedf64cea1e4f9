import numpy as np
import polars as pl

from rankloom.data.cells import Cells
from rankloom.data.spill import Spill, by_split, select_rows


def some_cells(rows: int, seed: int, events: bool = True) -> Cells:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows)
    frame = pl.DataFrame(
        {
            "code": rng.integers(0, 9, rows).astype(np.uint32),
            "text": [f"t{value}" for value in range(rows)],
            "vector": pl.Series(rng.random((rows, 2)).astype(np.float32)),
        }
    )
    names = pl.Series("id", np.arange(lengths.sum()) + 100 * seed)
    if not events:
        return Cells(rows, frame, {}, {})
    return Cells(rows, frame, {"g": lengths}, {"g": names.to_frame()})


def per_row(cells: Cells) -> list[tuple[object, ...]]:
    ends = np.cumsum(cells.lengths["g"])
    ids = cells.events["g"]["id"].to_list()
    return [
        (*row, ids[end - length : end])
        for row, end, length in zip(cells.rows.iter_rows(), ends, cells.lengths["g"], strict=True)
    ]


def test_cells_come_back_in_order(tmp_path):
    given = [some_cells(5, 1), some_cells(0, 2), some_cells(3, 3)]
    with Spill(tmp_path, "train") as spill:
        for cells in given:
            spill.append(cells)
    found = list(spill.read())
    assert spill.rows == 8
    assert [per_row(cells) for cells in found] == [per_row(given[0]), per_row(given[2])]


def test_nothing_written_reads_as_nothing(tmp_path):
    with Spill(tmp_path, "test") as spill:
        pass
    assert list(spill.read()) == []


def test_rows_without_events_keep_an_empty_batch(tmp_path):
    cells = some_cells(4, 1)
    empty = Cells(4, cells.rows, {"g": np.zeros(4, np.int64)}, {"g": cells.events["g"].head(0)})
    with Spill(tmp_path, "train") as spill:
        spill.append(empty)
        spill.append(cells)
    assert [per_row(part) for part in spill.read()] == [per_row(empty), per_row(cells)]


def test_splitting_keeps_order_and_events():
    split = np.array([0, 2, 0, 1, 2, 0], np.int8)
    cells = some_cells(6, 4)
    rows = per_row(cells)
    for code, part in enumerate(by_split(cells, split, 3)):
        assert per_row(part) == [row for row, own in zip(rows, split, strict=True) if own == code]
    flat = some_cells(6, 4, events=False)
    for code, part in enumerate(by_split(flat, split, 3)):
        assert part.rows.equals(select_rows(flat, split == code).rows)
        assert part.height == int((split == code).sum())
