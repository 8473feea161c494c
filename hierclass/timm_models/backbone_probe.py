"""Find out whether a timm model nests by nesting it.

`probe_backbone` tries structure `slices` without memory for weights, so that a model of a billion weights takes
seconds, and counts costs. `prove_model` builds a model with weights, and the network verifies its nesting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models import _registry
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hierclass.errors import BackboneError
from hierclass.nested import DEFAULT_SHARES, create_backbone, nest
from hierclass.nested.analysis.partition import HINT, analyse
from hierclass.nested.lowering import lower
from hierclass.nested.network import evaluating
from hierclass.nested.slices import SlicedNetwork

MAX_SHARE = 0.75
"""Largest share of the weights that level 0 may need; above it, a model counts as one that does not nest."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of probing one model; `reason` says in one line why it does not nest, empty if it does."""

    name: str
    family: str
    reason: str
    input_size: tuple[int, int, int] = (3, 0, 0)
    macs: tuple[int, ...] = ()
    """Multiply-accumulates of each level for one image, lower levels included; empty if not counted."""
    parameters: tuple[int, ...] = ()
    """Number of weights of each level without its head, lower levels included."""
    unexpected: bool = False
    """Whether it failed with another error than `BackboneError`: a fault of this package."""

    @property
    def nests(self) -> bool:
        """Whether the model can be cut into levels."""
        return not self.reason


def family_of(name: str) -> str:
    """Return the family of a timm model: the name of its module."""
    return str(_registry._model_to_module.get(name, ""))


def probe_backbone(name: str, widths: Sequence[float] = DEFAULT_SHARES, *, count: bool = True) -> ProbeResult:
    """Nest the timm model `name` as slices without memory for weights; with `count`, count multiply-accumulates.

    Raises:
        BackboneError: timm has no such model.
    """
    size = (3, 0, 0)
    try:
        backbone = create_meta_backbone(name)
        size = image_size(backbone)
        macs, parameters = _level_costs(backbone, widths, size, count=count)
    except BackboneError as error:
        if not family_of(name):
            raise
        return ProbeResult(name, family_of(name), str(error).removesuffix(f"; {HINT}"), size)
    except Exception as error:
        return ProbeResult(name, family_of(name), _first_line(error), size, unexpected=True)
    share = parameters[0] / max(parameters[-1], 1)
    reason = (
        "" if share <= MAX_SHARE else f"level 0 needs {share:.0%} of the weights, so it is hardly cheaper"
    )
    return ProbeResult(name, family_of(name), reason, size, macs, parameters)


def create_meta_backbone(name: str) -> nn.Module:
    """Create a backbone whose weights take no memory (device meta), if timm can."""
    try:
        with torch.device("meta"):
            return create_backbone(name).eval()
    except BackboneError:
        return create_backbone(name).eval()


def image_size(backbone: nn.Module) -> tuple[int, int, int]:
    """Return the smallest image (C, H, W) that a timm model declares, or else its usual one."""
    known = getattr(backbone, "pretrained_cfg", None) or {}
    usual = known.get("input_size", (3, 224, 224))
    size = usual if known.get("fixed_input_size") else known.get("min_input_size") or usual
    return (int(size[0]), int(size[1]), int(size[2]))


def _level_costs(
    backbone: nn.Module, widths: Sequence[float], size: tuple[int, int, int], *, count: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Nest a backbone, run every level on device meta, and count multiply-accumulates and weights."""
    classes = [2] * len(widths)
    network = SlicedNetwork(lower(analyse(backbone, widths, size)), classes, size)
    network.eval().requires_grad_(False).to("meta")
    state = network.start(torch.zeros(1, *size, device="meta"))
    macs = [0]
    for _ in widths:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter if count else contextlib.nullcontext():
            try:
                logits = network.refine(state)
            except RuntimeError as error:
                raise BackboneError(f"the cut network does not run: {_first_line(error)}") from error
        if tuple(logits.shape) != (1, 2):
            raise BackboneError(f"level {state.level} gives {tuple(logits.shape)} logits, not (1, 2)")
        macs.append(macs[-1] + counter.get_total_flops() // 2)
    held = [
        sum(value.numel() for _, value, trained in network.level_tensors(level) if trained)
        for level in range(len(widths))
    ]
    return tuple(macs[1:]) if count else (), tuple(held)


def prove_model(name: str, structure: str) -> str:
    """Nest a timm model with weights, which verifies its nesting; return why that fails, or an empty string.

    With `slices`, a network of a single level must also give the same features as timm.
    """
    torch.manual_seed(0)
    try:
        backbone = create_backbone(name).eval()
        randomise_weights(backbone)
        size = image_size(backbone)
        if structure == "slices":
            _compare(backbone, size)
        nest(backbone, structure=structure, num_classes=[2] * len(DEFAULT_SHARES), input_size=size)
    except BackboneError as error:
        return str(error).removesuffix(f"; {HINT}")
    except Exception as error:
        return _first_line(error)
    return ""


def randomise_weights(backbone: nn.Module) -> None:
    """Randomise weights that timm initialises with zeros or ones, which would hide channels in the wrong place."""
    with torch.no_grad():
        for name, value in (*backbone.named_parameters(), *backbone.named_buffers()):
            if not value.is_floating_point() or (
                value.ndim < 2 and "running" not in name and _is_fixed(value)
            ):
                continue
            if name.endswith("running_var") or (value.ndim < 2 and bool((value == 1).all())):
                value.uniform_(0.8, 1.2)
            elif not bool(value.any()):
                value.normal_(0, 0.05)


def _is_fixed(value: Tensor) -> bool:
    return not isinstance(value, nn.Parameter)


def _compare(backbone: nn.Module, size: tuple[int, int, int]) -> None:
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    network = nest(backbone, widths=(1.0,), num_classes=[2], input_size=size)
    with evaluating(network), torch.no_grad():
        found, expected = network.features_all(image)[0], backbone(image)
    apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not apart < 1e-3:
        raise BackboneError(f"cut as one level it differs from timm by {apart:.1%} of the largest feature")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
