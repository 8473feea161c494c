"""From a timm name to a backbone: a timm model without its classifier."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from hierclass.errors import BackboneError


def create_backbone(
    name: str, *, stem_stride: int | None = None, pretrained: bool = False, **timm_args: Any
) -> nn.Module:
    """Make the timm model `name` without its classifier: (B, 3, H, W) → pooled features (B, F).

    `stem_stride` changes by how much the stem shrinks the image before the first stage, for images much
    smaller than 224 pixels (the small-image stem of He et al. 2016, section 4.2): 2 leaves out the pooling of
    a ResNet's stem, 1 also its stride; for MobileNet and EfficientNet 1 leaves out the stride of the stem's
    convolution. None keeps timm's. `timm_args` go to `timm.create_model`.

    Raises:
        BackboneError: timm has no such model, the arguments do not fit it, or its stem can't be changed so.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f", for example {', '.join(close)}" if close else "; timm.list_models() lists them all"
        raise BackboneError(f"timm has no model called {name!r}{hint}")
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **timm_args)
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"timm can't make {name}: {reason}") from error
    if stem_stride is not None:
        _set_stem_stride(backbone, name, stem_stride)
    return backbone


def _set_stem_stride(backbone: nn.Module, name: str, stride: int) -> None:
    """Undo as many of the stem's halvings, last first, as `stride` asks for."""
    halvings = [
        layer
        for path in ("conv1", "conv_stem", "maxpool")
        if isinstance(part := getattr(backbone, path, None), nn.Module)
        for layer in part.modules()
        if getattr(layer, "stride", 1) in (2, (2, 2))
    ]
    allowed = [2**count for count in range(len(halvings) + 1)]
    if stride not in allowed or not halvings:
        raise BackboneError(f"the stem of {name} can't have stride {stride}; it can have {allowed}")
    while len(halvings) > allowed.index(stride):
        layer = halvings.pop()
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        else:
            backbone.maxpool = nn.Identity()
