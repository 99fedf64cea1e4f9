import torch
from torch import Tensor

from rankloom.data.examples import example_schema, random_batch
from rankloom.ranking.afm import AFM, AFMConfig
from rankloom.ranking.fm import FM, FMConfig

SCHEMA = example_schema(num_tasks=2)


def build(schema=SCHEMA, **settings) -> AFM:
    model = AFM(AFMConfig(**{"embedding_dim": 3, "attention_dim": 5} | settings), schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def attended_by_loops(model: AFM, vectors: Tensor) -> Tensor:
    """The weighed sum of one row's pairs: [dim]."""
    hidden, _, last = model.attention.score
    products, scores = [], []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            product = vectors[i] * vectors[j]
            unit = torch.relu(hidden.weight @ product + hidden.bias)
            products.append(product)
            scores.append((last.weight[0] * unit).sum())
    total = sum(score.exp() for score in scores)
    return sum(
        score.exp() / total * product for score, product in zip(scores, products, strict=True)
    )


def test_equals_the_loops_over_pairs_forward_and_gradient() -> None:
    model, batch = build(), random_batch(SCHEMA, 4)
    vectors = model.embedding(batch).detach().requires_grad_()
    rows = [model.output.weight @ attended_by_loops(model, row) for row in vectors]
    expected = model.linear(batch) + torch.stack(rows)
    torch.testing.assert_close(model(batch), expected)
    parameters = [vectors, *model.attention.parameters()]
    model.embedding.forward = lambda batch: vectors
    slow = torch.autograd.grad(expected.square().sum(), parameters, retain_graph=True)
    fast = torch.autograd.grad(model(batch).square().sum(), parameters)
    for actual, wanted in zip(fast, slow, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_with_equal_weights_it_is_fm_over_the_number_of_pairs() -> None:
    schema = example_schema()
    model, batch = build(schema), random_batch(schema, 5)
    torch.nn.init.zeros_(model.attention.score[2].weight)
    fields = model.embedding.num_fields
    torch.nn.init.constant_(model.output.weight, fields * (fields - 1) / 2)
    fm = FM(FMConfig(embedding_dim=3), schema)
    fm.linear.load_state_dict(model.linear.state_dict())
    fm.embedding.load_state_dict(model.embedding.state_dict())
    torch.testing.assert_close(model(batch), fm(batch), rtol=1e-4, atol=1e-5)


def test_both_dropouts_act_in_training_only() -> None:
    batch = random_batch(SCHEMA, 6)
    for name in ("attention_dropout", "dropout"):
        model = build(**{name: 0.5})
        plain = build()
        plain.load_state_dict(model.state_dict())
        assert not torch.allclose(model(batch), model(batch))
        torch.testing.assert_close(model.eval()(batch), plain(batch))


def test_a_single_field_leaves_the_linear_term() -> None:
    schema = example_schema(num_categorical=0, num_numeric=0, sequences=False, vectors=False)
    model, batch = build(schema), random_batch(schema, 3)
    torch.testing.assert_close(model(batch), model.linear(batch))
    model(batch).sum().backward()


def test_parameter_count_is_the_published_one() -> None:
    # BARS, Frappe_x1: 60,826 parameters over 5,389 embedding rows in 10 fields.
    sizes = {"item": 889} | {f"c{i}": 501 for i in range(9)}
    plain = example_schema(num_categorical=9, num_numeric=0, sequences=False, vectors=False)
    schema = plain.model_copy(update={"tables": sizes})
    model = AFM(AFMConfig(embedding_dim=10, attention_dim=128), schema)
    assert sum(p.numel() for p in model.parameters()) == 60_826
