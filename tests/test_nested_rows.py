"""Images that go on form batches of their own, and keep what was computed of them; networks move as a whole."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny_families import backbone_of, mark_full, size_of

from hierclass.errors import LevelError
from hierclass.nested import NestedNetwork, State, nest
from hierclass.nested.level_graph import Kept
from hierclass.nested.verify import keeps_rows

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
    return network.eval().fused()


@pytest.mark.parametrize("family", mark_full(FAMILIES, ["resnet", "swin", "vit"]))
@torch.inference_mode()
def test_images_of_several_batches_go_on_as_if_they_had_been_one(family: str) -> None:
    network = network_of(family)
    assert keeps_rows(network)
    images = torch.randn(6, *network.input_size)
    one, two = network.start(images[:4]), network.start(images[4:])
    network.refine(one)
    network.refine(two)
    state = State.join([one.take([3, 0]), two.take([1])])
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
    network.refine(state.take([2]))
    torch.testing.assert_close(network.refine(state), network(images, 1))


@pytest.mark.parametrize("structure", ["prefix", "masks"])
@torch.inference_mode()
def test_structures_that_reuse_nothing_keep_nothing(structure: str) -> None:
    network = network_of("resnet", structure)
    images = torch.randn(4, *network.input_size)
    state = network.start(images)
    network.refine(state)
    assert state.kept == ()
    taken = state.take([2, 1])
    torch.testing.assert_close(network.refine(taken, 2), network(images[[2, 1]], 2), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_state_can_skip_levels() -> None:
    network = network_of("resnet")
    images = torch.randn(2, *network.input_size)
    state = network.start(images)
    torch.testing.assert_close(network.refine(state, 1), network(images, 1))
    torch.testing.assert_close(network.refine(state, 2), network(images, 2))
    with pytest.raises(LevelError, match="level 1 can't be computed: the state is at level 2 already"):
        network.refine(state, 1)


@torch.inference_mode()
def test_rows_may_be_a_mask_and_states_of_two_levels_are_not_joined() -> None:
    network = network_of("resnet")
    images = torch.randn(4, *network.input_size)
    state = network.start(images)
    network.refine(state)
    mask = torch.tensor([False, True, False, True])
    assert torch.equal(state.take(mask).image, images[[1, 3]])
    assert torch.equal(state.take(mask.tolist()).image, images[[1, 3]])
    with pytest.raises(LevelError, match=r"states at levels \[0, -1\] can't be joined"):
        State.join([state, network.start(images)])


def test_an_error_that_is_caught_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    network = network_of("vit")
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 3, 48, 48), 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("structure", ["slices", "prefix"])
@pytest.mark.parametrize("family", ["mobilenetv3", "vit"])
def test_a_pickled_network_answers_alike(family: str, structure: str) -> None:
    torch.manual_seed(0)
    network = nest(
        backbone_of(family), structure=structure, num_classes=(2, 3, 5), input_size=size_of(family)
    ).eval()
    images = torch.randn(2, *network.input_size)
    for each in (network, network.fused()):
        again = pickle.loads(pickle.dumps(each))
        assert all(map(torch.equal, again.forward_all(images), each.forward_all(images)))
    assert torch.equal(pickle.loads(pickle.dumps(network)).extract(0)(images), network.extract(0)(images))


class Odd(NestedNetwork):
    """Keeps a value that has no row per image."""

    structure = "odd"
    reuses = True

    def level_functions(self, last: int) -> list:
        return [self._run] * (last + 1)

    def _run(self, image: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, Kept]:
        sums = kept[0] if kept else image.mean((2, 3)).T
        return sums.T[:, :2], (sums,)

    level_tensors = spoil_above = truncate = None  # type: ignore[assignment]


@torch.inference_mode()
def test_what_has_no_row_per_image_is_noticed() -> None:
    assert not keeps_rows(Odd((2, 2), (2, 3), (3, 8, 8)))
