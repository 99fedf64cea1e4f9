import torch

from rankloom.layers.beam_attention import beam_attention, follow_parents


def test_beams_attend_to_their_context_and_to_their_own_steps_in_one_softmax() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch, heads, beams, seq, steps, dim = 2, 3, 4, 5, 2, 6
    q, keys, values = draw(batch, heads, beams, dim), draw(2, 3, seq, dim), draw(2, 3, seq, dim)
    own_keys, own_values = draw(2, beams, heads, steps, dim), draw(2, beams, heads, steps, dim)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = beam_attention(q, keys, values, mask, own_keys, own_values)
    for row in range(batch):
        real = int(mask[row].sum())
        for head in range(heads):
            for beam in range(beams):
                all_keys = torch.cat([keys[row, head, :real], own_keys[row, beam, head]])
                all_values = torch.cat([values[row, head, :real], own_values[row, beam, head]])
                weights = (all_keys @ q[row, head, beam] / 6**0.5).softmax(0)
                torch.testing.assert_close(found[row, head, beam], weights @ all_values)


def test_new_beams_hold_what_their_parents_held() -> None:
    own = torch.arange(12.0).view(2, 3, 2)
    parents = torch.tensor([[2, 2, 0, 1], [0, 0, 0, 2]])
    held = follow_parents(own, parents)
    assert held[0, :, 0].tolist() == [4, 4, 0, 2]
    assert held[1, :, 1].tolist() == [7, 7, 7, 11]
