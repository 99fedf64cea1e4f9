import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dnn import DNN, DNNConfig


def test_dnn_is_its_network_over_the_joined_fields() -> None:
    schema = example_schema(num_tasks=2)
    model = DNN(DNNConfig(embedding_dim=3, hidden=(5, 4)), schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    batch = random_batch(schema, 6)
    x = torch.cat(model.embedding(batch).unbind(1), dim=1)
    first, _, second, _, last = model.network.layers
    x = torch.relu(x @ first.weight.T + first.bias)
    x = torch.relu(x @ second.weight.T + second.bias)
    torch.testing.assert_close(model(batch), x @ last.weight.T + last.bias, rtol=1e-4, atol=1e-4)


def test_settings_reach_the_network() -> None:
    config = DNNConfig(hidden=(5,), dropout=0.25, batch_norm=True, activation="silu")
    layers = DNN(config, example_schema()).network.layers
    names = [type(layer).__name__ for layer in layers]
    assert names == ["Linear", "BatchNorm1d", "SiLU", "Dropout", "Linear"]
    assert layers[3].p == 0.25
