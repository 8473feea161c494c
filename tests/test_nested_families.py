"""What every structure promises, on a tiny model of every family of timm.

By default slices are tested on every family, the other structures on two.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_families import BLOCKS_TAKE_MORE, FAMILIES, SIZES_ELSEWHERE, backbone_of, mark_full, size_of
from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested import NestedNetwork, nest

HALVES = (0.5, 1.0)
STRUCTURES: dict[str, dict[str, Any]] = {
    "slices": {"structure": "slices", "widths": HALVES},
    "prefix": {"structure": "prefix", "widths": HALVES},
    "depths": {"structure": "depths", "depths": HALVES},
    "masks": {"structure": "masks", "densities": HALVES},
    "slices by importance": {"structure": "slices", "widths": HALVES, "order": "importance"},
    "slices and depths": {"structure": "slices", "widths": HALVES, "depths": HALVES},
    "prefix and depths": {"structure": "prefix", "widths": HALVES, "depths": HALVES},
    "masks and depths": {"structure": "masks", "densities": HALVES, "depths": HALVES},
}
"""Arguments of `nest` for two levels: a new structure is one more line."""

NO_TIMM_MODEL = {"prefix": SIZES_ELSEWHERE, "depths": BLOCKS_TAKE_MORE}
FEW = ("resnet", "seresnet", "vit")
WITHOUT_BLOCKS = ("densenet", "vgg", "vovnet", "byobnet", "nfnet", "efficientnet", "efficientvim")
"""These have one residual block in each stage, or none, so that there is none to leave out."""


def families_of(structure: str) -> list[str]:
    """All families, and a few for combinations."""
    chosen = FEW if " " in structure else FAMILIES
    return [name for name in chosen if "depths" not in STRUCTURES[structure] or name not in WITHOUT_BLOCKS]


CASES = [(structure, family) for structure in STRUCTURES for family in families_of(structure)]
DEFAULT = [case for case in CASES if case[0] == "slices" or case[1] in ("resnet", "vit")]
every_case = pytest.mark.parametrize(("structure", "family"), mark_full(CASES, DEFAULT))


@cache
def built(structure: str, family: str) -> NestedNetwork:
    """A network that is not to be changed."""
    torch.manual_seed(0)
    backbone, size = backbone_of(family), size_of(family)
    return nest(backbone, num_classes=(3, 5), input_size=size, **STRUCTURES[structure]).eval()


def images(family: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, *size_of(family), generator=torch.Generator().manual_seed(1))


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4 * max(1.0, float(right.abs().max())))


@every_case
def test_a_level_ignores_every_weight_above_it(structure: str, family: str) -> None:
    network, image = built(structure, family), images(family)
    spoilt = copy.deepcopy(network)
    with torch.no_grad():
        spoilt.spoil_above(0)
        assert not spoilt(image, 1).isfinite().any()
        logits = spoilt(image, 0)
        assert logits.isfinite().all()
        assert torch.equal(logits, network(image, 0))


@every_case
def test_refining_gives_what_running_the_level_directly_gives(structure: str, family: str) -> None:
    network, image = built(structure, family), images(family, 3)
    with torch.no_grad():
        state, everything = network.start(image), network.forward_all(image)
        for level in range(2):
            expected = network(image, level)
            assert close(network.refine(state), expected)
            assert close(everything[level], expected)


@every_case
def test_the_lower_level_costs_less(structure: str, family: str) -> None:
    low, high = (built(structure, family).cost(level) for level in range(2))
    assert low.parameters < high.parameters
    assert low.macs < high.macs
    if "widths" in STRUCTURES[structure]:
        assert low.macs < 0.6 * high.macs


@every_case
def test_a_step_trains_every_level_and_stored_weights_undo_it(structure: str, family: str) -> None:
    network, image = built(structure, family), images(family, 4)
    trained = copy.deepcopy(network).train()
    targets = [torch.arange(4) % classes for classes in network.num_classes]

    def losses() -> list[Tensor]:
        logits = trained.forward_all(image)
        return [F.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]

    before = losses()
    torch.stack(before).sum().backward()
    gradients = {name: value.grad for name, value in trained.named_parameters()}
    if structure != "masks and depths":  # norms of blocks that a level leaves out
        unused = [name for name, gradient in gradients.items() if gradient is None]
        assert set(unused) <= {"masked.module.weights"}  # EfficientViM's own code does not use it
    with torch.no_grad():
        for value in trained.parameters():
            if value.grad is not None:
                value -= 0.01 * value.grad / value.grad.norm().clamp(min=1.0)
        for new, old in zip(losses(), before, strict=True):
            assert new.isfinite()
            assert new.item() != old.item()
        trained.eval().load_stored({name: value.clone() for name, value in network.stored().items()})
        for level in range(2):
            assert torch.equal(trained(image, level), network(image, level))


@every_case
def test_a_level_taken_out_gives_the_same_answers(structure: str, family: str) -> None:
    network, image = built(structure, family), images(family)
    short = network.truncate(0)
    ours = structure.startswith("slices") or family in NO_TIMM_MODEL.get(structure, ())
    alone = short if ours else network.extract(0)
    with torch.no_grad():
        expected = network(image, 0)
        assert short.num_levels == 1
        assert close(short(image), expected)
        assert close(alone.eval()(image), expected)


@every_case
def test_one_level_is_the_dense_model(structure: str, family: str) -> None:
    backbone, image = backbone_of(family), images(family)
    whole = {key: (1.0,) if value == HALVES else value for key, value in STRUCTURES[structure].items()}
    network = nest(backbone, num_classes=(3,), input_size=size_of(family), proof=False, **whole).eval()
    with torch.no_grad():
        found, expected = network.features(image, 0), backbone(image)
    if "order" in whole:  # features come in another order
        found, expected = found.sort(dim=1).values, expected.sort(dim=1).values
    assert close(found, expected)


@pytest.mark.parametrize("family", mark_full(WITHOUT_BLOCKS, ["densenet", "efficientnet"]))
def test_depths_need_blocks_that_can_be_left_out(family: str) -> None:
    size = size_of(family)
    with pytest.raises(BackboneError, match="no stage has a residual block"):
        nest(backbone_of(family), structure="depths", depths=HALVES, num_classes=(2, 3), input_size=size)
