"""A retrieval run looked into: its metric by the target's margin and by its training count.

What the figures mean stands in `rankloom.evaluation.boundary`.
"""

import numpy as np

from rankloom.evaluation.boundary import BoundaryFigures, Sorted, metric_by_tenths
from rankloom.evaluation.metrics import FloatArray
from rankloom.evaluation.retrieval_metrics import Places, per_user
from rankloom.training.retrieval_evaluation import held_out_name, read_places
from rankloom.training.retrieval_run import RetrievalRun
from rankloom.training.tokenized import load_tokenizer

MARGIN = "margin of the first code"
COUNT = "training count"


def inspect_retrieval(
    run: RetrievalRun, *, split: str = "test", metric: str = "recall@10", samples: int = 1000
) -> BoundaryFigures:
    """A metric by tenths of the margin and of the training count of the users' targets.

    Args:
        run: the run; where it kept the places of its targets, nothing is decoded again.
        split: valid or test.
        metric: such as `recall@10`.
        samples: draws of each bootstrap.

    Raises:
        FileNotFoundError: the data set or the semantic ids are not there.
        ValueError: no such split or metric, nothing held out, or the data set is not the run's.
    """
    histories = run.dataset.histories
    _, targets, _ = histories.held_out(held_out_name(split))
    values = per_user(_places(run, split), metric)
    rows = targets - 1
    counts = histories.training().counts()
    sortings: list[Sorted] = []
    margins = first_margins(run)
    if margins is not None:
        sortings.append(metric_by_tenths(MARGIN, margins[rows], values, samples=samples))
    sortings.append(metric_by_tenths(COUNT, counts[rows], values, samples=samples))
    record, tokenizer = run.record, run.recipe.tokenizer
    return BoundaryFigures(
        run_id=record.run_id,
        model=record.model,
        tokenizer="" if tokenizer is None else tokenizer.kind,
        seed=record.seed,
        dataset=record.dataset.name,
        data_hash=record.dataset.data_hash,
        split=split,
        metric=metric,
        users=len(targets),
        sortings=tuple(sortings),
    )


def first_margins(run: RetrievalRun) -> FloatArray | None:
    """[items] margin of each item's first code over the second best; None where there is none."""
    if run.tokenized is None:
        return None
    tokenizer = load_tokenizer(run.recipe, run.tokenized)
    confidence = tokenizer.assign(run.tokenized.vectors).confidence
    if confidence is None:
        return None
    return np.asarray(confidence[:, 0].detach().cpu().numpy(), np.float64)


def _places(run: RetrievalRun, split: str) -> Places:
    """As the run wrote them; evaluated where it was not."""
    try:
        return read_places(run.folder, split)
    except FileNotFoundError:
        return run.evaluate(split).places
