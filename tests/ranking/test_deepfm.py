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


def test_parameter_count_is_that_of_the_published_model() -> None:
    # Frappe as BARS prepares it: 5,382 values in 10 fields. BARS prints 423,280 parameters, with
    # one out-of-vocabulary row per field, no batch-norm parameters and its own bias terms.
    sizes = [500] * 9 + [882]
    schema = example_schema(
        num_categorical=9, num_numeric=0, sequences=False, vectors=False
    ).model_copy(
        update={"tables": dict(zip(["item", *(f"c{i}" for i in range(9))], sizes, strict=True))}
    )
    model = DeepFM(DeepFMConfig(embedding_dim=10, hidden=(400, 400, 400)), schema)
    rows = 1 + sum(size - 1 for size in sizes)
    network = 100 * 400 + 400 + 2 * (400 * 400 + 400) + 400 + 1
    assert sum(p.numel() for p in model.parameters()) == rows * 11 + 1 + network
