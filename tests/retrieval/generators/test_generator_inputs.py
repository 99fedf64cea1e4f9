import torch
from generator_cases import histories, whole_sequences

from rankloom.retrieval.generators.id_likelihood import id_log_likelihood
from rankloom.retrieval.generators.inputs import UserEmbedding, newest_items
from rankloom.retrieval.histories import HistoryBatch


def test_the_newest_items_stay_with_their_targets() -> None:
    batch = whole_sequences([1, 2, 3, 4, 5], [6, 7, 8])
    newest = newest_items(batch, 3)
    assert newest.items.tolist() == [[2, 3, 4], [6, 7, 0]]
    assert newest.targets.tolist() == [[3, 4, 5], [7, 8, 0]]
    assert newest_items(batch, 4) is batch
    served = newest_items(histories([1, 2, 3], users=[4]), 2)
    assert served.targets is None
    assert served.users.tolist() == [4]


def test_users_share_vectors_by_their_number_and_unknown_ones_have_none() -> None:
    embed = UserEmbedding(3, 2)
    vectors = embed(torch.tensor([1, 2, 3, 4, 0]), 5)
    assert torch.equal(vectors[:3], embed.table.weight)
    assert torch.equal(vectors[3], vectors[0])
    assert vectors[4].tolist() == [0, 0]
    assert embed(None, 2).tolist() == [[0, 0], [0, 0]]


def test_likelihood_of_an_id_is_the_sum_over_its_tokens() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]))
    tokens = torch.tensor([[2, 1, 0], [1, 0, 0]])
    found = id_log_likelihood(logits.expand(2, -1, -1), tokens).exp()
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.8, 0.3]))


def test_a_batch_of_shorter_rows_is_not_cut() -> None:
    batch = HistoryBatch(torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]))
    assert newest_items(batch, 3).items.tolist() == [[1, 2, 0], [3, 0, 0]]
