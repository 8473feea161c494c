"""Modules to be masked, for several test files: an LSTM, graph attention, small backbones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from tiny_families import liven_norms
from torch import Tensor, nn

from hierclass.nested import create_backbone
from hierclass.nested.masks.module import MaskedModule
from hierclass.nested.masks.network import MaskedNetwork

DENSITIES = (0.1, 0.3, 0.7)
CLASSES = (2, 5, 12)
SIZE = (3, 32, 32)


class Translator(nn.Module):
    """An embedding, an LSTM of two layers and two directions, and an output layer that shares a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.back = nn.Linear(32, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(words))
        return self.out(self.back(hidden))


class GraphAttention(nn.Module):
    """One layer of graph attention (Veličković et al. 2018) over nodes (N, F) and their adjacency (N, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 4 * 6, bias=False)
        self.attention = nn.Parameter(torch.randn(2 * 6, 4))
        self.norm = nn.BatchNorm1d(4 * 6)
        self.out = nn.Linear(4 * 6, 3)
        self.later = [self.norm, self.out]  # a plain list, which torch does not see

    def forward(self, nodes: Tensor, *, adjacency: Tensor) -> Tensor:
        values = self.project(nodes).view(-1, 4, 6)
        sent = torch.einsum("nhf,fh->nh", values, self.attention[:6])
        received = torch.einsum("nhf,fh->nh", values, self.attention[6:])
        scores = F.leaky_relu(sent[:, None] + received[None], 0.2)
        weights = scores.masked_fill(~adjacency[..., None], -torch.inf).softmax(1)
        mixed = torch.einsum("ijh,jhf->ihf", weights, values).flatten(1)
        for layer in self.later:
            mixed = layer(F.elu(mixed))
        return mixed


class Small(nn.Module):
    """A backbone that timm does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 24, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.mix(torch.relu(self.norm(self.conv(image)))).mean((2, 3))


Call = Callable[..., Tensor]
"""Runs a masked module on fixed input: `call(masked, level=…)`."""


def translator() -> tuple[MaskedModule, Call]:
    torch.manual_seed(0)
    words = torch.randint(20, (3, 7))
    return MaskedModule(Translator(), DENSITIES), lambda masked, **kinds: masked(words, **kinds)


def graph() -> tuple[MaskedModule, Call]:
    torch.manual_seed(0)
    nodes, adjacency = torch.randn(9, 12), torch.rand(9, 9) < 0.5
    adjacency |= torch.eye(9, dtype=torch.bool)
    masked = MaskedModule(GraphAttention(), DENSITIES)
    return masked, lambda masked, **kinds: masked(nodes, adjacency=adjacency, **kinds)


any_module = pytest.mark.parametrize("make", [translator, graph])
"""For tests of an LSTM and of graph attention; `make()` gives one and its call."""


def make_network(name: str = "test_resnet", densities: Sequence[float] = DENSITIES) -> MaskedNetwork:
    torch.manual_seed(0)
    backbone = create_backbone(name, **({"img_size": 32} if "vit" in name else {}))
    liven_norms(backbone)
    return MaskedNetwork(backbone, densities, CLASSES[-len(densities) :], SIZE).eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(2))


def used(masked: MaskedModule, level: int) -> list[Tensor]:
    return [levels <= level for _, _, levels in masked.weights()]


def train_step(network: MaskedNetwork, *, lr: float = 0.01) -> list[float]:
    """Update all levels once; return their losses before."""
    targets = [torch.arange(8) % classes for classes in network.num_classes]
    losses = [F.cross_entropy(*pair) for pair in zip(network.forward_all(images(8)), targets, strict=True)]
    network.zero_grad()
    torch.stack(losses).sum().backward()
    torch.optim.SGD(network.parameters(), lr=lr).step()
    return [loss.item() for loss in losses]
