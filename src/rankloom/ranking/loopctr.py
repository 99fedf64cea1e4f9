"""LoopCTR: one shared layer applied again and again in training, and not once in serving.

Source: LoopCTR, Renmin University and Alibaba, 2026, arXiv:2604.19550, as third parties describe
    it: the paper itself was not at hand.
Equations, for sequence tokens S, global tokens G (one for every field) and H = [S; G]:
    entry   H[0] = Layer_entry(H), tokens attend within their group: short events, long, global
    loops   H[l] = Layer_loop(H[l-1]) for l = 1 ... L, the same weights every time; a sequence token
            attends to sequence tokens, a global token to all
    exit    y[l] = MLP(RMSNorm(Layer_exit(G[l]; S[l]))), one for all depths; global tokens attend to
            sequence tokens, and stand side by side before the network
    Layer   attention, then a network, an RMSNorm before each; W_V, W_O and the network have experts
            (k of E by a top-k softmax made to sum to one; V and O share the choice)
    around every sublayer f stand n residual streams X, each coefficient h = h_0 + s tanh(RMSNorm(X)
            w): X' = H_res X + H_post^T f(H_pre X), w = 0 at the start; n = 1: x' = x + f(x)
    loss    mean over depths 0 ... L of L(y[l]) + balance_weight * mean of E sum_e f_e P_e
LoopCTR(i/L) is trained with L loops and read at y[i]: at i = 0 the loop layer is not run.
Differs from the paper: nothing known.
The paper does not say, or it is not known:
    - number of streams, here 2; they start as copies, and their mean is the output.
    - the router: without bias, one for each attention and each network, which sees the sublayer's
      normalised input. Padding is not counted among its choices.
    - how a long history is compressed: here learned queries attend to it once. None by default.
    - order within the sequence: attention is bidirectional, positions and recency are learned
      vectors; whether loops are told apart: `loop_index_embedding`, off by default.
    - the layer of the exit: as all others, with experts and streams; a last RMSNorm before
      the head.
    - what becomes of it without events: in data without any, the exit attends to the global
      tokens; in a row without any, it finds zeros.
"""

from pydantic import Field

from rankloom.ranking.prefix_config import PrefixNetworkConfig
from rankloom.ranking.prefix_network import PrefixNetwork
from rankloom.ranking.prefix_ranker import PrefixRanker
from rankloom.ranking.supervision import Supervision, UniformSupervision
from rankloom.schema import Schema


class LoopCTRConfig(PrefixNetworkConfig):
    """Sizes of the layers, loops in training and in serving, and where the loss is taken."""

    num_loops: int = Field(3, ge=0)
    """Times that the loop layer is applied in training (L)."""
    predict_loops: int | None = Field(0, ge=0)
    """Times that it is applied for a score (i); none: as many as in training."""
    loop_index_embedding: bool = False
    """Add a learned vector for the loop's number to what it reads."""
    supervision: Supervision = UniformSupervision()
    """How much the loss at every depth counts: uniform, last, first or weighted."""


class LoopCTR(PrefixRanker):
    """Entry, loops and exit; tasks share everything but the head's last layer.

    Raises:
        ValueError: `num_heads` does not divide `dim`, more experts are to run than there are,
            `predict_loops` is more than `num_loops` or a depth without a weight, or the weights do
            not fit the depths.
    """

    def __init__(self, config: LoopCTRConfig, schema: Schema) -> None:
        loops = config.num_loops
        network = PrefixNetwork(
            config, schema, loops * [0], depth_vectors=config.loop_index_embedding and loops > 0
        )
        super().__init__(network, config.supervision.weights(network.num_depths))
        self.num_loops = loops
        self.predict_loops = loops if config.predict_loops is None else config.predict_loops
        if self.weights[self.predict_loops] == 0:
            raise ValueError(
                "predict_loops must be a depth that supervision gives a weight, or validation "
                f"watches logits that are never trained; got predict_loops={self.predict_loops}, "
                f"weights {list(self.weights)}"
            )

    @property
    def predict_loops(self) -> int:
        """Loops that a score takes, at most `num_loops`; a trained model may be given others."""
        return self.predict_depth

    @predict_loops.setter
    def predict_loops(self, value: int) -> None:
        if not 0 <= value <= self.num_loops:
            raise ValueError(f"predict_loops must be 0 to num_loops={self.num_loops}; got {value}")
        self.predict_depth = value
