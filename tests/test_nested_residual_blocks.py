"""Residual blocks: which are found, which level runs them, and how they are left out of slices and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hierclass.nested import NestedNetwork, create_backbone, nest
from hierclass.nested.analysis.partition import analyse
from hierclass.nested.analysis.residual_blocks import check_depths, find_stages, first_blocks, schedule

SIZE = (3, 32, 32)
CLASSES = (2, 5, 12)
DEPTHS = (0.4, 0.7, 1.0)
SMALL: dict[str, Any] = {"layers": (2, 3, 2, 2), "channels": (16, 16, 32, 32)}


def stages_of(name: str, size: tuple[int, int, int] = SIZE, **timm_args: Any) -> list[list[str | None]]:
    analysis = analyse(create_backbone(name, **timm_args).eval(), (1.0,), size)
    return [[block.path if block else None for block in stage] for stage in find_stages(analysis)]


def test_the_first_block_of_a_stage_that_changes_the_size_is_run_by_all() -> None:
    assert stages_of("resnet18") == [
        ["layer1.0", "layer1.1"],
        [None, "layer2.1"],
        [None, "layer3.1"],
        [None, "layer4.1"],
    ]


def test_blocks_of_transformers_and_of_stages_without_a_list_are_found() -> None:
    assert stages_of("test_vit", (3, 160, 160)) == [[f"blocks.{number}" for number in range(6)]]
    assert stages_of("regnety_002")[-1] == [None, *(f"s4.b{number}" for number in range(2, 8))]


def test_networks_without_residual_blocks_have_no_stage() -> None:
    assert stages_of("vgg11") == []
    assert stages_of("test_efficientnet") == []


@pytest.mark.parametrize(
    ("count", "depths", "expected"),
    [(3, (0.34, 0.67, 1.0), (1, 2, 3)), (2, (0.25, 0.5, 1.0), (1, 1, 2)), (12, (0.25, 0.5, 1.0), (3, 6, 12))],
)
def test_a_level_runs_its_share_of_the_blocks_and_at_least_one(
    count: int, depths: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert first_blocks(count, depths) == expected


@given(st.integers(1, 40), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5))
def test_higher_levels_run_more_blocks_and_the_last_all(count: int, shares: list[float]) -> None:
    ends = first_blocks(count, check_depths((*sorted(shares), 1.0)))
    assert list(ends) == sorted(ends)
    assert ends[0] >= 1
    assert ends[-1] == count


def test_a_block_is_born_at_the_first_level_whose_share_holds_it() -> None:
    analysis = analyse(create_backbone("resnet18", **SMALL).eval(), (1.0,), SIZE)
    born = {block.path: block.born for block in schedule(analysis, DEPTHS)}
    assert born == {"layer1.1": 2, "layer2.1": 1, "layer2.2": 2, "layer3.1": 2, "layer4.1": 2}


@pytest.fixture(scope="module", params=["resnet18", "test_vit", "test_convnext"])
def pair(request: pytest.FixtureRequest) -> tuple[NestedNetwork, NestedNetwork, Tensor]:
    """Slices with depths and without, and an image for both."""
    torch.manual_seed(0)
    size = (3, 160, 160) if request.param == "test_vit" else SIZE
    backbone = create_backbone(request.param, **(SMALL if request.param == "resnet18" else {}))
    made = [
        nest(backbone, depths=depths, num_classes=CLASSES, input_size=size).eval()
        for depths in (DEPTHS, None)
    ]
    return made[0], made[1], torch.randn(2, *size)


def test_slices_with_fewer_blocks_cost_less_at_low_levels(
    pair: tuple[NestedNetwork, NestedNetwork, Tensor],
) -> None:
    short, whole, _ = pair
    assert short.cost(0).macs < whole.cost(0).macs
    assert short.cost(0).parameters < whole.cost(0).parameters


def test_slices_with_depths_refine_to_what_each_level_gives_alone(
    pair: tuple[NestedNetwork, NestedNetwork, Tensor],
) -> None:
    network, _, image = pair
    state = network.start(image)
    with torch.no_grad():
        everything = network.forward_all(image)
        for level in range(3):
            assert torch.allclose(network.refine(state), network(image, level), rtol=1e-4, atol=1e-5)
            assert torch.allclose(everything[level], network(image, level), rtol=1e-4, atol=1e-5)


def test_slices_with_depths_can_be_fused_and_truncated(
    pair: tuple[NestedNetwork, NestedNetwork, Tensor],
) -> None:
    network, _, image = pair
    with torch.no_grad():
        small, fused = network.truncate(1), network.fused()
        for level in range(2):
            assert torch.equal(small(image, level), network(image, level))
            assert torch.allclose(fused(image, level), network(image, level), rtol=1e-3, atol=1e-4)


def test_slices_with_depths_train_every_weight(pair: tuple[NestedNetwork, NestedNetwork, Tensor]) -> None:
    network = pair[0].truncate(2).train()
    loss = torch.stack([logits.square().mean() for logits in network.forward_all(pair[2])]).sum()
    loss.backward()
    unused = [name for name, value in network.named_parameters() if value.grad is None]
    assert unused == []


def test_a_level_of_masks_leaves_out_the_blocks_that_come_later() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", **SMALL)
    network = nest(
        backbone,
        structure="masks",
        depths=DEPTHS,
        densities=(0.1, 0.3, 1),
        num_classes=CLASSES,
        input_size=SIZE,
    ).eval()
    assert network.cost(0).macs < network.cost(1).macs < network.cost(2).macs
    image = torch.randn(2, *SIZE)
    with torch.no_grad():
        model = network.extract(0).eval()
        assert isinstance(model.get_submodule("layer1.1"), torch.nn.Identity)
        assert torch.allclose(model(image), network(image, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("depths", "warned"),
    [
        (None, ["levels 0 and 1 run the same blocks"]),
        ((0.5, 0.5, 1.0), []),
        ((0.25, 0.75, 1.0), ["levels 1 and 2"]),
    ],
)
def test_levels_of_different_depths_that_run_the_same_blocks_are_logged(
    depths: tuple[float, ...] | None, warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_backbone("resnet18", layers=(2, 1, 1, 1), channels=(16, 16, 32, 32))
    nest(backbone, structure="depths", depths=depths, num_classes=CLASSES, input_size=SIZE)
    assert len(caplog.messages) == len(warned)
    assert all(start in message for start, message in zip(warned, caplog.messages, strict=True))
    caplog.clear()
    nest(backbone, structure="depths", depths=depths, num_classes=CLASSES, input_size=SIZE, warn=False)
    assert caplog.messages == []
