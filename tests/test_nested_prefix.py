"""Structures `prefix` and `depths`: smaller dense networks inside shared weights, and levels as timm models."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_families import BLOCKS_TAKE_MORE, SIZES_ELSEWHERE, backbone_of, create_lively, mark_full, size_of
from torch import Tensor, nn

from hierclass.errors import BackboneError, LevelError
from hierclass.nested import NestedNetwork, create_backbone, nest
from hierclass.nested.prefix import PrefixNetwork

SIZE = (3, 32, 32)
CLASSES = (2, 5, 12)
SMALL: dict[str, Any] = {"layers": (2, 3, 2, 2), "channels": (16, 16, 32, 32)}
"""A ResNet with blocks to leave out, and few channels."""


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


CASES: dict[str, dict[str, Any]] = {
    "prefix": {"structure": "prefix"},
    "depths": {"structure": "depths", "depths": (0.4, 0.7, 1.0)},
    "prefix with depths": {"structure": "prefix", "depths": (0.4, 0.7, 1.0)},
}


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, PrefixNetwork]:
    """A backbone and the network made of it; tests only read them."""
    backbone = create_lively("resnet18", **SMALL)
    network = nest(backbone, num_classes=CLASSES, input_size=SIZE, **CASES[request.param]).eval()
    assert isinstance(network, PrefixNetwork)
    return backbone, network


def test_the_last_level_is_the_backbone_exactly(case: tuple[nn.Module, PrefixNetwork]) -> None:
    backbone, network = case
    with torch.no_grad():
        assert torch.equal(network.features(images(), 2), backbone(images()))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_is_a_thinner_timm_model_that_runs_without_our_code(
    case: tuple[nn.Module, PrefixNetwork], level: int
) -> None:
    backbone, network = case
    model = network.extract(level).eval()
    assert type(model) is type(backbone)
    assert not any(type(part).__module__.startswith("hierclass") for part in model.modules())
    with torch.no_grad():
        assert torch.allclose(model(images()), network(images(), level), atol=1e-5)
        again = timm.create_model("resnet18", num_classes=1)
        assert type(again) is type(model)
        assert model.forward_features(images()).shape[1] == network.num_features[level]
    own = sum(value.numel() for value in model.parameters())
    lower_heads = sum(value.numel() for value in network.heads[:level].parameters())
    assert own == network.cost(level).parameters - lower_heads


def test_a_lower_level_costs_less(case: tuple[nn.Module, PrefixNetwork]) -> None:
    costs = [case[1].cost(level) for level in range(3)]
    assert costs[0].macs < costs[1].macs < costs[2].macs
    assert costs[0].parameters < costs[1].parameters < costs[2].parameters


def test_taken_out_levels_answer_alike_and_hold_less(case: tuple[nn.Module, PrefixNetwork]) -> None:
    network = case[1]
    small = network.truncate(1)
    with torch.no_grad():
        for level in (0, 1):
            assert torch.equal(small(images(), level), network(images(), level))
        assert torch.equal(small.truncate(0)(images()), network(images(), 0))
    sizes = [sum(value.numel() for value in each.parameters()) for each in (small, network)]
    assert sizes[0] < sizes[1]
    with pytest.raises(LevelError, match="levels 0 to 1"):
        small(images(), 2)


def test_a_fused_copy_answers_alike(case: tuple[nn.Module, PrefixNetwork]) -> None:
    fused = case[1].fused()
    with torch.no_grad():
        for level in range(3):
            assert torch.allclose(fused(images(), level), case[1](images(), level), atol=1e-4)
    assert fused.cost(0).macs == case[1].cost(0).macs


def test_what_is_stored_makes_the_same_network(case: tuple[nn.Module, PrefixNetwork]) -> None:
    network = case[1]
    other = copy.deepcopy(network)
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
        other.load_stored(network.stored())
        for level in range(3):
            assert torch.equal(other(images(), level), network(images(), level))


def test_one_step_trains_shared_weights_from_every_level(case: tuple[nn.Module, PrefixNetwork]) -> None:
    network = copy.deepcopy(case[1]).train()
    network(images(8), 0).square().mean().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    assert "weights.conv1/weight" in reached
    assert not any(name.startswith(("heads.1", "heads.2")) for name in reached)
    loss = torch.stack([logits.square().mean() for logits in network.forward_all(images(8))]).sum()
    loss.backward()
    assert all(value.grad is not None for value in network.parameters())


def test_each_level_has_statistics_of_its_own(case: tuple[nn.Module, PrefixNetwork]) -> None:
    network = copy.deepcopy(case[1]).train()
    before = {name: value.clone() for name, value in network.named_buffers() if "running_mean" in name}
    with torch.no_grad():
        network(images(8), 0)
    moved = {
        name for name, value in network.named_buffers() if name in before and not value.equal(before[name])
    }
    assert moved
    assert all(name.split(".")[2] == "0" for name in moved)


def test_two_threads_may_run_two_levels_at_once(case: tuple[nn.Module, PrefixNetwork]) -> None:
    network = case[1]
    with torch.no_grad():
        serial = [network(images(), level) for level in (0, 2)]
    together = threading.Barrier(2)

    def run(index: int) -> list[Tensor]:
        together.wait()
        with torch.no_grad():
            return [network(images(), (0, 2)[index]) for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for expected, results in zip(serial, pool.map(run, (0, 1)), strict=True):
            assert all(torch.allclose(result, expected, rtol=1e-6, atol=1e-6) for result in results)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_levels_of_other_families_are_timm_models_too(name: str) -> None:
    size = (3, 160, 160) if name == "test_vit" else SIZE
    backbone = create_lively(name)
    network = nest(backbone, structure="prefix", num_classes=CLASSES, input_size=size).eval()
    image = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(network.features(image, 2), backbone(image))
        model = network.extract(0).eval()
        assert type(model) is type(backbone)
        assert torch.allclose(model(image), network(image, 0), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    mark_full(["mobilenetv3_small_050", "lcnet_035", "mobilenetv4_conv_small_035"], ["lcnet_035"]),
)
def test_a_head_behind_a_convolution_of_pooled_values_is_timms_own(name: str) -> None:
    network = nest(create_lively(name), structure="prefix", num_classes=CLASSES, input_size=SIZE).eval()
    for level in (0, 1):
        model = network.extract(level).eval()
        assert type(model) is type(network.plans[0].model.make())
        assert model.get_classifier().in_features == network.num_features[level]
        with torch.no_grad():
            assert torch.allclose(model(images()), network(images(), level), atol=1e-4)


def test_a_head_that_is_no_linear_layer_leaves_ours_behind_the_backbone() -> None:
    network = nest(
        create_lively("repvit_m0_9"), structure="prefix", num_classes=CLASSES, input_size=SIZE
    ).eval()
    model = network.extract(0).eval()
    assert isinstance(model, nn.Sequential)
    assert type(model[0]) is type(network.plans[0].model.make())
    with torch.no_grad():
        assert torch.allclose(model(images()), network(images(), 0), atol=1e-4)


def test_pretrained_weights_of_timm_are_kept_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = timm.create_model("test_resnet").eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    backbone = create_backbone("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    network = nest(backbone, structure="prefix", num_classes=CLASSES, input_size=SIZE).eval()
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images()), pre_logits=True)
        assert torch.equal(network.features(images(), 2), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"structure": "layers"},
            "structure 'layers' is not known; there are: slices, prefix, depths, masks",
        ),
        (
            {"structure": "prefix", "densities": (0.5, 0.7, 1)},
            "'prefix' takes widths and depths, not densities",
        ),
        ({"structure": "depths", "depths": (0.5, 1)}, "2 depths need 2 class counts"),
        ({"structure": "depths", "depths": (0.5, 0.7, 0.9)}, r"depths \[0.5, 0.7, 0.9\] do not fit"),
        ({"structure": "depths", "depths": (0.9, 0.7, 1)}, "rising to 1"),
        (
            {"structure": "depths", "depths": (0.3, 0.6, 1), "order": "importance"},
            "order 'importance' does not fit",
        ),
        ({"structure": "slices", "depths": (0.5, 1)}, "3 widths need 3 depths"),
    ],
)
def test_arguments_that_do_not_fit_the_structure_are_one_line(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        nest(create_backbone("test_resnet"), num_classes=CLASSES, input_size=SIZE, **arguments)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_blocks_to_leave_out_is_refused() -> None:
    with pytest.raises(BackboneError, match="no stage has a residual block that a level could leave out"):
        nest(
            create_backbone("test_resnet"),
            structure="depths",
            depths=(0.5, 0.75, 1),
            num_classes=CLASSES,
            input_size=SIZE,
        )


def test_weights_whose_names_differ_by_a_dot_alone_are_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.mix = nn.Conv2d(16, 16, 1, bias=False)
            self.mix_weight = nn.Parameter(torch.randn(16, 16, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            value = self.mix(torch.relu(self.conv(image)))
            return (value * self.mix_weight.mean((1, 2, 3))[:, None, None]).mean((2, 3))

    backbone = Twice().eval()
    network = nest(backbone, structure="prefix", num_classes=CLASSES, input_size=SIZE).eval()
    with torch.no_grad():
        assert torch.allclose(network.features(images(), 2), backbone(images()), atol=1e-6)


def test_no_structure_changes_the_backbone() -> None:
    backbone = create_lively("resnet18", **SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    networks: list[NestedNetwork] = [
        nest(backbone, num_classes=CLASSES, input_size=SIZE, **arguments) for arguments in CASES.values()
    ]
    with torch.no_grad():
        for network in networks:
            for value in network.parameters():
                value.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("structure", "family"),
    mark_full(
        [*(("prefix", name) for name in SIZES_ELSEWHERE), *(("depths", name) for name in BLOCKS_TAKE_MORE)],
        [("prefix", "sknet"), ("depths", "cait")],
    ),
)
def test_some_families_have_levels_that_are_no_timm_models(structure: str, family: str) -> None:
    size = size_of(family)
    shares = {"depths": (0.5, 1.0)} if structure == "depths" else {}
    classes = CLASSES[-2:] if shares else CLASSES
    network = nest(
        backbone_of(family), structure=structure, num_classes=classes, input_size=size, **shares
    ).eval()
    with pytest.raises(BackboneError, match=r"can't be had as a timm model of its own .*truncate\(\)"):
        network.extract(0)
    image = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.allclose(network.truncate(0)(image), network(image, 0), atol=1e-4)
