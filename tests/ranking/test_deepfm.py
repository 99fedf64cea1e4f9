import torch

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.deepfm import DeepFM, DeepFMConfig
from rankloom.ranking.dnn import DNN, DNNConfig
from rankloom.ranking.fm import FM, FMConfig

SCHEMA = example_schema(num_tasks=2)


def test_deepfm_is_fm_plus_dnn_over_the_same_embeddings() -> None:
    model = DeepFM(DeepFMConfig(embedding_dim=4, hidden=(6, 5)), SCHEMA)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    fm = FM(FMConfig(embedding_dim=4), SCHEMA)
    fm.linear.load_state_dict(model.linear.state_dict())
    fm.embedding.load_state_dict(model.embedding.state_dict())
    fm.pairs.load_state_dict(model.pairs.state_dict())
    dnn = DNN(DNNConfig(embedding_dim=4, hidden=(6, 5)), SCHEMA)
    dnn.embedding.load_state_dict(model.embedding.state_dict())
    dnn.network.load_state_dict(model.deep.state_dict())
    batch = random_batch(SCHEMA, 7)
    torch.testing.assert_close(model(batch), fm(batch) + dnn(batch))
    for parameter in model.deep.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model(batch), fm(batch))


def test_parameter_count_is_the_published_one() -> None:
    # BARS, Frappe_x1: 423,280 parameters over 5,389 embedding rows in 10 fields. Ours has a bias in
    # the linear term too.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    config = DeepFMConfig(embedding_dim=10, hidden=(400, 400, 400), batch_norm=True)
    assert sum(p.numel() for p in DeepFM(config, schema).parameters()) == 423_280 + 1
