"""The models of FuxiCTR's documentation, assembled from the layers in its wheel.

Each takes embeddings [batch, fields, dim] and returns the logits of the prediction, followed by
those of its towers where the model's loss has a term for each. Where the wheel lacks a model's
interaction layer (`shapes.CASES` says so), it comes from `fuxictr_written`.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from fuxictr.pytorch.layers import (
    BilinearInteraction,
    CompressedInteractionNet,
    CrossInteraction,
    CrossNet,
    CrossNetV2,
    InnerProductInteraction,
    ScaledDotProductAttention,
    SqueezeExcitation,
)
from torch import Tensor, nn

from benchmarks import shapes
from benchmarks.workers.fuxictr_written import (
    AFN,
    DIM,
    FIELDS,
    HIDDEN,
    PAIRS,
    WIDTH,
    DCNv3,
    FinalMLP,
    FinalNet,
    GatedCrosses,
    MaskNet,
    OnFlat,
    Wukong,
    network,
    sam,
)

WITH_LINEAR_TERM = ("lr", "fm", "deepfm", "wide_deep", "afm", "fibinet", "xdeepfm")


class Sum(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, e: Tensor) -> Tensor:
        return sum(part(e) for part in self.parts)


class Parallel(nn.Module):
    """Crosses beside a network, one linear map above both."""

    def __init__(self, cross: nn.Module) -> None:
        super().__init__()
        self.cross = cross
        self.deep = network(output=False)
        self.head = nn.Linear(WIDTH + HIDDEN[-1], 1)

    def forward(self, e: Tensor) -> Tensor:
        x = e.flatten(1)
        return self.head(torch.cat([self.cross(x), self.deep(x)], dim=-1))


class AFM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = InnerProductInteraction(FIELDS, output="elementwise_product")
        self.attention = nn.Sequential(
            nn.Linear(DIM, shapes.AFM_ATTENTION_DIM),
            nn.ReLU(),
            nn.Linear(shapes.AFM_ATTENTION_DIM, 1, bias=False),
            nn.Softmax(dim=1),
        )
        self.head = nn.Linear(DIM, 1, bias=False)

    def forward(self, e: Tensor) -> Tensor:
        pairs = self.pairs(e)
        return self.head((self.attention(pairs) * pairs).sum(1))


class IPNN(nn.Module):
    def __init__(self, *, embeddings: bool) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.pairs = InnerProductInteraction(FIELDS, output="inner_product")
        self.deep = network(PAIRS + (WIDTH if embeddings else 0))

    def forward(self, e: Tensor) -> Tensor:
        products = self.pairs(e)
        return self.deep(torch.cat([e.flatten(1), products], 1) if self.embeddings else products)


class FiBiNET(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.senet = SqueezeExcitation(FIELDS, shapes.SENET_REDUCTION)
        # Its V2 copies every pair's matrix for every row: slower here, and 8 GB a batch.
        self.bilinear = BilinearInteraction(FIELDS, DIM, "field_interaction")
        self.deep = network(2 * PAIRS * DIM)

    def forward(self, e: Tensor) -> Tensor:
        both = torch.cat([self.bilinear(e), self.bilinear(self.senet(e))], dim=1)
        return self.deep(both.flatten(1))


class SelfAttention(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(width_in, width, bias=False) for _ in range(3)
        )
        differs = width_in != width
        self.residual = nn.Linear(width_in, width, bias=False) if differs else nn.Identity()
        self.attention = ScaledDotProductAttention()

    def heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), FIELDS, shapes.ATTENTION_HEADS, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        out, _ = self.attention(q, k, v)
        return torch.relu(out.transpose(1, 2).flatten(2) + self.residual(x))


class AutoInt(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [DIM] + [width] * shapes.ATTENTION_LAYERS
        layers = (SelfAttention(a, b) for a, b in pairwise(widths))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(FIELDS * width, 1)
        self.deep = network()

    def forward(self, e: Tensor) -> Tensor:
        return self.head(self.layers(e).flatten(1)) + self.deep(e.flatten(1))


class Regulation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.ones(2, FIELDS))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cross, deep = self.gates.softmax(-1).repeat_interleave(DIM, dim=1)
        return self.norms[0](cross * x), self.norms[1](deep * x)


class EDCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = range(shapes.CROSS_LAYERS)
        self.regulation = nn.ModuleList(Regulation() for _ in layers)
        self.cross = nn.ModuleList(CrossInteraction(WIDTH) for _ in layers)
        self.deep = nn.ModuleList(network(output=False, hidden=[WIDTH]) for _ in layers)
        self.head = nn.Linear(3 * WIDTH, 1)

    def forward(self, e: Tensor) -> Tensor:
        bridge = e.flatten(1)
        x0 = None
        for regulate, cross, deep in zip(self.regulation, self.cross, self.deep, strict=True):
            x, h = regulate(bridge)
            x0 = x if x0 is None else x0
            x = x + cross(x0, x)  # the paper's form; FuxiCTR's has no residual
            h = deep(h)
            bridge = x * h
        return self.head(torch.cat([x, h, bridge], dim=-1))


def second_order() -> nn.Module:
    return InnerProductInteraction(FIELDS, output="product_sum")


CORES: dict[str, Callable[[], nn.Module]] = {
    "fm": second_order,
    "dnn": lambda: OnFlat(network()),
    "wide_deep": lambda: OnFlat(network()),
    "deepfm": lambda: Sum(second_order(), OnFlat(network())),
    "ipnn": lambda: IPNN(embeddings=True),
    "dlrm": lambda: IPNN(embeddings=False),
    "afm": AFM,
    "dcn": lambda: Parallel(CrossNet(WIDTH, shapes.CROSS_LAYERS)),
    "dcnv2": lambda: Parallel(CrossNetV2(WIDTH, shapes.CROSS_LAYERS)),
    "gdcn": lambda: Parallel(GatedCrosses()),
    "xdeepfm": lambda: Sum(
        CompressedInteractionNet(FIELDS, list(shapes.CIN_LAYERS)), OnFlat(network())
    ),
    "autoint": lambda: AutoInt(shapes.ATTENTION_DIM),
    "autoint_16": lambda: AutoInt(DIM),
    "fibinet": FiBiNET,
    "sam": sam,
    "afn": AFN,
    "edcn": EDCN,
    "masknet": MaskNet,
    "finalmlp": FinalMLP,
    "finalnet": FinalNet,
    "dcnv3": DCNv3,
    "wukong": Wukong,
}
"""Everything but the embeddings and the linear term; LR has nothing else."""
