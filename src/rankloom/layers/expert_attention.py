"""Attention whose values and outputs are made by experts that every token chooses.

Source: LoopCTR, arXiv:2604.19550, as third parties describe it: the value and the output projection
    have experts and share one router; queries and keys have none.
Equations, for a token x with routing weights g over the experts, zero but for the k chosen:
    q = x W_Q    k = x W_K    v = sum_e g_e x W_V[e]
    a = softmax(q K^T / sqrt(dim / heads)) V per head, side by side
    out = sum_e g_e a W_O[e], g those of the token that asks
The paper does not say: where the gates come from; here they are the softmax of x W_g over all
    experts, of which the k largest are made to sum to one. No projection has a bias.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from rankloom.layers.attention import attention_of_heads, split_heads
from rankloom.layers.experts import ExpertLinear, Sparse
from rankloom.layers.mlp import linear
from rankloom.layers.routing import Routing, TopKRouter


class _OneLinear(nn.Module):
    """The layer of the only expert, which has no gates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.only = linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], _: None
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.only(x)


class ExpertAttention(nn.Module):
    """Attention with several heads; experts make its values and its outputs.

    Its steps can be taken one by one, so that tokens may attend to others than themselves, or to
    keys and values that were kept:

        routing = attention.route(x)
        k, v = attention.keys_values(x, routing)
        out = attention.attend(x, routing, k, v, mask)

    Args:
        dim: width of a token, before and after.
        num_heads: heads; divides `dim`.
        num_experts: value projections, and as many output projections; with one of each there is
            no router, and this is plain attention.
        num_active: experts that make a token's value and output.
        dropout: share of attention weights dropped in training.
        sparse: whether a call runs experts only for tokens that chose them.

    Raises:
        ValueError: `num_heads` does not divide `dim`; or more experts are to run than there are,
            or none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_experts: int = 1,
        num_active: int = 1,
        *,
        dropout: float = 0.0,
        sparse: Sparse = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got dim={dim}, num_heads={num_heads}")
        # Checks `num_active`, also where there is nothing to route.
        router = TopKRouter(None, dim, num_experts, num_active, normalised=True, bias=False)
        routed = num_experts > 1
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = linear(dim, dim, bias=False)
        self.key = linear(dim, dim, bias=False)
        self.router = router if routed else None
        self.value, self.out = (
            ExpertLinear(num_experts, dim, dim, sparse=sparse) if routed else _OneLinear(dim)
            for _ in range(2)
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "#batch #heads #tokens #tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What every token finds in all of them; `mask` as in `attention`."""
        routing = self.route(x)
        return self.attend(x, routing, *self.keys_values(x, routing), mask)

    def route(self, x: Float[Tensor, "batch tokens dim"]) -> Routing | None:
        """The experts that tokens choose for their values and outputs; None with one expert."""
        return None if self.router is None else self.router(x)

    def keys_values(
        self, x: Float[Tensor, "batch tokens dim"], routing: Routing | None
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens head_dim"]
    ]:
        """The keys and values of tokens, `routing` being theirs."""
        v = self.value(x, None if routing is None else routing.gates)
        return split_heads(self.key(x), self.num_heads), split_heads(v, self.num_heads)

    def queries(
        self, x: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """The queries of tokens, not yet scaled."""
        return split_heads(self.query(x), self.num_heads)

    def outputs(
        self,
        attended: Float[Tensor, "batch heads queries head_dim"],
        routing: Routing | None,
    ) -> Float[Tensor, "batch queries dim"]:
        """What tokens found, heads joined and projected; `routing` is that of the queries."""
        joined = attended.transpose(1, 2).flatten(2)
        return self.out(joined, None if routing is None else routing.gates)

    def find(
        self,
        q: Float[Tensor, "batch heads queries head_dim"],
        k: Float[Tensor, "batch heads keys head_dim"],
        v: Float[Tensor, "batch heads keys head_dim"],
        mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """What queries find in keys and values; `mask` as in `attention`."""
        return attention_of_heads(
            q, k, v, dropout=self.dropout if self.training else 0.0, mask=mask
        )

    def attend(
        self,
        x: Float[Tensor, "batch queries dim"],
        routing: Routing | None,
        k: Float[Tensor, "batch heads keys head_dim"],
        v: Float[Tensor, "batch heads keys head_dim"],
        mask: Bool[Tensor, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """What tokens, `routing` being theirs, find in keys and values; `mask` as in `attention`.

        A token that may attend to nothing finds zeros.
        """
        return self.outputs(self.find(self.queries(x), k, v, mask), routing)
