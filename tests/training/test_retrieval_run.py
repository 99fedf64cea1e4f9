"""What a finished retrieval run recommends, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_toy import DECODER, longer, scorer, toy_data, toy_recipe
from safetensors.torch import save_file

from rankloom.data.sequence_store import SequenceData
from rankloom.evaluation.retrieval_protocol import RetrievalEvaluationConfig
from rankloom.retrieval.histories import Histories, HistoryBatch
from rankloom.training.append_items import append
from rankloom.training.retrieval_experiment import train_retrieval
from rankloom.training.retrieval_run import RetrievalRun

ONE_EPOCH = {"epochs": 1, "batch_size": 32}
EXACT = RetrievalEvaluationConfig(mode="exact")
SPARE = {"kind": "dedup", "spare_digits": 3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def generator(dataset: Path, out: Path) -> RetrievalRun:
    items = {"kind": "given"}
    recipe = toy_recipe(dataset, training=ONE_EPOCH, items=items, collisions=SPARE)
    return train_retrieval(recipe, out=out)


@pytest.fixture(scope="module")
def sasrec(dataset: Path, out: Path) -> RetrievalRun:
    return train_retrieval(scorer(dataset, training=ONE_EPOCH), out=out)


@pytest.fixture(params=["generator", "sasrec"])
def run(request: pytest.FixtureRequest) -> RetrievalRun:
    found: RetrievalRun = request.getfixturevalue(request.param)
    return found


def test_recommendations_are_items_with_titles_and_falling_scores(run: RetrievalRun) -> None:
    catalogue = run.dataset.catalogue
    answers = run.recommend([catalogue.ids[:4], catalogue.ids[5:6]], count=7)
    assert len(answers) == 2
    for answer in answers:
        assert len(set(answer.items)) == 7
        numbers = catalogue.numbers_of(answer.items)
        assert (numbers > 0).all()
        assert answer.titles == [catalogue.titles[number - 1] for number in numbers]
        assert answer.scores == sorted(answer.scores, reverse=True)
        assert answer.unknown == 0
    assert answers[0].items != answers[1].items


def test_scores_of_a_scorer_are_the_models_own(sasrec: RetrievalRun) -> None:
    catalogue = sasrec.dataset.catalogue
    with torch.inference_mode():
        scores = sasrec.model.score_items(HistoryBatch(torch.tensor([[3, 9, 4]])))[0]
    found = sasrec.recommend([[catalogue.ids[2], catalogue.ids[8], catalogue.ids[3]]], count=3)[0]
    best = scores.topk(3)
    assert found.items == catalogue.ids_of(best.indices.numpy() + 1)
    np.testing.assert_allclose(found.scores, best.values.numpy(), rtol=1e-5)


def test_unknown_items_of_a_history_are_left_out_and_counted(run: RetrievalRun) -> None:
    ids = run.dataset.catalogue.ids
    plain, mixed = run.recommend([ids[:2], ["no such", *ids[:2], "nor this"]])
    assert mixed.unknown == 2
    assert mixed.items == plain.items
    np.testing.assert_allclose(mixed.scores, plain.scores, rtol=1e-5)


def test_an_empty_history_is_answered(run: RetrievalRun) -> None:
    nothing, unknown = run.recommend([[], ["no such"]], count=5)
    assert len(nothing.items) == 5
    assert nothing.items == unknown.items
    assert run.recommend([]) == []


def test_blocked_items_and_histories_are_left_out(run: RetrievalRun) -> None:
    ids = run.dataset.catalogue.ids
    history = ids[:5]
    best = run.recommend([history], count=3)[0].items
    without = run.recommend([history], count=10, blocked=best[:2])[0].items
    assert not set(without) & set(best[:2])
    assert without[0] == best[2]
    fresh = run.recommend([history], count=35, exclude_history=True)[0].items
    assert not set(fresh) & set(history)
    with pytest.raises(ValueError, match="1 blocked items are not in the catalogue, such as 'x'"):
        run.recommend([history], blocked=["x"])


def test_more_items_than_there_are(run: RetrievalRun) -> None:
    found = run.recommend([run.dataset.catalogue.ids[:2]], count=100)[0]
    assert sorted(found.items) == sorted(run.dataset.catalogue.ids)
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        run.recommend([[]], count=0)


def test_requests_in_several_batches_are_those_of_one(sasrec: RetrievalRun, dataset: Path) -> None:
    data = SequenceData.open(dataset)
    histories = [data.catalogue.ids_of(data.histories.of(user)) for user in range(9)]
    training = sasrec.recipe.training.model_copy(update={"evaluation_batch_size": 4})
    recipe = sasrec.recipe.model_copy(update={"training": training})
    other = RetrievalRun(sasrec.folder, sasrec.record, recipe, data)
    for one, several in zip(sasrec.recommend(histories), other.recommend(histories), strict=True):
        assert one.items == several.items


def test_users_are_known_by_their_ids(sasrec: RetrievalRun) -> None:
    users = sasrec.dataset.users[:1]
    plain = sasrec.recommend([[]])
    assert sasrec.recommend([[]], users=users)[0].items == plain[0].items  # it reads no users
    with pytest.raises(ValueError, match="one user for each history: got 1 users, 2 histories"):
        sasrec.recommend([[], []], users=users)


def test_a_changed_catalogue_is_refused(run: RetrievalRun, dataset: Path, tmp_path: Path) -> None:
    data = SequenceData.open(dataset)
    histories = Histories(data.histories.items[::-1].copy(), data.histories.offsets, 40)
    other = SequenceData(data.name, data.catalogue, histories, data.users)
    other.save(tmp_path / "other")
    opened = RetrievalRun.open(run.folder, dataset=tmp_path / "other")
    with pytest.raises(ValueError, match="the catalogue or the sequences changed since"):
        opened.recommend([[]])


def test_appended_items_can_be_recommended_without_training(
    generator: RetrievalRun, dataset: Path, out: Path, tmp_path: Path
) -> None:
    more = longer(SequenceData.open(dataset))
    more.save(tmp_path / "more")
    appended = append(generator.recipe, more, out=out)
    run = RetrievalRun.open(generator.folder, dataset=tmp_path / "more", appended=appended.folder)
    ids = more.catalogue.ids
    found = run.recommend([ids[:4]], count=43)[0]
    assert sorted(found.items) == sorted(ids)
    before = generator.recommend([ids[:4]], count=40)[0]
    scores = dict(zip(found.items, found.scores, strict=True))
    # What the published items score does not change.
    np.testing.assert_allclose([scores[item] for item in before.items], before.scores, rtol=1e-4)
    after_new = run.recommend([["new0"]], count=3)[0]
    assert after_new.unknown == 0


def test_users_keep_their_vectors_when_a_longer_data_set_numbers_them_anew(
    dataset: Path, out: Path
) -> None:
    recipe = toy_recipe(
        dataset,
        items={"kind": "given"},
        model=DECODER | {"num_user_tokens": 100},
        training=ONE_EPOCH,
        collisions=SPARE,
    )
    trained = train_retrieval(recipe, out=out)
    with torch.no_grad():  # vectors that cannot be taken for each other
        trained.model.get_parameter("tokens.user.table.weight").normal_(0, 3)
    save_file(trained.model.state_dict(), trained.folder / "model.safetensors")
    data = SequenceData.open(dataset)
    more = longer(data)
    histories = Histories.from_lists(
        [[1, 2, 3], *(data.histories.of(user) for user in range(data.histories.num_users))], 43
    )
    renumbered = SequenceData(more.name, more.catalogue, histories, ["new user", *data.users])
    appended = append(recipe, renumbered, out=out).folder
    run = RetrievalRun.open(trained.folder, dataset=renumbered, appended=appended)
    history, users = data.catalogue.ids[:3], ["new user", *data.users[:3]]
    before = trained.recommend([history] * 4, count=40, users=users)
    after = run.recommend([history] * 4, count=43, users=users)
    for old, new in zip(before, after, strict=True):
        scores = dict(zip(new.items, new.scores, strict=True))
        np.testing.assert_allclose([scores[item] for item in old.items], old.scores, rtol=1e-4)
    # The ranks of the old users' targets move by the three new items at most.
    first = trained.evaluate(config=EXACT).places.first
    np.testing.assert_array_less(run.evaluate(config=EXACT).places.first[1:] - first, 4)
    shutil.copytree(dataset, dataset.parent / "kept")
    shutil.rmtree(dataset)
    try:
        moved = RetrievalRun.open(trained.folder, dataset=renumbered, appended=appended)
        answers = moved.recommend([history] * 2, users=users[:2])
    finally:
        shutil.move(dataset.parent / "kept", dataset)
    assert answers[0] == answers[1]  # new to the model, both


def test_models_without_ids_take_no_appended_ones(
    sasrec: RetrievalRun, generator: RetrievalRun, dataset: Path
) -> None:
    ids = generator.folder / "semantic_ids"
    run = RetrievalRun.open(sasrec.folder, dataset=dataset, appended=ids)
    with pytest.raises(ValueError, match="sasrec scores items and reads no semantic ids"):
        run.recommend([[]])


def test_appended_ids_of_other_items_are_refused(
    generator: RetrievalRun, dataset: Path, out: Path
) -> None:
    more = longer(SequenceData.open(dataset))
    other = generator.recipe.model_copy(update={"seed": 9})
    foreign = append(other, more, out=out)
    run = RetrievalRun.open(generator.folder, dataset=more, appended=foreign.folder)
    with pytest.raises(ValueError, match="do not begin with those that"):
        run.recommend([[]])
    own = append(generator.recipe, more, out=out)
    run = RetrievalRun.open(
        generator.folder, dataset=longer(SequenceData.open(dataset), new=2), appended=own.folder
    )
    with pytest.raises(ValueError, match="are not of the items of"):
        run.recommend([[]])


def test_damaged_weights_are_told(sasrec: RetrievalRun, tmp_path: Path) -> None:
    folder = shutil.copytree(sasrec.folder, tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged: .*; train the recipe anew"):
        RetrievalRun.open(folder).recommend([[]])
