"""From a timm name to a nested network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.blocks import Block, check_depths, delay, schedule
from hierclass.nested.boundaries import check_widths
from hierclass.nested.graph import Analysis, analyse
from hierclass.nested.masks import MaskedNetwork
from hierclass.nested.network import NestedNetwork, evaluating
from hierclass.nested.prefix import nest_prefix, seen_by
from hierclass.nested.program import write_program
from hierclass.nested.proof import prove
from hierclass.nested.slices import SlicedNetwork

DEFAULT_SHARES = (0.25, 0.5, 1.0)
"""Of channels, blocks or weights, for the levels 0, 1, 2."""


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


def nest(
    backbone: nn.Module,
    *,
    structure: str = "slices",
    widths: Sequence[float] | None = None,
    depths: Sequence[float] | None = None,
    densities: Sequence[float] | None = None,
    order: str = "given",
    num_classes: Sequence[int],
    input_size: tuple[int, int, int] = (3, 64, 64),
) -> NestedNetwork:
    """Cut a backbone into nested levels and prove that they are nested.

    `structure` says how levels are nested: "slices", "prefix", "masks" or "depths". Each of the following has one
    value per level, strictly rising (`depths` may also stay equal) in (0, 1]: `widths` the share of every layer's
    channels that a level sees (slices, prefix; the last is 1), `depths` the share of the residual blocks of every
    stage that it runs (depths; may be added to the others; the last is 1), `densities` the share of the weights
    that it uses (masks). None takes 0.25, 0.5, 1 where the structure needs it. `order` "importance" deals the
    channels with the largest weights to the lowest levels (slices; for pretrained weights), "given" keeps their
    order.
    `num_classes[k]` is the number of classes of level k's head; `input_size` (C, H, W) the image that costs and
    the proof refer to. The weights of `backbone` are copied; `backbone` stays as it is.

    Raises:
        BackboneError: the shares do not fit, or a layer can't be cut (the message names its path and type).
    """
    shares = {"masks": densities, "depths": depths}.get(structure, widths) or DEFAULT_SHARES
    _check_arguments(structure, widths, depths, densities, order, shares, num_classes)
    wanted = _Wanted(backbone, tuple(shares), depths, order, tuple(num_classes), input_size)
    with evaluating(backbone):
        network = _STRUCTURES[structure](wanted)
    network.heads.to(next(backbone.parameters()))
    prove(network)
    return network.train(backbone.training)


def _check_arguments(
    structure: str,
    widths: Sequence[float] | None,
    depths: Sequence[float] | None,
    densities: Sequence[float] | None,
    order: str,
    shares: Sequence[float],
    num_classes: Sequence[int],
) -> None:
    if structure not in _STRUCTURES:
        raise BackboneError(f"structure {structure!r} is not known; there are: {', '.join(_STRUCTURES)}")
    given = {"widths": widths, "depths": depths, "densities": densities}
    for name, value in given.items():
        if value is not None and name not in _TAKES[structure]:
            raise BackboneError(
                f"structure {structure!r} takes {' and '.join(_TAKES[structure])}, not {name}"
            )
    if order not in ("given", "importance") or (order != "given" and structure != "slices"):
        raise BackboneError(f"order {order!r} does not fit; it is 'given' or, for slices, 'importance'")
    if len(num_classes) != len(shares) or min(num_classes, default=0) < 1:
        raise BackboneError(
            f"{len(shares)} {_TAKES[structure][0]} need {len(shares)} class counts of at least 1, "
            f"not {list(num_classes)}"
        )
    if depths is not None and len(check_depths(depths)) != len(shares):
        raise BackboneError(
            f"{len(shares)} {_TAKES[structure][0]} need {len(shares)} depths, not {list(depths)}"
        )


@dataclass(frozen=True)
class _Wanted:
    """What every structure is made of; `shares` are its widths, depths or densities."""

    backbone: nn.Module
    shares: tuple[float, ...]
    depths: Sequence[float] | None
    order: str
    num_classes: tuple[int, ...]
    input_size: tuple[int, int, int]


def _make_slices(wanted: _Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, check_widths(wanted.shares), wanted.input_size, order=wanted.order)
    blocks = schedule(analysis, wanted.depths) if wanted.depths is not None else []
    if blocks:
        delay(analysis, blocks, wanted.shares, wanted.order)
    return SlicedNetwork(write_program(analysis, blocks), wanted.num_classes, wanted.input_size)


def _make_prefix(wanted: _Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, check_widths(wanted.shares), wanted.input_size)
    blocks = schedule(analysis, wanted.depths) if wanted.depths is not None else []
    analyses = [seen_by(analysis, level) for level in range(len(wanted.shares))]
    return _nest_dense(wanted, "prefix", analyses, blocks)


def _make_depths(wanted: _Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, (1.0,), wanted.input_size)
    blocks = schedule(analysis, check_depths(wanted.shares))
    return _nest_dense(wanted, "depths", [analysis] * len(wanted.shares), blocks)


def _nest_dense(
    wanted: _Wanted, structure: str, analyses: Sequence[Analysis], blocks: Sequence[Block]
) -> NestedNetwork:
    left_out = [[block for block in blocks if block.born > level] for level in range(len(analyses))]
    return nest_prefix(wanted.backbone, analyses, left_out, wanted.num_classes, wanted.input_size, structure)


def _make_masks(wanted: _Wanted) -> NestedNetwork:
    born: dict[str, int] = {}
    if wanted.depths is not None:
        analysis = analyse(wanted.backbone, (1.0,), wanted.input_size)
        born = {block.path: block.born for block in schedule(analysis, wanted.depths)}
    return MaskedNetwork(wanted.backbone, wanted.shares, wanted.num_classes, wanted.input_size, born=born)


_STRUCTURES: dict[str, Callable[[_Wanted], NestedNetwork]] = {
    "slices": _make_slices,
    "prefix": _make_prefix,
    "masks": _make_masks,
    "depths": _make_depths,
}
"""A new structure is added here, and its arguments below."""

_TAKES = {
    "slices": ("widths", "depths"),
    "prefix": ("widths", "depths"),
    "masks": ("densities", "depths"),
    "depths": ("depths",),
}
