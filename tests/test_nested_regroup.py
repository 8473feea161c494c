"""Images that go on form batches of their own, and keep what was computed of them."""

from __future__ import annotations

import pytest
import torch
from tiny_families import backbone_of, size_of

from hierclass.errors import LevelError
from hierclass.nested import NestedNetwork, nest
from hierclass.nested.fuse import fuse
from hierclass.nested.regroup import Regrouper

# One of convolutions, one with windows, one with class tokens, one that mixes pixels.
FAMILIES = ("resnet", "mobilenetv3", "convnext", "swin", "vit", "mixer")


def network_of(family: str, structure: str = "slices") -> NestedNetwork:
    torch.manual_seed(0)
    network = nest(
        backbone_of(family),
        structure=structure,
        num_classes=(2, 3, 5),
        input_size=size_of(family),
        warn=False,
    )
    return fuse(network.eval())


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_images_of_several_batches_go_on_as_if_they_had_been_one(family: str) -> None:
    network = network_of(family)
    regrouper = Regrouper(network)
    assert regrouper.keeps
    images = torch.randn(6, *network.input_size)
    one, two = network.start(images[:4]), network.start(images[4:])
    network.refine(one)
    network.refine(two)
    state = regrouper.gather([(one, [3, 0]), (two, [1])])
    assert state.level == 0
    chosen = images[[3, 0, 5]]
    for level in (1, 2):
        torch.testing.assert_close(network.refine(state), network(chosen, level), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_images_that_go_on_leave_their_batch_as_it_was() -> None:
    network = network_of("resnet")
    images = torch.randn(3, *network.input_size)
    state = network.start(images)
    network.refine(state)
    network.refine(Regrouper(network).gather([(state, [2])]))
    torch.testing.assert_close(network.refine(state), network(images, 1))


@pytest.mark.parametrize("structure", ["prefix", "masks"])
@torch.inference_mode()
def test_structures_that_reuse_nothing_start_again(structure: str) -> None:
    network = network_of("resnet", structure)
    regrouper = Regrouper(network)
    assert not regrouper.keeps
    images = torch.randn(4, *network.input_size)
    state = network.start(images)
    network.refine(state)
    gathered = regrouper.gather([(state, [2, 1])])
    assert gathered.level == -1
    torch.testing.assert_close(network.refine(gathered, 2), network(images[[2, 1]], 2), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_state_can_skip_levels() -> None:
    network = network_of("resnet")
    images = torch.randn(2, *network.input_size)
    state = network.start(images)
    torch.testing.assert_close(network.refine(state, 1), network(images, 1))
    torch.testing.assert_close(network.refine(state, 2), network(images, 2))
    with pytest.raises(LevelError, match="level 1 can't be computed: the state is at level 2 already"):
        network.refine(state, 1)


class Odd(NestedNetwork):
    """Reuses a value whose size depends on the batch in a way that can't be told."""

    structure = "odd"
    reuses = True

    def features(self, image: torch.Tensor, level: int) -> torch.Tensor:
        return image.mean((2, 3))[:, : self.num_features[level]]

    def refine(self, state: object, level: int | None = None) -> torch.Tensor:
        state.shared[0] = torch.zeros(len(state.image) ** 2)  # type: ignore[attr-defined]
        return super().refine(state, level)  # type: ignore[arg-type]

    level_tensors = spoil_above = truncate = None  # type: ignore[assignment]


@torch.inference_mode()
def test_values_that_cannot_be_told_apart_are_computed_again() -> None:
    network = Odd((2, 3), (2, 3), (3, 8, 8))
    regrouper = Regrouper(network)
    assert not regrouper.keeps
    images = torch.randn(3, 3, 8, 8)
    state = network.start(images)
    network.refine(state)
    torch.testing.assert_close(network.refine(regrouper.gather([(state, [1])]), 1), network(images[[1]], 1))
