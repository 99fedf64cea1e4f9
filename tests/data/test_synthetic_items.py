"""The made-up catalogue: what is planted is there, and everything follows from the seed."""

import numpy as np
import pytest
import torch

from rankloom.data.synthetic_items import synthetic_sequences, synthetic_vectors


def test_the_seed_decides_everything() -> None:
    first, again, other = (synthetic_sequences(40, 30, seed=seed) for seed in (1, 1, 2))
    assert first.data_hash == again.data_hash != other.data_hash


def test_sizes_are_the_arguments() -> None:
    data = synthetic_sequences(
        50, 20, branching=(2, 3, 2), mean_length=5, max_length=6, width=8, seed=3
    )
    assert data.catalogue.num_items == 50
    assert data.catalogue.vectors is not None
    assert data.catalogue.vectors.shape == (50, 8)
    assert data.catalogue.attribute_names == ("level_1", "level_2", "level_3")
    assert [len(labels) for labels in data.catalogue.attribute_labels] == [2, 6, 12]
    assert data.histories.num_users == 20
    assert data.histories.lengths.min() >= 3
    assert data.histories.lengths.max() <= 6


def test_users_follow_successors_and_stay_in_leaves() -> None:
    data = synthetic_sequences(100, 3_000, branching=(2, 5), follow=0.5, stay=0.3, seed=4)
    items, leaf = data.histories.items - 1, data.catalogue.attributes[:, 1].numpy()
    same_user = np.ones(len(items) - 1, bool)
    same_user[data.histories.offsets[1:-1] - 1] = False
    source, target = items[:-1][same_user], items[1:][same_user]
    moves = np.zeros((100, 100))
    np.add.at(moves, (source, target), 1)
    best = moves.argmax(1)
    # The successor: by far the most frequent one, another item for every item, in the same leaf.
    assert sorted(best.tolist()) == list(range(100))
    assert (leaf[best] == leaf).all()
    share = moves.max(1).sum() / moves.sum()
    assert share == pytest.approx(0.5 + 0.3 / 10 + 0.2 / 100, abs=0.02)
    inside = (leaf[source] == leaf[target]).mean()
    assert inside == pytest.approx(0.8 + 0.2 / 10, abs=0.02)


def test_vectors_and_texts_follow_the_clusters() -> None:
    data = synthetic_sequences(120, 1, branching=(3, 4), width=32, noise=0.1)
    assert data.catalogue.vectors is not None
    distance = torch.cdist(data.catalogue.vectors, data.catalogue.vectors)
    top, leaf = data.catalogue.attributes.T
    same_leaf = leaf[:, None] == leaf
    same_top = (top[:, None] == top) & ~same_leaf
    other = top[:, None] != top
    assert distance[same_leaf].mean() < 0.5 * distance[same_top].mean()
    assert distance[same_top].mean() < 0.9 * distance[other].mean()
    words = [set(text.partition(". ")[2].rstrip(".").split()) for text in data.catalogue.texts]
    for first in range(0, 120, 7):
        for second in range(first + 1, 120, 5):
            if other[first, second]:
                assert not words[first] & words[second]


def test_one_item_and_one_user() -> None:
    data = synthetic_sequences(1, 1, branching=(3,))
    assert set(data.histories.items.tolist()) == {1}


def test_vectors_come_in_blocks_and_do_not_depend_on_how_many_there_are() -> None:
    blocks = list(synthetic_vectors(250, 8, branching=(3, 3), block_items=100, seed=1))
    assert [len(block) for block in blocks] == [100, 100, 50]
    fewer = torch.cat(list(synthetic_vectors(130, 8, branching=(3, 3), block_items=100, seed=1)))
    assert torch.equal(torch.cat(blocks)[:130], fewer)
    assert not torch.equal(blocks[0], blocks[1])
    quiet = torch.cat(list(synthetic_vectors(250, 8, branching=(3, 3), noise=0.0, seed=1)))
    assert len(torch.unique(quiet, dim=0)) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branching": ()}, "branching needs numbers from 1"),
        ({"num_items": 0}, "must be at least 1"),
        ({"mean_length": 2.0}, "3 <= mean_length"),
        ({"follow": 0.8, "stay": 0.3}, "at most 1; got 0.8"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_sequences(**settings)  # type: ignore[arg-type]
