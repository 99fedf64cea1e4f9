import math

import pytest
import torch

from rankloom.retrieval.histories import HistoryBatch, pad_histories
from rankloom.retrieval.item_schema import ItemSchema
from rankloom.retrieval.protocols import ItemScorer
from rankloom.retrieval.tokenizers.famae import FAMAE, FAMAEConfig

CONFIG = FAMAEConfig(dim=8, num_layers=1, num_heads=2, hidden_dim=16, dropout=0.0, max_length=4)
ATTRIBUTES = torch.tensor([[1, 2], [2, 0], [1, 1], [3, 2], [2, 1], [3, 1]])


def model(config: FAMAEConfig = CONFIG) -> FAMAE:
    torch.manual_seed(0)
    return FAMAE(config, ItemSchema(6, attributes=ATTRIBUTES))


def batch_of(histories: list[list[int]], targets: list[int]) -> HistoryBatch:
    items = pad_histories(histories, 100)
    wanted = torch.zeros_like(items)
    for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
        wanted[row, max(len(history) - 1, 0)] = target
    return HistoryBatch(items, wanted)


def test_targets_stand_behind_the_newest_items() -> None:
    items = torch.tensor([[1, 2, 0, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    targets = torch.zeros_like(items)
    targets[0, 1], targets[1, 4], targets[2, 0] = 6, 1, 2
    newest, kept = model().with_targets(items, targets)
    assert newest.tolist() == [[1, 2, 6, 0, 0], [2, 3, 4, 5, 1], [2, 0, 0, 0, 0]]
    assert kept.tolist() == [6, 1, 2]


def test_item_vectors_are_field_embeddings_side_by_side() -> None:
    famae = model()
    vectors = famae.item_vectors()
    assert vectors.shape == (6, 24)
    item, brand, colour = famae.tables
    torch.testing.assert_close(vectors[3], torch.cat([item[4], brand[3], colour[2]]))
    torch.testing.assert_close(vectors[1], torch.cat([item[2], brand[2], torch.zeros(8)]))


def test_masked_fields_are_not_seen_and_others_are() -> None:
    famae = model().eval()
    masked = torch.tensor([[True, False, True]])
    # Items 1 and 3 share their second field alone; 1 and 4 their third.
    states = [famae(torch.tensor([[2, 5, target, 0]]), masked) for target in (1, 3, 4)]
    torch.testing.assert_close(states[0], states[1])
    assert not torch.allclose(states[0], states[2])
    other = famae(torch.tensor([[5, 2, 1, 0]]), masked)
    assert not torch.allclose(states[0], other)


def test_padding_changes_nothing() -> None:
    famae = model().eval()
    masked = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        famae(torch.tensor([[2, 5, 1]]), masked), famae(torch.tensor([[2, 5, 1, 0, 0]]), masked)
    )


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_masked_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    famae = model().eval()
    batch = batch_of([[1, 2], [3], [4]], [2, 5, 0])
    masked = torch.tensor([[True, False, True], [False, True, True]])
    monkeypatch.setattr(famae, "draw_masks", lambda targets: masked)
    states = famae(torch.tensor([[1, 2, 2], [3, 5, 0]]), masked)
    wanted = 0.0
    # Item 2 has no third field; item 5 has values 2 and 1.
    for row, field, value in [(0, 0, 2), (1, 1, 2), (1, 2, 1)]:
        table = famae.tables[field][1:]
        logits = math.sqrt(8) * torch.cosine_similarity(states[row], table, dim=1)
        wanted -= float(logits.log_softmax(0)[value - 1])
    loss = famae.loss(batch)
    assert float(loss.total) == pytest.approx(wanted / 2, rel=1e-5)
    assert float(sum(loss.parts.values())) == pytest.approx(float(loss.total), rel=1e-5)


def test_every_number_of_masked_fields_is_as_likely() -> None:
    torch.manual_seed(1)
    masks = model().draw_masks(torch.ones(6000, dtype=torch.int64))
    counts = torch.bincount(masks.sum(1), minlength=4).float() / 6000
    torch.testing.assert_close(counts, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.03, rtol=0)
    torch.testing.assert_close(masks.float().mean(0), torch.full((3,), 2 / 3), atol=0.03, rtol=0)


def test_gradients_reach_every_parameter_and_a_rule_is_learned() -> None:
    famae = model(CONFIG.model_copy(update={"dim": 16}))
    # After item i comes item i + 1.
    batch = batch_of([[1, 2], [2, 3], [3, 4], [4, 5], [1], [2]], [3, 4, 5, 6, 2, 3])
    famae.loss(batch).total.backward()
    for name, parameter in famae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    optimizer = torch.optim.Adam(famae.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        famae.loss(batch).total.backward()
        optimizer.step()
    assert isinstance(famae, ItemScorer)
    famae.eval()
    with torch.no_grad():
        best = famae.score_items(HistoryBatch(batch.items)).argmax(1) + 1
    assert best.tolist() == [3, 4, 5, 6, 2, 3]
    assert not famae.tables[1][0].any()


def test_empty_histories_empty_batches_and_no_side_fields() -> None:
    famae = FAMAE(FAMAEConfig(dim=8, num_heads=2), ItemSchema(3)).eval()
    assert famae.item_vectors().shape == (3, 8)
    assert torch.isfinite(famae.score_items(HistoryBatch(torch.zeros(2, 1).long()))).all()
    assert torch.isfinite(famae.loss(batch_of([[]], [2])).total)
    assert famae.loss(batch_of([[1], [2]], [0, 0])).total == 0
    assert famae.score_items(HistoryBatch(torch.zeros(0, 1).long())).shape == (0, 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="famae learns from batches with targets"):
        model().loss(HistoryBatch(torch.ones(1, 1).long()))
    with pytest.raises(ValueError, match="num_heads must divide dim"):
        FAMAE(FAMAEConfig(dim=8, num_heads=3), ItemSchema(6))
