import pytest
import torch
from torch import nn

from rankloom.layers.causal_transformer import CausalLayer, CausalTransformer
from rankloom.layers.token_mlp import TokenMLP


def transformer(**options: float) -> CausalTransformer:
    torch.manual_seed(0)
    layers = [CausalLayer(8, 2, TokenMLP(None, 8, 12), nn.LayerNorm, **options) for _ in range(2)]
    return CausalTransformer(layers, nn.LayerNorm(8)).eval()


def test_one_layer_is_what_the_equations_say() -> None:
    layer = transformer().layers[0]
    x = torch.randn(1, 3, 8)
    q, k, v = layer.project(layer.attention_norm(x))[0].chunk(3, dim=-1)  # [3, 8] each
    expected = []
    for place in range(3):
        heads = []
        for half in (slice(0, 4), slice(4, 8)):
            weights = (k[: place + 1, half] @ q[place, half] / 2).softmax(0)
            heads.append(weights @ v[: place + 1, half])
        z = x[0, place] + layer.out.weight @ torch.cat(heads)
        expected.append(z + layer.network(layer.network_norm(z)))
    torch.testing.assert_close(layer(x)[0][0], torch.stack(expected))


def test_steps_of_beams_give_the_states_of_one_pass() -> None:
    model = transformer()
    context, mask = torch.randn(2, 4, 8), torch.tensor([[True] * 4, [True, True, False, False]])
    encoded, cache = model.encode(context, mask)
    torch.testing.assert_close(encoded, model(context))
    steps = torch.randn(3, 2, 3, 8)  # [steps, batch, beams, dim]
    parents = torch.tensor([[0, 0, 0], [2, 0, 1], [1, 1, 2]])
    lines = [[beam] for beam in range(3)]  # the beams of each step that a beam has come through
    for step in range(3):
        before, held = cache.own, cache.own.clone()
        hidden, cache = model.step(steps[step], cache, parents[step].expand(2, -1))
        assert cache.num_steps == step + 1
        assert torch.equal(before, held)  # the cache that was given stays as it is
        if step:
            lines = [[*lines[int(parents[step, beam])], beam] for beam in range(3)]
        for row, length in enumerate((4, 2)):
            for beam in range(3):
                own = [steps[s, row, b] for s, b in enumerate(lines[beam])]
                whole = torch.cat([context[row, :length], torch.stack(own)])
                torch.testing.assert_close(hidden[row, beam], model(whole[None])[0, -1])


def test_no_position_sees_a_later_one() -> None:
    model, x = transformer(), torch.randn(1, 5, 8)
    changed = x.clone()
    changed[0, 3:] = torch.randn(2, 8)
    torch.testing.assert_close(model(changed)[0, :3], model(x)[0, :3])
    assert (model(changed)[0, 3:] != model(x)[0, 3:]).all()


def test_dropout_is_for_training_alone() -> None:
    model, x = transformer(dropout=0.5, attention_dropout=0.5), torch.randn(1, 5, 8)
    torch.testing.assert_close(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="got dim=8, num_heads=3"):
        CausalLayer(8, 3, nn.Identity(), nn.LayerNorm)
