import pytest
import torch
from torch import nn

from rankloom.layers.encoder import EncoderLayer


def drawn(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def torch_layer(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """torch's layer with the same weights; its biases of attention, which ours lacks, are zero."""
    dim, hidden = layer.network.reduce.out_features, layer.network.reduce.in_features
    other = nn.TransformerEncoderLayer(
        dim, layer.attend.num_heads, hidden, dropout=0.0, batch_first=True
    ).double()
    pairs = [
        (other.self_attn.in_proj_weight, layer.attend.project.weight),
        (other.self_attn.out_proj.weight, layer.out.weight),
        (other.linear1.weight, layer.network.expand.weight),
        (other.linear1.bias, layer.network.expand.bias),
        (other.linear2.weight, layer.network.reduce.weight),
        (other.linear2.bias, layer.network.reduce.bias),
        (other.norm1.weight, layer.attention_norm.weight),
        (other.norm1.bias, layer.attention_norm.bias),
        (other.norm2.weight, layer.network_norm.weight),
        (other.norm2.bias, layer.network_norm.bias),
    ]
    with torch.no_grad():
        nn.init.zeros_(other.self_attn.in_proj_bias)
        nn.init.zeros_(other.self_attn.out_proj.bias)
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return other


def test_it_is_torch_s_encoder_layer_without_biases_of_attention() -> None:
    torch.manual_seed(0)
    layer = drawn(EncoderLayer(6, 2, 5))
    other = torch_layer(layer)
    x = torch.randn(3, 4, 6, dtype=torch.double, requires_grad=True)
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    outputs = [layer(x, real[:, None, None]), other(x, src_key_padding_mask=~real)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((out * weights).sum(), x) for out in outputs]
    torch.testing.assert_close(*gradients)


def test_without_norms_it_is_two_skips() -> None:
    torch.manual_seed(0)
    layer = drawn(
        EncoderLayer(4, 2, 3, activation="leaky_relu", attention_norm=False, network_norm=False)
    )
    x = torch.randn(2, 3, 4, dtype=torch.double)
    z = x + layer.attend(x) @ layer.out.weight.T
    hidden = z @ layer.network.expand.weight.T + layer.network.expand.bias
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    expected = z + hidden @ layer.network.reduce.weight.T + layer.network.reduce.bias
    torch.testing.assert_close(layer(x), expected)
    assert len(list(layer.parameters())) == 6


def test_each_dropout_works_in_training_only() -> None:
    x = torch.randn(64, 3, 4, dtype=torch.double)
    for name in ("attention_dropout", "dropout", "hidden_dropout"):
        torch.manual_seed(0)
        layer = drawn(EncoderLayer(4, 2, 3, **{name: 0.5}))
        assert not torch.allclose(layer(x), layer(x)), name
        layer.eval()
        assert torch.equal(layer(x), layer(x)), name


def test_heads_must_divide_the_width() -> None:
    message = r"^num_heads must divide dim; got dim=6, num_heads=4$"
    with pytest.raises(ValueError, match=message):
        EncoderLayer(6, 4, 5)
