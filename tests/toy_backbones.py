"""Backbones of a few layers, and what every cut network must do: for tests of single layers and functions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hierclass.nested import NestedNetwork, nest
from hierclass.nested.analysis.partition import Partition, analyse, positions

SIZE = (3, 8, 8)
THIRDS = (0.25, 0.5, 1.0)


class Toy(nn.Module):
    """Two convolutions with a layer between them: (B, 3, H, W) → (B, 32)."""

    def __init__(self, middle: nn.Module | None = None, channels: int = 16, inside: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, inside, 3, padding=1)
        self.middle = middle if middle is not None else nn.Identity()
        self.conv2 = nn.Conv2d(channels, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.middle(self.conv1(x)))).mean((2, 3))


class Tokens(nn.Module):
    """Patches of 2 × 2 as tokens, a layer over (B, N, 24), a mean over tokens: (B, 3, H, W) → (B, 24)."""

    def __init__(self, middle: nn.Module | None = None, channels: int = 24):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2, stride=2)
        self.middle = middle if middle is not None else nn.Identity()
        self.last = nn.Linear(channels, 24)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.middle(tokens)).mean(1)


def cut(
    backbone: nn.Module, widths: Sequence[float] = (0.5, 1.0), size: tuple[int, int, int] = SIZE
) -> NestedNetwork:
    """Return a network in evaluation mode whose levels have 5 classes each."""
    return nest(backbone, widths=widths, num_classes=[5] * len(widths), input_size=size).eval()


def part(network: NestedNetwork, name: str, level: int) -> nn.Module:
    """Return the layer of one level."""
    parts = network.layers[name]
    assert isinstance(parts, nn.ModuleList)
    return parts[level]


def close(left: Tensor, right: Tensor) -> bool:
    """Return whether two results are the same but for the order of sums."""
    left, right = left.detach(), right.detach()
    return torch.allclose(left, right, rtol=1e-3, atol=1e-5 * max(1.0, float(right.abs().max())))


def with_holes(
    backbone: nn.Module, widths: Sequence[float], size: tuple[int, int, int] = SIZE
) -> tuple[nn.Module, list[int], int]:
    """Return a copy with zeros for the weights that slices leave out, its order of features, and the number of zeros.

    As long as no layer mixes channels in another way than by its weights, the copy answers like the last level.
    """
    analysis = analyse(backbone, widths, size)
    holed, holes = copy.deepcopy(backbone), 0
    for node, propagate in analysis.flows.items():
        inputs, outputs = (analysis.values[value].cut for value in (node.args[0], node))
        if propagate.reads != "prefix" or inputs.shared:
            continue
        path = analysis.trace.made.get(node.target, f"{node.target}.weight")
        weight = holed.get_parameter(path).detach()
        for level in range(len(widths)):
            rows = positions(outputs, level, weight.shape[0])
            above = [i for k in range(level + 1, len(widths)) for i in positions(inputs, k, weight.shape[1])]
            weight[np.ix_(rows, above)] = 0
            holes += len(rows) * len(above)
    features: Partition = analysis.values[analysis.output].cut
    return holed, features.up_to(len(widths) - 1).tolist(), holes
