import tomllib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rankloom.config import parse_config, to_toml
from rankloom.layers.capsule_routing import squash
from rankloom.retrieval.protocols import TokenizerItems, TrainedTokenizer, VectorBatch
from rankloom.retrieval.semantic_ids import SemanticIds
from rankloom.retrieval.tokenizers import capsid as capsid_file
from rankloom.retrieval.tokenizers.capsid import CapsID, CapsIDConfig
from rankloom.retrieval.tokenizers.capsid_lengths import (
    STOP_REASONS,
    FixedLength,
    PublishedLength,
)
from rankloom.retrieval.tokenizers.capsid_losses import LossWeights
from rankloom.retrieval.tokenizers.capsid_parts import (
    Full,
    HardWinner,
    LowRank,
    MeanScale,
    NoScale,
    ScaledIdentity,
)
from rankloom.retrieval.tokenizers.state import load_state

DIM = 8


def clustered(num_items: int = 300, seed: int = 0) -> Tensor:
    """Vectors of 6 clusters of 5 clusters."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(6, DIM, generator=generator)
    fine = coarse[:, None] + 0.5 * torch.randn(6, 5, DIM, generator=generator)
    chosen = torch.randint(30, (num_items,), generator=generator)
    noise = 0.15 * torch.randn(num_items, DIM, generator=generator)
    return fine.flatten(0, 1)[chosen] + noise


def small(**changes: object) -> CapsIDConfig:
    return CapsIDConfig(**({"dim": DIM, "num_codes": 8, "num_levels": 4} | changes))  # type: ignore[arg-type]


def started(config: CapsIDConfig, vectors: Tensor) -> CapsID:
    torch.manual_seed(0)
    tokenizer = config.build(vectors.shape[1])
    tokenizer.start(TokenizerItems(vectors), torch.Generator().manual_seed(0))
    return tokenizer


def batch_of(vectors: Tensor, progress: float = 0.5) -> VectorBatch:
    return VectorBatch(torch.arange(len(vectors)), vectors, progress)


def randomise(tokenizer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_it_is_a_trained_tokenizer() -> None:
    tokenizer = small().build(DIM)
    assert isinstance(tokenizer, TrainedTokenizer)
    assert tokenizer.level_sizes == (8, 8, 8, 8)
    assert tokenizer.code_vectors(1).shape == (8, DIM)


def test_hard_routing_gives_the_codes_of_residual_kmeans() -> None:
    # Centres of one length whose mean is zero: there the largest agreement is the least distance.
    config = small(
        kappa=1e6, update=HardWinner(), scaling=NoScale(), length=FixedLength(), learn_kappa=False
    )
    vectors = clustered()
    tokenizer = started(config, vectors)
    generator = torch.Generator().manual_seed(5)
    codebooks = []
    with torch.no_grad():
        for number, level in enumerate(tokenizer.levels):
            half = nn.functional.normalize(torch.randn(4, DIM, generator=generator), dim=1)
            codebooks.append(torch.cat([half, -half]) * 0.7**number)
            level.pose.biases.copy_(codebooks[-1])
            level.centres = codebooks[-1].clone()
    assignment = tokenizer.assign(vectors)
    for x, codes in zip(tokenizer.normalise(vectors), assignment.codes, strict=True):
        residual, expected = x.clone(), []
        for codebook in codebooks:
            distances = [float((residual - centre).square().sum()) for centre in codebook]
            expected.append(int(np.argmin(distances)))
            residual = residual - codebook[expected[-1]]
        assert codes.tolist() == expected
    assert len(np.unique(assignment.codes[:, 0])) == 8


def test_one_round_tells_items_apart_but_not_as_published() -> None:
    vectors = clustered()
    published = started(
        CapsIDConfig.strict_paper(dim=DIM, num_codes=8, num_levels=3, rounds=1), vectors
    )
    table = published.table(vectors)
    assert len(np.unique(table.codes, axis=0)) == 1
    torch.testing.assert_close(table.margin, torch.zeros_like(table.margin))
    after_update = started(small(rounds=1), vectors).table(vectors)
    assert len(np.unique(after_update.codes[:, 0])) == 8


def test_rounds_as_published_are_one_update_fewer() -> None:
    vectors = clustered()
    two = started(small(rounds=2), vectors).table(vectors)
    three = started(small(rounds=3, read_out="as_published"), vectors).table(vectors)
    np.testing.assert_array_equal(two.codes, three.codes)
    torch.testing.assert_close(two.margin, three.margin)


def test_more_rounds_are_more_confident() -> None:
    vectors = clustered()
    means = [
        started(small(rounds=rounds, kappa=5.0), vectors).table(vectors).confidence.mean().item()
        for rounds in (1, 2, 3)
    ]
    assert means == sorted(means)
    assert means[2] > means[0] + 0.05


def test_as_published_routing_stays_undecided() -> None:
    vectors = clustered()
    table = started(CapsIDConfig.strict_paper(dim=DIM, num_codes=64, num_levels=2), vectors).table(
        vectors
    )
    assert float(table.confidence.max()) < 0.2


def test_every_level_takes_something_out_of_the_residual() -> None:
    vectors = clustered()
    left = started(small(num_codes=16), vectors).table(vectors).residual.mean(0)
    assert left[0] < 0.8
    assert bool((left.diff() < 0).all())


def test_ids_of_several_lengths_are_prefix_free_with_their_end() -> None:
    vectors = clustered()
    tokenizer = started(small(kappa=20.0), vectors)
    assignment = tokenizer.assign(vectors)
    ids = SemanticIds(assignment.codes, tokenizer.level_sizes)
    assert len(np.unique(ids.lengths)) > 1
    rows = {tuple(token for token in row if token) for row in ids.tokens.tolist()}
    assert not any(a != b and b[: len(a)] == a for a in rows for b in rows)


def test_assignment_says_why_ids_end_and_what_their_codes_mean() -> None:
    vectors = clustered(40)
    tokenizer = started(small(length=PublishedLength(tau=0.94, eps=0.1)), vectors)
    assignment, table = tokenizer.assign(vectors), tokenizer.table(vectors)
    assert assignment.stop_reasons == STOP_REASONS
    assert assignment.stopped_by is not None
    assert assignment.reconstruction is not None
    assert assignment.target is not None
    np.testing.assert_array_equal(assignment.alternatives, table.codes)
    torch.testing.assert_close(assignment.confidence, table.margin)
    torch.testing.assert_close(assignment.target.norm(dim=1), torch.ones(40))
    for row, codes in enumerate(assignment.codes):
        said = torch.zeros(DIM)
        for number, (level, code) in enumerate(zip(tokenizer.levels, codes, strict=True)):
            if code >= 0:
                assert code == table.codes[row, number]
                said += level.sigma * level.centres[code]
        torch.testing.assert_close(assignment.reconstruction[row], said)
        last = (codes >= 0).sum() - 1
        reason = STOP_REASONS[assignment.stopped_by[row]]
        assert (reason == "confidence") == bool(table.confidence[row, last] >= 0.94)
        if reason == "residual":
            assert table.residual[row, last] <= 0.1
    assert set(assignment.stopped_by.tolist()) == {0, 1, 2}


def test_margin_is_small_between_two_capsules() -> None:
    tokenizer = started(small(kappa=3.0), clustered())
    level = tokenizer.levels[0]
    a, b = level.pose.biases[:2].detach()
    middle = nn.functional.normalize(
        nn.functional.normalize(a, dim=0) + nn.functional.normalize(b, dim=0), dim=0
    )
    near, between = level(nn.functional.normalize(a[None], dim=1)), level(middle[None])
    best = near.weights[0].sort(descending=True).values
    torch.testing.assert_close(near.margin[0], best[0] - best[1])
    assert between.margin < near.margin


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(pose=LowRank(rank=2), scaling=MeanScale(), length=PublishedLength(tau=0.6, eps=0.3)),
        small(pose=Full(), update=HardWinner()),
        CapsIDConfig.strict_paper(dim=DIM, num_codes=8, num_levels=3),
    ],
)
def test_loss_equals_the_loop_over_items(config: CapsIDConfig) -> None:
    vectors = clustered(20)
    tokenizer = started(config, vectors).eval()
    randomise(tokenizer)
    loss = tokenizer.loss(batch_of(vectors))
    slow = slow_parts(tokenizer, vectors, margin=0.55)
    for name, value in slow.items():
        torch.testing.assert_close(loss.parts[name], value, msg=lambda m, n=name: f"{n}: {m}")
    weights = config.weights
    total = (
        slow["route"]
        + weights.code_reconstruction * slow["code_reconstruction"]
        + weights.centre_tie * slow["centre_tie"]
        + weights.spread * slow["spread"]
        + weights.length * slow["length"]
        - weights.usage * slow["usage_entropy"]
    )
    torch.testing.assert_close(loss.total, total)


def slow_parts(tokenizer: CapsID, vectors: Tensor, margin: float) -> dict[str, Tensor]:
    config, sums = tokenizer.config, {"route": 0.0, "code_reconstruction": 0.0, "length": 0.0}
    ties, spreads = [], []
    shares = [torch.zeros(config.num_codes) for _ in tokenizer.levels]
    counts = [0] * len(tokenizer.levels)
    for x in tokenizer.normalise(vectors).detach():
        residual, soft, hard, on, reached, length = x, 0.0, 0.0, True, 1.0, 0.0
        for number, level in enumerate(tokenizer.levels):
            scale = config.scaling.scale(residual[None], level.sigma).reshape(())
            y = residual / scale
            # The votes of one item, all held: sum over a one-hot choice of a capsule.
            votes = level.pose(y[None])
            eye = torch.eye(config.num_codes)
            u = torch.cat([votes.mix(eye[k][None]) for k in range(config.num_codes)]).detach()
            a, kappa = torch.zeros(config.num_codes), level.kappa_log.exp().detach()
            for _ in range(config.rounds - (config.read_out == "as_published")):
                a = a + u @ squash(torch.softmax(kappa * a, 0) @ u)
            c = torch.softmax(kappa * a, 0)
            q = c.max() * squash(c @ u).norm()
            taken_by = eye[c.argmax()] if config.update.kind == "hard_winner" else c
            said = level.centres if config.reconstruction.kind == "centres" else squash(u)
            taken = scale * (taken_by @ said)
            residual = residual - taken
            length += reached
            reached = reached * (1 - config.length.stop_probability(q))
            if on:
                soft = soft + taken
                hard = hard + level.sigma * level.centres[c.argmax()]
                ties.append((c * (squash(u) - level.centres).square().sum(1)).sum())
                others = torch.arange(config.num_codes) != c.argmax()
                spreads.append(torch.relu(margin - (c.max() - c[others])).square().sum())
                shares[number] += c
                counts[number] += 1
            on = on and not bool(config.length.stops(q[None], residual.norm()[None]))
        sums["route"] += (x - soft).square().sum() / len(vectors)
        sums["code_reconstruction"] += (x - hard).square().sum() / len(vectors)
        sums["length"] += length / len(vectors)
    usage = [
        -torch.special.xlogy(share / max(count, 1), share / max(count, 1)).sum()
        for share, count in zip(shares, counts, strict=True)
    ]
    parts = {name: torch.as_tensor(value) for name, value in sums.items()}
    return parts | {
        "centre_tie": torch.stack(ties).mean(),
        "spread": torch.stack(spreads).mean(),
        "usage_entropy": torch.stack(usage).mean(),
    }


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(pose=LowRank(rank=2)),
        small(
            pose=ScaledIdentity(learned=True),
            adapter_rank=2,
            length=PublishedLength(),
            continue_probability=1.0,  # else nobody may come to the last level
        ),
        CapsIDConfig.strict_paper(dim=DIM, num_codes=8, num_levels=3),
    ],
)
def test_gradients_reach_every_learned_parameter(config: CapsIDConfig) -> None:
    vectors = clustered(60)
    tokenizer = started(config, vectors)
    randomise(tokenizer)
    tokenizer.loss(batch_of(vectors)).total.backward()
    for name, parameter in tokenizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert bool((parameter.grad != 0).any()), name


def test_training_lowers_the_objective() -> None:
    vectors = clustered()
    torch.manual_seed(0)
    config = small(weights=LossWeights(spread=0.0))
    tokenizer = started(config, vectors)
    before = tokenizer.eval().loss(batch_of(vectors)).total.item()
    tokenizer.train()
    optimiser = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    for _ in range(30):
        loss = tokenizer.loss(batch_of(vectors)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert tokenizer.eval().loss(batch_of(vectors)).total.item() < before - 0.01


def test_centres_follow_what_is_routed_to_them_in_training_only() -> None:
    vectors = clustered(50)
    tokenizer = started(small(centre_decay=0.5, length=FixedLength()), vectors)
    level = tokenizer.levels[0]
    centres, mass, length = level.centres, level.mass, level.mean_length
    tokenizer.eval().loss(batch_of(vectors))
    assert level.centres is centres
    with torch.no_grad():
        level.centres, level.mean_length = centres + 1.0, length * 3
        routing = level(tokenizer.normalise(vectors))
    tokenizer.train().loss(batch_of(vectors))
    share = routing.weights.mean(0)
    torch.testing.assert_close(level.mass, 0.5 * mass + 0.5 * share)
    mean = routing.weights.T @ routing.inputs / len(vectors)
    expected = 0.5 * mass[:, None] * (centres + 1) + 0.5 * mean  # running sums over running counts
    torch.testing.assert_close(level.centres, expected / level.mass[:, None])
    torch.testing.assert_close(level.mean_length, torch.tensor(0.5 * 3 + 0.5))


def test_items_that_are_done_go_on_with_the_stated_probability() -> None:
    vectors = clustered(200)
    always = PublishedLength(tau=0.01)  # every id ends at its first code
    lengths = []
    for probability in (0.0, 0.5, 1.0):
        tokenizer = started(small(length=always, continue_probability=probability), vectors)
        tokenizer.train()
        torch.manual_seed(1)
        alive = tokenizer._alive(tokenizer.route(tokenizer.normalise(vectors)))
        lengths.append(alive.sum(1).mean().item())
    assert lengths[0] == 1
    assert lengths[2] == 4
    assert 1.6 < lengths[1] < 2.2  # 1 + 1/2 + 1/4 + 1/8


def test_state_is_all_there_is() -> None:
    vectors = clustered()
    config = small(pose=LowRank(rank=2), adapter_rank=2)
    tokenizer = started(config, vectors)
    randomise(tokenizer)
    tokenizer.train().loss(batch_of(vectors))
    again = config.build(DIM)
    load_state(again, tokenizer.state_dict())
    first, second = tokenizer.assign(vectors), again.assign(vectors)
    np.testing.assert_array_equal(first.codes, second.codes)
    torch.testing.assert_close(first.reconstruction, second.reconstruction, rtol=0, atol=0)


@pytest.mark.parametrize("pose", [ScaledIdentity(), LowRank(), Full()])
def test_blocks_change_nothing(
    pose: ScaledIdentity | LowRank | Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(50)
    tokenizer = started(small(pose=pose), vectors)
    whole = tokenizer.assign(vectors)
    monkeypatch.setattr(capsid_file, "_BLOCK_FLOATS", 7 * pose.row_floats(DIM, 8))
    assert len(tokenizer._blocks(vectors)) == 8
    parts = tokenizer.assign(vectors)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    torch.testing.assert_close(whole.confidence, parts.confidence)


@pytest.mark.parametrize(
    "vectors",
    [clustered(1), clustered(5), torch.ones(30, DIM), torch.zeros(3, DIM)],
    ids=["one item", "fewer items than codes", "identical", "zeros"],
)
def test_small_and_degenerate_catalogues(vectors: Tensor) -> None:
    tokenizer = started(small(), vectors)
    tokenizer.train()
    loss = tokenizer.loss(batch_of(vectors))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total))
    for name, tensor in tokenizer.state_dict().items():
        assert bool(torch.isfinite(tensor).all()), name
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in tokenizer.parameters() if p.grad is not None
    )
    assignment = tokenizer.assign(vectors)
    SemanticIds(assignment.codes, tokenizer.level_sizes)


def test_few_items_get_ids_of_their_own() -> None:
    vectors = clustered(5)
    codes = started(small(), vectors).assign(vectors).codes
    assert len(np.unique(codes, axis=0)) == 5


def test_new_items_are_given_codes_and_no_items_none() -> None:
    tokenizer = started(small(), clustered())
    vectors = clustered(7, seed=9)
    together = tokenizer.table(vectors).codes
    alone = np.concatenate([tokenizer.table(vector[None]).codes for vector in vectors])
    np.testing.assert_array_equal(together, alone)
    assert tokenizer.assign(torch.empty(0, DIM)).codes.shape == (0, 4)


def test_start_is_repeatable() -> None:
    vectors = clustered()
    one, two = started(small(start_sample=100), vectors), started(small(start_sample=100), vectors)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], rtol=0, atol=0)


def test_vectors_narrower_than_asked() -> None:
    assert CapsIDConfig(dim=64, num_codes=4).build(DIM).dim == DIM


def test_settings() -> None:
    with pytest.raises(ValueError, match="at most num_levels; got length=9, num_levels=4"):
        small(length=FixedLength(length=9)).build(DIM)
    with pytest.raises(ValueError, match="rounds"):
        parse_config(CapsIDConfig, {"rounds": 6}, "here")
    with pytest.raises(ValueError, match="known kinds: published, distinctive, fixed"):
        parse_config(CapsIDConfig, {"length": {"kind": "fix"}}, "here")
    strict = CapsIDConfig.strict_paper(rounds=2)
    assert parse_config(CapsIDConfig, tomllib.loads(to_toml(strict)), "here") == strict
