"""Directions and order of metrics at a rank."""

from run_records import build_record

from rankloom.report.rows import higher_is_better, metric_columns


def test_metrics_at_a_rank_have_the_direction_of_their_kind() -> None:
    assert higher_is_better("recall@10") is True
    assert higher_is_better("ndcg@5") is True
    assert higher_is_better("recall_id@10") is True
    assert higher_is_better("invalid_rate") is False
    assert higher_is_better("length@5") is None


def test_columns_stand_by_kind_then_by_rank() -> None:
    names = ["ndcg@10", "recall@10", "recall_id@5", "recall@5", "mrr@5", "ndcg@5"]
    record = build_record(metrics={"test": dict.fromkeys(names, 0.1)})
    assert metric_columns([record], "test") == (
        "recall@5",
        "recall_id@5",  # beside that of items
        "recall@10",
        "ndcg@5",
        "ndcg@10",
        "mrr@5",
    )
