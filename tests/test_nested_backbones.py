"""Families of timm: cut as one level they answer like timm; cut as three, like timm with holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny_families import backbone_of, create_lively, mark_full, size_of
from torch import Tensor, nn
from toy_backbones import with_holes

from hierclass.errors import BackboneError
from hierclass.nested import NestedNetwork, create_backbone, nest

WIDTHS = (0.25, 0.5, 1.0)
SHORT: dict[str, Any] = {"layers": (1, 1, 1, 1)}
"""One block per stage: the family's blocks and widths without its depth."""

BY_NAME: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("test_efficientnet", {}),
    ("resnext50_32x4d", SHORT),
    ("seresnet50", SHORT),
    ("resnet10t", {}),
    ("resnet26d", SHORT),
    ("resnet50", SHORT),
    ("wide_resnet50_2", {**SHORT, "channels": (32, 64, 64, 128)}),
    ("mobilenetv3_large_100", {}),
    ("tf_efficientnet_b0", {}),
]
TINY = [
    *("resnetv2", "densenet", "vovnet", "ghostnet", "levit"),
    *("res2net", "sknet", "vgg", "cspnet", "regnet", "byobnet", "mobilenetv3", "mobilenetv4"),
]
"""Families whose norms look at one channel at a time: others normalise slice by slice, which timm does not."""

WHOLE = ["resnet50", "resnext50_32x4d"]


def cut(backbone: nn.Module, widths: tuple[float, ...], size: int = 32) -> NestedNetwork:
    return nest(backbone, widths=widths, num_classes=[3] * len(widths), input_size=(3, size, size))


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


def check_holes(backbone: nn.Module, size: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Cut as three levels, the network answers like a dense one without the weights that were left out."""
    network = nest(backbone, widths=WIDTHS, num_classes=(3, 3, 3), input_size=size).eval()
    holed, order, holes = with_holes(backbone, WIDTHS, size)
    image = torch.randn(2, *size)
    with torch.no_grad():
        whole, expected, features = backbone(image), holed(image)[:, order], network.features_all(image)
    assert holes > 0
    assert close(features[-1], expected)
    assert not close(expected, whole[:, order])
    assert close(expected[:, : network.num_features[0]], features[0])


@pytest.mark.parametrize(
    ("name", "timm_args"), mark_full(BY_NAME, BY_NAME[:3]), ids=[name for name, _ in BY_NAME]
)
def test_a_model_can_be_cut_and_answers_like_timm_with_holes(name: str, timm_args: dict[str, Any]) -> None:
    check_holes(create_lively(name, **timm_args))


@pytest.mark.parametrize("family", mark_full(TINY, TINY[:5]))
def test_a_family_can_be_cut_and_answers_like_timm_with_holes(family: str) -> None:
    check_holes(backbone_of(family), size_of(family))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_one_level_is_the_dense_network(name: str) -> None:
    backbone = create_lively(name)
    image = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert close(cut(backbone, (1.0,)).eval().features_all(image)[0], backbone(image))


@pytest.mark.full
@pytest.mark.parametrize("name", WHOLE)
def test_a_family_can_be_cut_in_its_full_depth(name: str) -> None:
    network = cut(create_lively(name), WIDTHS, 64)
    costs = [network.cost(level).macs for level in range(3)]
    assert costs[0] < costs[2] / 8
    assert costs[1] < costs[2] / 2


def test_a_dense_channel_of_level_k_reads_only_slices_up_to_k() -> None:
    backbone = create_lively("test_resnet")
    network = cut(backbone, WIDTHS)
    weight = backbone.get_submodule("layer1.0.conv2").weight
    assert isinstance(weight, Tensor)
    parts = [layer.weight for layer in network.layers["layer1_0_conv2"]]
    ends, start = (8, 16, 32), 0
    for part, end in zip(parts, ends, strict=True):
        assert torch.equal(part, weight[start:end, :end])
        start = end


def test_pretrained_weights_of_timm_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = timm.create_model("test_resnet")
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    backbone = create_backbone("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    network = cut(backbone, WIDTHS)
    parts = [layer.weight for layer in network.layers["layer4_0_conv1"]]
    weight = model.layer4[0].conv1.weight
    assert [tuple(part.shape[:2]) for part in parts] == [(24, 48), (24, 96), (48, 192)]
    assert torch.equal(parts[0], weight[:24, :48])
    assert torch.equal(parts[1], weight[24:48, :96])
    assert torch.equal(parts[2], weight[48:])


def test_a_layer_with_fewer_channels_than_levels_gives_some_levels_none() -> None:
    network = cut(create_backbone("efficientnet_b0"), (0.1, 0.2, 0.3, 0.6, 1.0))
    parts = network.layers["blocks_1_0_se_conv_reduce"]
    assert [getattr(part, "out_channels", 0) for part in parts] == [1, 0, 0, 1, 2]


def test_fewer_features_than_levels_are_refused() -> None:
    with pytest.raises(BackboneError, match="the 3 pooled features can't be shared by 5 levels; use fewer"):
        cut(
            nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            (0.1, 0.2, 0.3, 0.6, 1.0),
        )


@pytest.mark.parametrize(("stride", "side"), [(None, 1), (4, 1), (2, 2), (1, 4)])
def test_the_stem_of_a_resnet_can_shrink_less(stride: int | None, side: int) -> None:
    backbone = create_backbone("test_resnet", stem_stride=stride).eval()
    with torch.no_grad():
        maps = backbone.forward_features(torch.zeros(1, 3, 32, 32))
    assert maps.shape[-2:] == (side, side)
    cut(backbone, (0.5, 1.0))


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_b0"])
def test_the_stem_of_an_efficientnet_can_keep_the_size(name: str) -> None:
    image = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        kept, shrunk = (
            create_backbone(name, stem_stride=stride).eval().forward_features(image) for stride in (1, 2)
        )
    assert kept.shape[-1] == 2 * shrunk.shape[-1]


@pytest.mark.parametrize(
    ("name", "stride"), [("test_resnet", 8), ("test_resnet", 3), ("test_efficientnet", 4)]
)
def test_a_stem_stride_that_cannot_be_is_refused_with_those_that_can(name: str, stride: int) -> None:
    with pytest.raises(
        BackboneError, match=rf"stem of {name} can't have stride {stride}; it can have \[1, 2"
    ):
        create_backbone(name, stem_stride=stride)


def test_an_unknown_model_is_refused_with_names_that_are_near() -> None:
    with pytest.raises(BackboneError, match=r"timm has no model called 'resnet_huge', for example .*resnet"):
        create_backbone("resnet_huge")
    with pytest.raises(BackboneError, match=r"timm\.list_models\(\) lists them all"):
        create_backbone("zzz")


def test_arguments_that_timm_does_not_take_are_one_line() -> None:
    with pytest.raises(BackboneError, match="timm can't make test_resnet: ") as caught:
        create_backbone("test_resnet", wings=2)
    assert "\n" not in str(caught.value)


def test_a_backbone_that_does_not_end_in_pooled_features_is_refused() -> None:
    with pytest.raises(BackboneError, match="must end in pooled features"):
        cut(create_backbone("test_resnet", global_pool=""), (0.5, 1.0))


def test_an_image_that_the_backbone_cannot_take_is_refused() -> None:
    with pytest.raises(
        BackboneError, match=r"does not run on an image of \(4, 32.*give input_size=\(3, 32, 32\)"
    ):
        nest(create_backbone("test_resnet"), widths=(1.0,), num_classes=(2,), input_size=(4, 32, 32))


@pytest.mark.parametrize("structure", ["slices", "masks"])
def test_an_image_that_does_not_fit_is_refused_with_what_to_change(structure: str) -> None:
    vit = create_backbone("vit_tiny_patch16_224", depth=1)
    with pytest.raises(
        BackboneError, match=r"on an image of \(3, 32, 32\): .*; try .*--backbone-arg img_size=32$"
    ):
        nest(vit, structure=structure, num_classes=(2, 3, 5), input_size=(3, 32, 32))
    grey = create_backbone("test_resnet", in_chans=1)
    with pytest.raises(BackboneError, match=r"; give input_size=\(1, 64, 64\), or .*in_chans=3") as caught:
        nest(grey, structure=structure, num_classes=(2, 3, 5))
    assert "needs no cutting" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (64, 64)}, r"input_size \(64, 64\) is no \(channels, height, width\)"),
        ({"input_size": 64}, "input_size 64 does not fit"),
        ({"num_classes": 5}, "num_classes 5 does not fit; give numbers of at least 1"),
        ({"num_classes": (2, 0, 5)}, r"num_classes \(2, 0, 5\) does not fit"),
        ({"widths": 5}, "widths 5 do not fit; give one number per level, like 0.25,0.5,1"),
        ({"widths": []}, r"widths \[\] do not fit"),
        ({"structure": "masks", "densities": []}, r"densities \[\] do not fit"),
        ({"depths": "deep"}, "depths 'deep' do not fit"),
    ],
)
def test_numbers_that_are_none_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        nest(
            create_backbone("test_resnet"), **{"num_classes": (2, 3, 5), "input_size": (3, 32, 32), **change}
        )


def test_arrays_of_numbers_are_taken() -> None:
    numbers = {"widths": np.array([0.25, 0.5, 1]), "num_classes": np.array([2, 3, 5])}
    network = nest(create_backbone("test_resnet"), **numbers, input_size=np.array([3, 32, 32]))
    assert network.num_classes == (2, 3, 5)
    assert network.input_size == (3, 32, 32)


def test_a_file_of_weights_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    model, file = timm.create_model("test_resnet"), tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    backbone = create_backbone("test_resnet", checkpoint_path=str(file))
    assert torch.equal(backbone.conv1[0].weight, model.conv1[0].weight)


def test_a_file_of_weights_that_does_not_fit_is_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    with pytest.raises(
        BackboneError, match=r"weights.pth into test_resnet: conv1.0.weight is missing; is it an"
    ):
        create_backbone("test_resnet", checkpoint_path=str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(BackboneError, match=r"timm can't load .*weights.pth into test_resnet: "):
        create_backbone("test_resnet", checkpoint_path=str(file))
    with pytest.raises(BackboneError, match="there is no file of weights at nowhere"):
        create_backbone("test_resnet", checkpoint_path="nowhere")


def test_without_a_connection_pretrained_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="--backbone-arg checkpoint_path=FILE"):
        create_backbone("test_resnet", pretrained=True, cache_dir=str(tmp_path))
