import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.ranking.lr import LR, LRConfig
from rankloom.ranking.wide_deep import WideDeep, WideDeepConfig

SCHEMA = example_schema(num_tasks=2)


def random_model() -> WideDeep:
    model = WideDeep(WideDeepConfig(embedding_dim=4, hidden=(6, 5)), SCHEMA)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_without_its_deep_part_it_is_lr() -> None:
    model, lr, batch = random_model(), LR(LRConfig(), SCHEMA), random_batch(SCHEMA, 7)
    lr.linear.load_state_dict(model.wide.state_dict())
    assert not torch.allclose(model(batch), lr(batch))
    for parameter in model.deep.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model(batch), lr(batch))


def test_without_its_wide_part_it_is_dnn() -> None:
    model, batch = random_model(), random_batch(SCHEMA, 7)
    dnn = DNN(DNNConfig(embedding_dim=4, hidden=(6, 5)), SCHEMA)
    dnn.embedding.load_state_dict(model.embedding.state_dict())
    dnn.network.load_state_dict(model.deep.state_dict())
    for parameter in model.wide.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model(batch), dnn(batch))
