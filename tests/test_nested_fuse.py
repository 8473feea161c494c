"""Fusing changes how a network computes, never what."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_families import mark_full
from torch import nn

from hierclass.nested import NestedNetwork, create_backbone, nest
from hierclass.nested.verify import verify


def trained(name: str) -> NestedNetwork:
    """A network whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    network = nest(create_backbone(name), num_classes=(3, 5, 12), input_size=(3, 32, 32))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.3)
                module.bias.normal_(0, 0.3)
    return network.eval()


@pytest.mark.parametrize(
    "name",
    mark_full(
        ["test_resnet", "test_efficientnet", "seresnet18", "mobilenetv3_small_050"],
        ["test_resnet", "test_efficientnet"],
    ),
)
def test_a_fused_network_gives_the_same_logits_at_every_level(name: str) -> None:
    network = trained(name)
    image = torch.randn(2, 3, 32, 32)
    before = copy.deepcopy(network.state_dict())
    fused = network.fused()
    with torch.inference_mode():
        for wanted, got in zip(network.forward_all(image), fused.forward_all(image), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_fused_network_is_still_nested_and_has_no_batch_norm_left(name: str) -> None:
    network = trained(name)
    fused = network.fused()
    verify(fused)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(len(fused.graphs[k].nodes) < len(network.graphs[k].nodes) for k in range(3))
    assert [fused.cost(k).macs for k in range(3)] == [network.cost(k).macs for k in range(3)]


def test_refining_twice_from_one_image_leaves_the_image_and_the_answers_alone() -> None:
    fused = trained("test_resnet").fused()
    image = torch.randn(1, 3, 32, 32)
    kept = image.clone()
    with torch.inference_mode():
        runs = []
        for _ in range(2):
            state = fused.start(image)
            runs.append([fused.refine(state) for _ in range(3)])
    assert torch.equal(image, kept)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
