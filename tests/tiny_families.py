"""A tiny model of each family of timm: its blocks as they are, with few channels and few layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from timm.models import (
    byobnet,
    cspnet,
    densenet,
    efficientnet,
    ghostnet,
    hrnet,
    metaformer,
    mlp_mixer,
    regnet,
    vgg,
    vovnet,
)
from timm.models._efficientnet_builder import decode_arch_def
from torch import nn

from hierclass.nested import create_backbone

SHORT: dict[str, Any] = {"layers": (2, 1, 1, 1), "channels": (16, 16, 32, 32)}
CONVNEXT: dict[str, Any] = {"depths": (2, 1, 1, 1), "dims": (16, 16, 32, 32)}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SWIN: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (3, 6),
    "window_size": 4,
}


def _csp() -> nn.Module:
    cfg = cspnet.model_cfgs["cspresnet50"]
    stages = dataclasses.replace(
        cfg.stages, depth=(2, 2, 1, 1), out_chs=(32, 32, 48, 64), stride=(1, 2, 2, 2)
    )
    stem = dataclasses.replace(cfg.stem, out_chs=16)
    return cspnet.CspNet(dataclasses.replace(cfg, stem=stem, stages=stages), num_classes=0)


def _vovnet() -> nn.Module:
    cfg = vovnet.model_cfgs["ese_vovnet19b_slim_dw"]
    small = {"stem_chs": (16, 16, 16), "stage_conv_chs": (16, 16, 16, 16), "stage_out_chs": (32, 32, 32, 64)}
    return vovnet.VovNet({**cfg, **small}, num_classes=0)


def _regnet() -> nn.Module:
    cfg = regnet.RegNetCfg(depth=6, w0=16, wa=24.0, wm=2.0, group_size=8, se_ratio=0.25)
    return regnet.RegNet(cfg, num_classes=0)


def _ghostnet() -> nn.Module:
    stages = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0.25, 2], [3, 48, 24, 0.25, 1]], [[5, 64, 40, 0, 2]]]
    return ghostnet.GhostNet(stages, num_classes=0)


def _named(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: create_backbone(name, **arguments)


def _mixer() -> nn.Module:
    return mlp_mixer.MlpMixer(num_classes=0, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)


def _metaformer() -> nn.Module:
    return metaformer.MetaFormer(num_classes=0, depths=(2, 1), dims=(16, 32))


def _vgg() -> nn.Module:
    return vgg.VGG((8, "M", 16, "M", 24, "M"), num_classes=0, norm_layer=nn.BatchNorm2d, mlp_ratio=0.01)


def _hrnet() -> nn.Module:
    stages = {
        f"stage{number}": {
            "num_modules": 1,
            "num_branches": number,
            "block_type": "BASIC" if number > 1 else "BOTTLENECK",
            "num_blocks": (1,) * number,
            "num_channels": tuple(8 << branch for branch in range(number)),
            "fuse_method": "SUM",
        }
        for number in range(1, 5)
    }
    return hrnet.HighResolutionNet({"stem_width": 16, **stages}, num_classes=0)


def _repvgg() -> nn.Module:
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=depth, c=16 * depth, s=2) for depth in (1, 2))
    return byobnet.ByobNet(byobnet.ByoModelCfg(blocks, stem_type="rep", stem_chs=16), num_classes=0)


def _efficientnet_of(*stages: list[str]) -> Callable[[], nn.Module]:
    return lambda: efficientnet.EfficientNet(
        decode_arch_def(list(stages)), num_classes=0, num_features=64, stem_size=16
    )


def _densenet() -> nn.Module:
    return densenet.DenseNet(growth_rate=8, block_config=(2, 2), num_classes=0)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": _named("resnet26", **SHORT),
    "resnext": _named("resnext50_32x4d", **SHORT, cardinality=4, base_width=16),
    "seresnet": _named("seresnet50", **SHORT),
    "ecaresnet": _named("ecaresnet26t", **SHORT),
    "resnetv2": _named("resnetv2_50", layers=(2, 1, 1, 1), channels=(32, 32, 64, 64), stem_chs=16),
    "res2net": _named("res2net50_26w_4s", **SHORT),
    "sknet": _named("skresnet18", **SHORT),
    "densenet": _densenet,
    "vgg": _vgg,
    "vovnet": _vovnet,
    "cspnet": _csp,
    "regnet": _regnet,
    "ghostnet": _ghostnet,
    "byobnet": _named("test_byobnet"),
    "repvgg": _repvgg,
    "hrnet": _hrnet,
    "nfnet": _named("test_nfnet"),
    "efficientnet": _named("test_efficientnet"),
    "efficientnetv2": _efficientnet_of(
        ["cn_r1_k3_s1_e1_c16_skip"], ["er_r2_k3_s2_e4_c24"], ["ir_r2_k3_s2_e4_c32_se0.25"]
    ),
    "mobilenetv2": _efficientnet_of(["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r2_k3_s2_e6_c32"]),
    "mobilenetv3": _named("mobilenetv3_small_050"),
    "mobilenetv4": _named("mobilenetv4_conv_small_035"),
    "convnext": _named("convnext_atto", **CONVNEXT),
    "convnextv2": _named("convnextv2_atto", **CONVNEXT),
    "inception_next": _named("inception_next_atto", **CONVNEXT),
    "mambaout": _named("mambaout_femto", **CONVNEXT),
    "metaformer": _metaformer,
    "mixer": _mixer,
    "vit": _named("vit_tiny_patch16_224", **VIT),
    "vit_relpos": _named("vit_relpos_small_patch16_224", **VIT),
    "deit": _named("deit_tiny_distilled_patch16_224", **VIT),
    "beit": _named("beit_base_patch16_224", **VIT),
    "cait": _named("cait_xxs24_224", **VIT),
    "xcit": _named("xcit_nano_12_p16_224", **VIT),
    "pit": _named(
        "pit_ti_224", img_size=32, patch_size=4, stride=4, base_dims=(8, 8), depth=(2, 1), heads=(2, 4)
    ),
    "levit": _named("levit_128s", img_size=64, embed_dim=(32, 48), key_dim=8, depth=(2, 1), num_heads=(4, 6)),
    "swin": _named("swin_tiny_patch4_window7_224", **SWIN),
    "swinv2": _named("swinv2_tiny_window8_256", **SWIN),
    "davit": _named("davit_tiny", depths=(2, 1), embed_dims=(24, 48), num_heads=(3, 6)),
    "coatnet": _named("test_coatnet", img_size=64),
    "efficientvim": _named("efficientvim_m1", embed_dim=(32, 48, 64), depths=(1, 2, 1), state_dim=(9, 4, 4)),
}
SIZES_ELSEWHERE = ("res2net", "sknet", "cspnet", "vit_relpos", "xcit", "levit", "coatnet")
"""Families whose code keeps numbers of channels where they can't be found: no level of `prefix` is a timm model."""

BLOCKS_TAKE_MORE = ("vit_relpos", "beit", "cait", "xcit")
"""Families whose blocks take more than one value: nothing of torch can stand for one that `depths` leaves out."""

LARGER = {"levit": 64, "coatnet": 64, "davit": 64, "efficientvim": 64}
"""Families that take no image of 32 pixels."""


def size_of(family: str) -> tuple[int, int, int]:
    """Return the size (C, H, W) of the images that a family is tested on."""
    side = LARGER.get(family, 32)
    return 3, side, side


def mark_full(cases: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """Return the cases as parameters of a test, marked `full` where they are not among `default`."""
    return [
        case if case in default else pytest.param(*_values(case), marks=pytest.mark.full) for case in cases
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


@cache
def backbone_of(family: str) -> nn.Module:
    """Return a backbone whose every weight matters; tests must not change it."""
    torch.manual_seed(0)
    return liven(FAMILIES[family]())


def create_lively(name: str, **timm_args: Any) -> nn.Module:
    """Return a timm model, with seed 0, whose every weight matters."""
    torch.manual_seed(0)
    return liven(create_backbone(name, **timm_args))


def liven(backbone: nn.Module) -> nn.Module:
    """Draw gains and variances anew, since timm starts residual branches near zero; return it in evaluation mode."""
    with torch.no_grad():
        for key, value in (*backbone.named_parameters(), *backbone.named_buffers()):
            if value.is_floating_point() and value.ndim < 2 and not key.endswith(("bias", "mean")):
                value.uniform_(0.8, 1.2)
    return backbone.eval()


def liven_norms(backbone: nn.Module, size: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Give batch norms weights (timm starts residual branches at zero) and statistics of random images."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = 1.0
        backbone.train()(torch.randn(16, *size))
    for norm in norms:
        norm.momentum = 0.1
