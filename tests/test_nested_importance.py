"""Reordering: the channels that matter most come first, and the network stays the same function."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, backbone_of, mark_full, size_of
from torch import Tensor, nn

from hierclass.nested import create_backbone, nest
from hierclass.nested.analysis.partition import analyse
from hierclass.nested.importance import importance, reorder

SIZE = (3, 32, 32)


class Chain(nn.Module):
    """Two matrices with four channels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 8)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) → (B, 8)."""
        features: Tensor = self.second(self.first(image.mean((2, 3))).relu())
        return features


def images(count: int = 4, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def test_a_channel_scores_by_its_activation_and_the_weights_that_read_it() -> None:
    backbone = Chain().eval()
    with torch.no_grad():
        backbone.first.weight.zero_()
        backbone.first.bias.copy_(torch.tensor([1.0, 2.0, 1.0, 4.0]))
        backbone.second.weight.fill_(1.0)
        backbone.second.weight[:, 2] = 3.0
    analysis = analyse(backbone, (0.5, 1.0), SIZE)
    hidden = next(found.ids for node, found in analysis.flows.items() if node.target == "first").flatten()
    scores = importance(analysis, images())[hidden.numpy()]
    # activation² x 8 readers x weight²: 8, 32, 72, 128, on average 60
    assert scores == pytest.approx([8 / 60, 32 / 60, 72 / 60, 128 / 60])


def test_without_images_a_channel_scores_by_the_weights_that_make_it() -> None:
    backbone = Chain().eval()
    with torch.no_grad():
        backbone.first.weight.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None].expand(4, 3))
    analysis = analyse(backbone, (0.5, 1.0), SIZE)
    hidden = next(found.ids for node, found in analysis.flows.items() if node.target == "first").flatten()
    assert importance(analysis)[hidden.numpy()] == pytest.approx([0.4, 1.6, 0.8, 1.2])


def test_the_strongest_channels_come_first_and_the_function_stays() -> None:
    backbone = Chain().eval()
    with torch.no_grad():
        backbone.first.weight.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None].expand(4, 3))
    analysis = analyse(backbone, (0.5, 1.0), SIZE)
    moved, features = reorder(analysis, importance(analysis))
    assert isinstance(moved, Chain)
    assert moved.first.weight[:, 0].tolist() == [4, 3, 2, 1]
    with torch.no_grad():
        torch.testing.assert_close(moved(images()), backbone(images())[:, features])
    assert sorted(features.tolist()) == list(range(8))


SOME = ("resnext", "densenet", "ghostnet", "efficientnet", "convnext", "vit", "swin")
"""Groups, concatenations, gates, depth-wise convolutions, heads and windows."""


@pytest.mark.parametrize("family", mark_full(FAMILIES, SOME))
def test_reordering_keeps_the_function_of_every_family(family: str) -> None:
    backbone, size = copy.deepcopy(backbone_of(family)).eval(), size_of(family)
    analysis = analyse(backbone, (0.5, 1.0), size)
    moved, features = reorder(analysis, importance(analysis, images(2, size)))
    with torch.no_grad():
        expected = backbone(images(2, size))[:, torch.from_numpy(features)]
        torch.testing.assert_close(moved(images(2, size)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", ["slices", "prefix"])
def test_a_classifier_goes_with_the_features_that_it_reads(structure: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("test_efficientnet").eval()
    classifier = nn.Linear(backbone.num_features, 6)  # type: ignore[arg-type]
    network = nest(
        backbone,
        structure=structure,
        widths=(0.5, 1.0),
        order="importance",
        images=images(),
        classifier=classifier,
        groups=[[0, 0, 1, 1, 2, 2], None],
        num_classes=(3, 6),
        input_size=SIZE,
    )
    columns = {tuple(column) for column in classifier.weight.T.tolist()}
    for head, count in zip(network.heads, network.num_features, strict=True):
        assert isinstance(head, nn.Linear)
        kept = [tuple(column) for column in head.weight.T.tolist()]
        assert len(set(kept)) == count
        assert columns.issuperset(kept)
        assert torch.equal(head.bias, classifier.bias)
    if structure == "prefix":
        with torch.no_grad():
            torch.testing.assert_close(
                network(images()), classifier(backbone(images())), rtol=1e-4, atol=1e-4
            )


def test_scores_of_united_channels_count_together() -> None:
    class Residual(Chain):
        """The hidden channels are added to what a second layer makes of the image."""

        def __init__(self) -> None:
            super().__init__()
            self.beside = nn.Linear(3, 4)

        def forward(self, image: Tensor) -> Tensor:
            mean = image.mean((2, 3))
            features: Tensor = self.second((self.first(mean) + self.beside(mean)).relu())
            return features

    backbone = Residual().eval()
    with torch.no_grad():
        backbone.first.weight.copy_(torch.tensor([1.0, 5.0, 1.0, 1.0])[:, None].expand(4, 3))
        backbone.beside.weight.copy_(torch.tensor([1.0, 0.0, 8.0, 1.0])[:, None].expand(4, 3))
    analysis = analyse(backbone, (0.5, 1.0), SIZE)
    moved, _ = reorder(analysis, importance(analysis))
    # sums of shares: 0.5 + 0.4, 2.5 + 0, 0.5 + 3.2, 0.5 + 0.4
    assert moved.get_parameter("first.weight")[:, 0].tolist() == [1, 5, 1, 1]
    assert moved.get_parameter("beside.weight")[:, 0].tolist() == [8, 0, 1, 1]


def test_equal_scores_leave_every_channel_where_it_is() -> None:
    analysis = analyse(Chain().eval(), (0.5, 1.0), SIZE)
    moved, features = reorder(analysis, np.zeros(analysis.channels.count))
    assert features.tolist() == list(range(8))
    assert torch.equal(
        moved.get_parameter("first.weight"), analysis.trace.backbone.get_parameter("first.weight")
    )
