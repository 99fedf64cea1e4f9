import itertools
import math
from datetime import timedelta

import pytest
from run_records import START, build_record
from scipy import stats

from rankloom.report.leaderboard import Leaderboard, Table, build_leaderboard
from rankloom.report.rows import Published
from rankloom.runs.environment import Commit, Machine
from rankloom.runs.record import DatasetFacts, Record


def runs_of(model: str, values: dict[int, float], metric: str = "auc") -> list[Record]:
    return [
        build_record(model, seed, metrics={"test": {metric: value}})
        for seed, value in values.items()
    ]


def only_table(leaderboard: Leaderboard) -> Table:
    (table,) = leaderboard.tables
    return table


def best_of(records: list[Record]) -> dict[str, tuple[str, ...]]:
    return {row.label: row.best for row in only_table(build_leaderboard(records)).rows}


CLEARLY_BETTER = runs_of("fm", {1: 0.800, 2: 0.811, 3: 0.819})
WORSE = runs_of("lr", {1: 0.700, 2: 0.710, 3: 0.720})


def test_groups_by_recipe_and_orders_by_auc() -> None:
    table = only_table(build_leaderboard([*WORSE, *CLEARLY_BETTER]))
    assert [row.label for row in table.rows] == ["fm", "lr"]
    assert table.rows[0].seeds == (1, 2, 3)
    assert table.rows[0].metrics["auc"].mean == pytest.approx(0.81)
    assert table.rows[1].metrics["auc"].deviation == pytest.approx(0.01)


def test_lower_is_better_for_log_loss() -> None:
    better = runs_of("fm", {1: 0.40, 2: 0.41, 3: 0.43}, "log_loss")
    worse = runs_of("lr", {1: 0.50, 2: 0.52, 3: 0.53}, "log_loss")
    table = only_table(build_leaderboard([*worse, *better]))
    assert [(row.label, row.best) for row in table.rows] == [("fm", ("log_loss",)), ("lr", ())]


def test_result_does_not_depend_on_the_order_of_records() -> None:
    records = [*WORSE[:2], *CLEARLY_BETTER[:2]]
    boards = [build_leaderboard(order) for order in itertools.permutations(records)]
    assert all(board == boards[0] for board in boards)


def test_equal_means_are_ordered_by_label() -> None:
    records = [*runs_of("zz", {1: 0.7, 2: 0.8}), *runs_of("aa", {1: 0.7, 2: 0.8})]
    table = only_table(build_leaderboard(records))
    assert [row.label for row in table.rows] == ["aa", "zz"]


def test_best_is_marked_when_significant() -> None:
    assert best_of([*CLEARLY_BETTER, *WORSE]) == {"fm": ("auc",), "lr": ()}


def test_best_is_not_marked_inside_the_noise() -> None:
    noisy = runs_of("fm", {1: 0.70, 2: 0.90, 3: 0.75})
    assert stats.ttest_rel([0.70, 0.90, 0.75], [0.70, 0.71, 0.72]).pvalue > 0.05
    assert best_of([*noisy, *WORSE]) == {"fm": (), "lr": ()}


def test_the_second_best_decides_and_not_the_worst() -> None:
    close = runs_of("dnn", {1: 0.801, 2: 0.809, 3: 0.819})
    assert not any(best_of([*CLEARLY_BETTER, *WORSE, *close]).values())


def test_ties_are_not_marked() -> None:
    values = {1: 0.70, 2: 0.71, 3: 0.72}
    assert not any(best_of([*runs_of("fm", values), *runs_of("lr", values)]).values())


def test_one_seed_is_never_marked() -> None:
    assert not any(best_of([*runs_of("fm", {1: 0.9}), *runs_of("lr", {1: 0.5})]).values())
    assert not any(best_of([*runs_of("fm", {1: 0.9}), *WORSE]).values())


def test_a_single_row_is_not_marked() -> None:
    assert best_of(CLEARLY_BETTER) == {"fm": ()}


def test_a_row_with_an_undefined_seed_is_not_marked() -> None:
    broken = [*CLEARLY_BETTER, *runs_of("fm", {4: math.nan})]
    assert not any(best_of([*broken, *WORSE]).values())
    table = only_table(build_leaderboard([*broken, *WORSE]))
    assert table.rows[0].metrics["auc"].count == 3
    assert any(note.startswith("A mean with a count") for note in table.notes)


def test_undefined_everywhere_stands_last() -> None:
    records = [*runs_of("aa", {1: math.nan, 2: math.nan}), *WORSE]
    table = only_table(build_leaderboard(records))
    assert [row.label for row in table.rows] == ["lr", "aa"]


def test_better_on_other_seeds_only_is_not_marked() -> None:
    """The mean of fm is better because of seed 9; on the common seeds it is worse."""
    fm = runs_of("fm", {1: 0.690, 2: 0.701, 3: 0.709, 9: 0.99})
    assert not any(best_of([*fm, *WORSE]).values())


def test_metric_without_direction_is_not_marked() -> None:
    near = runs_of("fm", {1: 1.0, 2: 1.1, 3: 1.15}, "calibration_ratio")
    far = runs_of("lr", {1: 2.0, 2: 2.11, 3: 2.12}, "calibration_ratio")
    assert not any(best_of([*near, *far]).values())


def test_differences_and_holm() -> None:
    fm = runs_of("fm", {1: 0.72, 2: 0.74, 3: 0.76})
    dnn = runs_of("dnn", {1: 0.70, 2: 0.72, 3: 0.725})
    table = only_table(build_leaderboard([*WORSE, *fm, *dnn], reference="lr"))
    rows = {row.label: row for row in table.rows}
    assert table.reference == "lr"
    assert rows["lr"].differences == {}
    assert rows["fm"].differences["auc"].mean == pytest.approx(0.03)
    lr = [0.70, 0.71, 0.72]
    p_fm = stats.ttest_rel([0.72, 0.74, 0.76], lr).pvalue
    p_dnn = stats.ttest_rel([0.70, 0.72, 0.725], lr).pvalue
    assert p_fm < p_dnn  # so that fm's is doubled and dnn's is the larger of itself and that
    assert rows["fm"].differences["auc"].p_value == pytest.approx(p_fm)
    assert rows["fm"].differences["auc"].p_adjusted == pytest.approx(2 * p_fm)
    assert rows["dnn"].differences["auc"].p_adjusted == pytest.approx(max(p_dnn, 2 * p_fm))


def test_missing_seeds_are_paired_by_seed() -> None:
    fm = runs_of("fm", {2: 0.74, 3: 0.77, 4: 0.10})
    table = only_table(build_leaderboard([*WORSE, *fm], reference="lr"))
    difference = next(row for row in table.rows if row.label == "fm").differences["auc"]
    assert difference.seeds == 2
    assert difference.mean == pytest.approx((0.03 + 0.05) / 2)
    assert "The rows do not all have the same seeds." in table.notes


@pytest.mark.parametrize("name", ["fm", "demo-fm", CLEARLY_BETTER[0].recipe_hash])
def test_reference_by_model_recipe_or_hash(name: str) -> None:
    table = only_table(build_leaderboard([*CLEARLY_BETTER, *WORSE], reference=name))
    assert table.reference == "fm"


def test_unknown_reference() -> None:
    with pytest.raises(ValueError, match="no row is called 'fmm'; rows: fm, lr"):
        build_leaderboard([*CLEARLY_BETTER, *WORSE], reference="fmm")


def test_ambiguous_reference() -> None:
    small, large = two_recipes("small", "large")
    with pytest.raises(ValueError, match=r"'fm' fits several rows: fm \(large\), fm \(small\)"):
        build_leaderboard([small, large], reference="fm")


def two_recipes(first: str, second: str) -> tuple[Record, Record]:
    recipes = [
        {"name": name, "model": {"name": "fm", "dim": dim}}
        for dim, name in enumerate((first, second))
    ]
    one, other = (build_record("fm", recipe=recipe) for recipe in recipes)
    return one, other


def test_labels_are_unique() -> None:
    table = only_table(build_leaderboard([*two_recipes("small", "large"), *WORSE]))
    assert {row.label for row in table.rows} == {"fm (small)", "fm (large)", "lr"}
    same = only_table(build_leaderboard(two_recipes("same", "same")))
    labels = {row.label for row in same.rows}
    assert labels == {f"fm (same, {row.recipe_hash[:6]})" for row in same.rows}
    assert len(labels) == 2


def other_data(record: Record, name: str = "demo") -> Record:
    facts = DatasetFacts(name=name, data_hash="bbbb", rows={"test": 10})
    return record.model_copy(update={"dataset": facts})


def test_other_data_stands_in_a_table_of_its_own() -> None:
    board = build_leaderboard([*WORSE, *(other_data(record) for record in CLEARLY_BETTER)])
    assert [[row.label for row in table.rows] for table in board.tables] == [["lr"], ["fm"]]
    assert board.warnings == (
        "2 different data sets are called demo: their runs stand in tables of their own, because "
        "results on different rows cannot be compared",
    )


def test_other_data_under_another_name_needs_no_warning() -> None:
    board = build_leaderboard([*WORSE, *(other_data(r, "else") for r in CLEARLY_BETTER)])
    assert len(board.tables) == 2
    assert board.warnings == ()


def test_reference_that_one_table_lacks() -> None:
    records = [*WORSE, *(other_data(record, "else") for record in CLEARLY_BETTER)]
    board = build_leaderboard(records, reference="lr")
    assert [table.reference for table in board.tables] == ["lr", None]
    assert "The reference lr has no run on this data set." in board.tables[1].notes


def test_failed_runs_are_left_out_and_named() -> None:
    failed = build_record("dnn", 5, status="failed", error="x", metrics={})
    board = build_leaderboard([*WORSE, failed])
    assert [row.label for row in only_table(board).rows] == ["lr"]
    assert board.warnings == ("failed runs are left out: demo-dnn-5",)


def test_runs_without_the_split_are_named() -> None:
    untested = build_record("dnn", 5, metrics={"valid": {"auc": 0.5}})
    board = build_leaderboard([*WORSE, untested])
    assert board.warnings == ("runs without test metrics are left out: demo-dnn-5",)


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no completed run has test metrics; got 0 records"):
        build_leaderboard([])
    with pytest.raises(ValueError, match="no completed run has holdout metrics; got 3 records"):
        build_leaderboard(WORSE, split="holdout")


def test_the_latest_of_repeated_runs_counts() -> None:
    again = build_record("lr", 1, 0.9, finished=START + timedelta(days=1))
    for records in ([*WORSE, again], [again, *WORSE]):
        board = build_leaderboard(records)
        assert only_table(board).rows[0].metrics["auc"].values[1] == 0.9
        assert board.warnings[0].startswith("1 earlier runs of the same recipe")


def test_metric_columns() -> None:
    metrics = {"test": {"log_loss": 0.5, "zeta": 1.0, "auc/buy": 0.6, "gauc": 0.6, "auc": 0.7}}
    table = only_table(build_leaderboard([build_record(metrics=metrics)]))
    assert table.metrics == ("auc", "gauc", "log_loss", "zeta")
    chosen = build_leaderboard([build_record(metrics=metrics)], metrics=["auc/buy"])
    assert only_table(chosen).metrics == ("auc/buy",)
    tasks = {"test": {"auc/click": 0.5, "auc/buy": 0.6}}
    assert only_table(build_leaderboard([build_record(metrics=tasks)])).metrics == (
        "auc/buy",
        "auc/click",
    )


def test_unknown_metric() -> None:
    with pytest.raises(ValueError, match="no run has ndcg of test; recorded: auc"):
        build_leaderboard(WORSE, metrics=["ndcg"])


def test_costs() -> None:
    speeds = {1: 100.0, 2: 900.0, 3: 200.0}
    records = [
        build_record(
            seed=seed,
            cost={
                "dense_parameters": 10,
                "embedding_parameters": 5,
                "flops_per_row": 42.0,
                "inference_rows_per_second": speed,
            },
        )
        for seed, speed in speeds.items()
    ]
    row = only_table(build_leaderboard(records)).rows[0]
    assert (row.parameters, row.flops_per_row) == (15, 42.0)
    assert row.training_rows_per_second == 1000.0
    assert row.inference_rows_per_second == 200.0


def test_costs_that_were_not_measured() -> None:
    row = only_table(build_leaderboard([build_record(cost={}, training=None)])).rows[0]
    assert row.parameters is None
    assert row.flops_per_row is None
    assert row.training_rows_per_second is None


def test_scenarios() -> None:
    records = [
        build_record(
            seed=seed, scenarios={"test": {"feed": {"rows": 8, "auc": auc}, "new": {"rows": 2}}}
        )
        for seed, auc in ((1, 0.6), (2, 0.8))
    ]
    table = only_table(build_leaderboard(records))
    assert table.scenario_rows == {"feed": 8, "new": 2}
    assert table.rows[0].scenarios["feed"]["auc"].mean == pytest.approx(0.7)
    assert "rows" not in table.rows[0].scenarios["feed"]


def test_published_by_model_or_recipe() -> None:
    ours, theirs = (Published(metrics={"auc": v}, source=s) for v, s in ((0.9, "A"), (0.8, "B")))
    table = only_table(
        build_leaderboard([*WORSE, *CLEARLY_BETTER], published={"lr": ours, "demo-fm": theirs})
    )
    assert {row.label: row.published for row in table.rows} == {"lr": ours, "fm": theirs}


def test_notes_name_mixed_sources_and_machines() -> None:
    other = build_record(
        seed=2,
        commit=Commit(id="beef", source_hash="1"),
        machine=Machine(cpu="Another", cores=64, threads=64),
    )
    notes = only_table(build_leaderboard([build_record(), other])).notes
    assert "The runs come from more than one version of the source." in notes
    assert any(note.startswith("Speeds come from different machines") for note in notes)
    alone = only_table(build_leaderboard([build_record()])).notes
    assert len(alone) == 1
