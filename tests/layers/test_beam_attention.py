import torch

from rankloom.layers.beam_attention import beam_attention, follow_parents


def test_beams_attend_to_their_context_and_to_their_own_steps_in_one_softmax() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch, heads, beams, seq, steps, dim = 2, 3, 4, 5, 2, 6
    q, keys, values = draw(batch, heads, beams, dim), draw(2, 3, seq, dim), draw(2, 3, seq, dim)
    own_keys, own_values = draw(steps, 2, beams, heads, dim), draw(steps, 2, beams, heads, dim)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = beam_attention(q, keys, values, mask, own_keys, own_values)
    for row in range(batch):
        real = int(mask[row].sum())
        for head in range(heads):
            for beam in range(beams):
                all_keys = torch.cat([keys[row, head, :real], own_keys[:, row, beam, head]])
                all_values = torch.cat([values[row, head, :real], own_values[:, row, beam, head]])
                weights = (all_keys @ q[row, head, beam] / 6**0.5).softmax(0)
                torch.testing.assert_close(found[row, head, beam], weights @ all_values)


def test_new_beams_hold_what_their_parents_held_and_one_step_more() -> None:
    own = torch.arange(24.0).view(2, 2, 3, 2)  # [steps, batch, beams, 2]
    before = own.clone()
    parents = torch.tensor([[2, 2, 0, 1], [0, 0, 0, 2]])
    held = follow_parents(own, parents)
    assert held.shape == (3, 2, 4, 2)
    assert held[0, 0, :, 0].tolist() == [4, 4, 0, 2]
    assert held[0, 1, :, 1].tolist() == [7, 7, 7, 11]
    assert held[1, 0, :, 0].tolist() == [16, 16, 12, 14]
    held.fill_(-1)
    assert torch.equal(own, before)


def test_the_first_step_has_nothing_to_follow() -> None:
    held = follow_parents(torch.empty(0, 2, 1, 5), torch.zeros(2, 3, dtype=torch.int64))
    assert held.shape == (1, 2, 3, 5)
