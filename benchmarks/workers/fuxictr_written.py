"""Interaction layers that FuxiCTR's wheel lacks, in the operations of its documentation.

Each takes embeddings [batch, fields, dim], or [batch, width] where they lie side by side. Models
with two towers return the logits of the prediction, then those of the towers, and say what each
tower adds to the loss.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from benchmarks import shapes

FIELDS, DIM = shapes.NUM_FIELDS, shapes.EMBEDDING_DIM
WIDTH = FIELDS * DIM
PAIRS = FIELDS * (FIELDS - 1) // 2
HIDDEN = list(shapes.HIDDEN)


def network(
    width: int = WIDTH,
    *,
    output: bool = True,
    hidden: list[int] = HIDDEN,
    batch_norm: bool = False,
) -> MLP_Block:
    out = 1 if output else None
    return MLP_Block(width, hidden_units=hidden, output_dim=out, batch_norm=batch_norm)


class OnFlat(nn.Module):
    """A part that reads the embeddings side by side."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, e: Tensor) -> Tensor:
        return self.part(e.flatten(1))


class GatedCrosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = range(shapes.CROSS_LAYERS)
        self.cross = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in layers)
        self.gate = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in layers)

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for cross, gate in zip(self.cross, self.gate, strict=True):
            x = x0 * cross(x) * torch.sigmoid(gate(x)) + x
        return x


class SAM3ALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FIELDS, FIELDS, DIM))
        self.key = nn.Linear(DIM, DIM, bias=False)
        self.residual = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.bmm(x, self.key(x).transpose(1, 2))
        return (scores.unsqueeze(-1) * self.weight).sum(2) + self.residual(x)


class AFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_norm = nn.BatchNorm1d(FIELDS)
        self.combine = nn.Linear(FIELDS, shapes.LOG_NEURONS, bias=False)
        self.exp_norm = nn.BatchNorm1d(shapes.LOG_NEURONS)
        self.deep = network(shapes.LOG_NEURONS * DIM, batch_norm=True)

    def forward(self, e: Tensor) -> Tensor:
        logs = self.log_norm(e.abs().clamp(min=1e-5).log())
        products = self.combine(logs.transpose(1, 2)).transpose(1, 2).exp()
        return self.deep(self.exp_norm(products).flatten(1))


def sam() -> nn.Module:
    layers = (SAM3ALayer() for _ in range(shapes.SAM_LAYERS))
    return nn.Sequential(*layers, OnFlat(nn.Linear(WIDTH, 1)))


class MaskBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = WIDTH * shapes.MASK_REDUCTION
        self.mask = nn.Sequential(nn.Linear(WIDTH, inner), nn.ReLU(), nn.Linear(inner, WIDTH))
        self.hidden = nn.Sequential(
            nn.Linear(WIDTH, shapes.MASK_BLOCK_DIM, bias=False),
            nn.LayerNorm(shapes.MASK_BLOCK_DIM),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, normed: Tensor) -> Tensor:
        return self.hidden(self.mask(x) * normed)


class MaskNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(FIELDS))
        self.blocks = nn.ModuleList(MaskBlock() for _ in range(shapes.MASK_BLOCKS))
        self.deep = network(shapes.MASK_BLOCKS * shapes.MASK_BLOCK_DIM)

    def forward(self, e: Tensor) -> Tensor:
        parts = zip(self.norms, e.chunk(FIELDS, dim=1), strict=True)
        normed = torch.cat([norm(field) for norm, field in parts], dim=1).flatten(1)
        x = e.flatten(1)
        return self.deep(torch.cat([block(x, normed) for block in self.blocks], dim=-1))


class FinalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.contexts = nn.ParameterList(nn.Parameter(torch.zeros(1, DIM)) for _ in range(2))
        self.gates = nn.ModuleList(
            MLP_Block(
                DIM,
                hidden_units=list(shapes.GATE_HIDDEN),
                output_dim=WIDTH,
                output_activation="Sigmoid",
            )
            for _ in range(2)
        )
        self.streams = nn.ModuleList(network(output=False) for _ in range(2))
        self.linear = nn.ModuleList(nn.Linear(HIDDEN[-1], 1) for _ in range(2))
        self.bilinear = nn.Parameter(torch.empty(HIDDEN[-1], HIDDEN[-1]))
        nn.init.xavier_normal_(self.bilinear)

    def forward(self, e: Tensor) -> Tensor:
        flat = e.flatten(1)
        x, y = (
            stream(flat * gate(context.repeat(len(flat), 1)) * 2)
            for stream, gate, context in zip(self.streams, self.gates, self.contexts, strict=True)
        )
        return self.linear[0](x) + self.linear[1](y) + (x @ self.bilinear * y).sum(1, keepdim=True)


class FieldGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FIELDS, FIELDS)

    def init_weights(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, e: Tensor) -> Tensor:
        gates = self.linear(e.transpose(1, 2)).transpose(1, 2)
        return torch.cat([e, e * gates], dim=1)


class FactorizedLayer(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        second, first = self.linear(x).chunk(2, dim=-1)
        return self.norm(torch.cat([second, first * second], dim=-1))


def factorized_block(width: int) -> nn.Sequential:
    widths = [width, *HIDDEN]
    layers = (FactorizedLayer(a, b) for a, b in pairwise(widths))
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))


class FinalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = FieldGate()
        self.first, self.second = factorized_block(2 * WIDTH), factorized_block(WIDTH)

    def forward(self, e: Tensor) -> tuple[Tensor, ...]:
        first, second = self.first(self.gate(e).flatten(1)), self.second(e.flatten(1))
        return 0.5 * (first + second), first, second

    def tower_loss(self, main: Tensor, predicted: Tensor, tower: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy(tower, predicted.detach())


class HalfMaskedCross(nn.Module):
    """One cross of DCNv3: x + factor * ([H, H * ReLU(LN(H))] + b) with H half as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH // 2, bias=False)
        self.norm = nn.LayerNorm(WIDTH // 2)
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, factor: Tensor, x: Tensor) -> Tensor:
        h = self.linear(x)
        masked = torch.cat([h, h * torch.relu(self.norm(h))], dim=-1)
        return factor * (masked + self.bias) + x


class DCNv3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = range(shapes.CROSS_LAYERS)
        self.deep = nn.ModuleList(HalfMaskedCross() for _ in layers)
        self.shallow = nn.ModuleList(HalfMaskedCross() for _ in layers)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))

    def forward(self, e: Tensor) -> tuple[Tensor, ...]:
        x0 = deep = shallow = e.flatten(1)
        for cross in self.deep:
            deep = cross(deep, deep)
        for cross in self.shallow:
            shallow = cross(x0, shallow)
        first, second = self.heads[0](deep), self.heads[1](shallow)
        return 0.5 * (first + second), first, second

    def tower_loss(self, main: Tensor, predicted: Tensor, tower: Tensor, labels: Tensor) -> Tensor:
        loss = F.binary_cross_entropy(tower, labels)
        return (loss - main).clamp(min=0).detach() * loss


class WukongLayer(nn.Module):
    def __init__(self, tokens_in: int) -> None:
        super().__init__()
        rank, tokens = min(shapes.TOKEN_RANK, tokens_in), shapes.TOKENS
        self.rank = nn.Parameter(torch.empty(tokens_in, rank))
        self.compress = nn.Parameter(torch.empty(tokens, tokens_in))
        for matrix in (self.rank, self.compress):
            nn.init.kaiming_uniform_(matrix)
        self.products = nn.Sequential(
            nn.LayerNorm(tokens_in * rank),
            MLP_Block(
                tokens_in * rank,
                hidden_units=list(shapes.TOKEN_HIDDEN),
                output_dim=tokens * DIM,
                output_activation="ReLU",
            ),
        )
        self.residual = None
        if tokens_in != 2 * tokens:
            self.residual = nn.Parameter(torch.empty(2 * tokens, tokens_in))
            nn.init.kaiming_uniform_(self.residual)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        met = torch.matmul(x, torch.matmul(x.transpose(1, 2), self.rank))
        made = self.products(met.flatten(1)).view(-1, shapes.TOKENS, DIM)
        both = torch.cat([made, torch.matmul(self.compress, x)], dim=1)
        return self.norm(both + (x if self.residual is None else torch.matmul(self.residual, x)))


class Wukong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        tokens = [FIELDS] + [2 * shapes.TOKENS] * (shapes.TOKEN_LAYERS - 1)
        self.layers = nn.Sequential(*(WukongLayer(n) for n in tokens))
        self.head = network(2 * shapes.TOKENS * DIM)

    def forward(self, e: Tensor) -> Tensor:
        return self.head(self.layers(e).flatten(1))
