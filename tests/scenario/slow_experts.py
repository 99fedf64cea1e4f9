"""Experts and gates of one row at a time, for the tests of the models that have them."""

import torch
from torch import Tensor, nn

from rankloom.layers.gated_experts import ExpertNetworks, StackedLinear
from rankloom.layers.mlp import MLP
from rankloom.scenario.experts import GatedTower


def shake(model: nn.Module) -> None:
    """Weights of ordinary size, biases and embeddings included."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def expert(networks: ExpertNetworks, index: int, x: Tensor) -> Tensor:
    """What one ReLU expert gives for one row."""
    for layer in networks.layers:
        if isinstance(layer, StackedLinear):
            x = (layer.weight[index] @ x + layer.bias[index]).clamp(min=0)
    return x


def mixture(matrix: Tensor, x: Tensor, experts: list[Tensor]) -> Tensor:
    """The softmax mixture of one row's experts."""
    scores = (matrix @ x).exp()
    return sum(score * one for score, one in zip(scores, experts, strict=True)) / scores.sum()


def gated_logits(head: GatedTower, x: Tensor, experts: list[Tensor]) -> Tensor:
    """Logits of a head for one row."""
    return head.tower(mixture(head.gate.weight, x, experts).unsqueeze(0))[0]


def as_network(networks: ExpertNetworks, index: int) -> MLP:
    """One of the experts as a network by itself."""
    stacks = [layer for layer in networks.layers if isinstance(layer, StackedLinear)]
    network = MLP(stacks[0].weight.shape[2], [stack.weight.shape[1] for stack in stacks])
    with torch.no_grad():
        for linear, stack in zip(network.layers[::2], stacks, strict=True):
            linear.weight.copy_(stack.weight[index])
            linear.bias.copy_(stack.bias[index])
    return network
