import torch

from rankloom.layers.t5 import BucketBias, T5Attention, distance_buckets


def test_near_distances_have_buckets_of_their_own_and_far_ones_share() -> None:
    ahead = -torch.arange(20)  # keys before the query
    one_way = distance_buckets(ahead, 8, 16, both_ways=False)
    # Of 8 buckets the first 4 are exact; 4 + floor(4 ln(d / 4) / ln(16 / 4)) after them.
    assert one_way.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7]
    assert (distance_buckets(-ahead, 8, 16, both_ways=False) == 0).all()
    both = distance_buckets(ahead, 16, 16, both_ways=True)
    assert torch.equal(both, one_way)
    assert torch.equal(distance_buckets(-ahead[1:], 16, 16, both_ways=True), one_way[1:] + 8)


def test_biases_follow_distance_alone() -> None:
    bias = BucketBias(2, 8, 16, both_ways=True, init_std=1.0)
    whole = bias(6)
    assert whole.shape == (2, 6, 6)
    torch.testing.assert_close(whole[:, 1:, 1:], whole[:, :-1, :-1])
    torch.testing.assert_close(bias(6, first_query=4), whole[:, 4:])
    assert (whole[:, 0, 1] != whole[:, 1, 0]).all()


def test_attention_is_unscaled_and_steps_agree_with_one_pass() -> None:
    torch.manual_seed(0)
    attention = T5Attention(8, 2, 3, 0.0)
    x, bias = torch.randn(1, 4, 8), torch.randn(2, 4, 4)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    hiding = bias.masked_fill(later, -torch.inf)[None]
    whole = attention(x, attention.keys_values(x), bias=hiding)
    q = attention.query(x)[0].view(4, 2, 3)
    k, v = (part[0].view(4, 2, 3) for part in attention.key_value(x).chunk(2, dim=-1))
    heads = []
    for head in range(2):
        weights = (k[:3, head] @ q[2, head] + bias[head, 2, :3]).softmax(0)
        heads.append(weights @ v[:3, head])
    torch.testing.assert_close(whole[0, 2], attention.out.weight @ torch.cat(heads))
    own = x.new_empty(4, 1, 1, 2, 2, 3)  # [steps, batch, beams, 2, heads, head_dim]
    for place in range(4):
        step = bias[:, place : place + 1, : place + 1]
        found = attention.step(x[:, place : place + 1], own[: place + 1], step)
        torch.testing.assert_close(found[0, 0], whole[0, place])
