"""BERT4Rec: what is masked, what it sees, and its loss."""

import pytest
import torch

from tests.retrieval.sequential.sequential_models import (
    NUM_ITEMS,
    all_scores,
    contexts,
    randomised,
    rows,
)


def test_a_masked_item_sees_both_sides_and_not_itself() -> None:
    model = randomised("bert4rec")
    masked = torch.tensor([[False, True, False]])

    def middle(items: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([items]), masked)[0, 1]

    told = middle([1, 2, 3])
    torch.testing.assert_close(middle([1, 7, 3]), told)
    assert not torch.allclose(middle([7, 2, 3]), told)
    assert not torch.allclose(middle([1, 2, 7]), told)


def test_a_score_is_of_a_mask_after_the_history() -> None:
    model = randomised("bert4rec")
    items = torch.tensor([[4, 5, 0]])
    masked = torch.tensor([[False, False, True]])
    with torch.no_grad():
        state = model(items, masked)[0, 2]
        expected = state @ model.embed.items.weight[1:].T + model.bias
    scores = all_scores(model, contexts([4, 5]))[0]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_last_item_masked_is_what_prediction_does() -> None:
    model = randomised("bert4rec", last_only_share=1.0)
    batch = rows([1, 2, 3], [4, 5, 6, 7])
    scores = all_scores(model, contexts([1, 2], [4, 5, 6])).double()
    expected = -(scores.log_softmax(1)[0, 3 - 1] + scores.log_softmax(1)[1, 7 - 1]) / 2
    assert model.loss(batch).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_counts_masked_items_alone() -> None:
    model = randomised("bert4rec", last_only_share=0.0, mask_ratio=0.5)
    batch = rows([1, 2, 3, 4], [5, 6])
    sequences = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    torch.manual_seed(4)
    loss = model.loss(batch).total.item()
    torch.manual_seed(4)
    masked = model._draw(sequences)
    assert masked.sum(1).min() > 0
    assert 2 < masked.sum() < 6
    with torch.no_grad():
        states = model(sequences, masked)
    total = 0.0
    for row, place in masked.nonzero().tolist():
        logits = model.embed.items.weight[1:] @ states[row, place] + model.bias
        total -= logits.log_softmax(0)[sequences[row, place] - 1].item()
    assert loss == pytest.approx(total / int(masked.sum()))


def test_masks_fall_on_real_items_at_their_rate() -> None:
    model = randomised("bert4rec", last_only_share=0.0, mask_ratio=0.3)
    items = torch.randint(1, NUM_ITEMS + 1, (4000, 6))
    items[:, 5] = 0
    masked = model._draw(items)
    assert not masked[:, 5].any()
    # Rows of which nothing was drawn mask their last item.
    nothing = 0.7**5
    expected = [0.3] * 4 + [0.3 + nothing]
    assert masked[:, :5].double().mean(0).tolist() == pytest.approx(expected, abs=0.03)


def test_some_rows_mask_their_last_item_alone() -> None:
    model = randomised("bert4rec", last_only_share=0.4, mask_ratio=1 - 1e-9)
    masked = model._draw(torch.ones(3000, 4, dtype=torch.int64))
    assert masked[:, 3].all()
    alone = (masked.sum(1) == 1).double().mean().item()
    assert alone == pytest.approx(0.4, abs=0.04)
