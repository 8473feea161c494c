"""`verify` notices what it promises to notice, and leaves a network as it found it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hierclass.errors import BackboneError
from hierclass.nested import create_backbone, nest
from hierclass.nested.slices import SlicedNetwork
from hierclass.nested.verify import verify

SIZE = (3, 32, 32)


def make() -> SlicedNetwork:
    torch.manual_seed(0)
    return nest(
        create_backbone("test_resnet"), widths=(0.25, 0.5, 1.0), num_classes=(2, 5, 12), input_size=SIZE
    )


class Leaky(SlicedNetwork):
    """Level 0 looks at the last head."""

    def classify(self, features: Tensor, level: int) -> Tensor:
        return super().classify(features, level) + self.heads[-1].bias.sum()


class Forgetful(SlicedNetwork):
    """Refining starts from another image."""

    def refine(self, state):
        state.image = state.image + 1
        return super().refine(state)


class Misshapen(SlicedNetwork):
    """Answers with one class too many."""

    def classify(self, features: Tensor, level: int) -> Tensor:
        return nn.functional.pad(super().classify(features, level), (0, 1))


def test_a_right_network_passes_and_keeps_its_modes_and_statistics() -> None:
    network = make().train()
    first = next(iter(network.layers.children()))
    first.eval()
    modes = [module.training for module in network.modules()]
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    verify(network)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Leaky, "level 1 reads weights of a level above it"),
        (Forgetful, "refining to level 0 differs from running it directly"),
        (Misshapen, r"level 0 gives \(2, 3\) logits, not \(2, 2\)"),
    ],
)
def test_a_network_that_is_not_nested_is_refused(kind: type[SlicedNetwork], message: str) -> None:
    network = make()
    network.__class__ = kind
    with pytest.raises(BackboneError, match=message):
        verify(network)
    assert network.training


def test_a_failing_proof_still_gives_back_the_mode() -> None:
    network = make().eval()
    network.__class__ = Misshapen
    with pytest.raises(BackboneError):
        verify(network)
    assert not network.training


def test_the_proof_does_not_touch_the_global_random_state() -> None:
    network = make()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    verify(network)
    assert torch.equal(torch.rand(1), expected)


def test_building_leaves_the_backbone_in_the_mode_it_had() -> None:
    backbone = create_backbone("test_resnet").train()
    backbone.get_submodule("layer1").eval()
    modes = [module.training for module in backbone.modules()]
    network = nest(backbone, widths=(0.5, 1.0), num_classes=(2, 3), input_size=SIZE)
    assert [module.training for module in backbone.modules()] == modes
    assert network.training
