"""Make a backbone, a timm model without its classifier, from its name in timm."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from hierclass.errors import BackboneError

FETCHED = (
    "if its weights can't be fetched here, fetch their file elsewhere and give it instead of pretrained: "
    "checkpoint_path=FILE (on the command line --backbone-arg checkpoint_path=FILE)"
)
"""What to do where weights can't be downloaded."""
CLIENTS = ("huggingface_hub", "httpx", "requests", "urllib", "urllib3", "socket", "ssl")
"""Packages whose errors are those of the network."""


def create_backbone(
    name: str, *, stem_stride: int | None = None, pretrained: bool = False, **timm_args: Any
) -> nn.Module:
    """Return the timm model `name` without its classifier: (B, 3, H, W) → pooled features (B, F).

    `stem_stride` is the factor by which the stem shrinks the image before the first stage, for images much smaller
    than 224 pixels (the small-image stem of He et al. 2016, section 4.2): 2 leaves out the pooling of a ResNet's stem,
    1 also its stride; for MobileNet and EfficientNet 1 leaves out the stride of the stem's convolution. None keeps
    timm's. `timm_args` go to `timm.create_model`; the weights of a classifier in a file `checkpoint_path` are ignored.

    Raises:
        BackboneError: timm has no such model, the arguments do not fit it, or its stem can't have this stride.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f", for example {', '.join(close)}" if close else "; timm.list_models() lists them all"
        raise BackboneError(f"timm has no model called {name!r}{hint}")
    weights = timm_args.pop("checkpoint_path", None)
    if str(weights or "").endswith(
        (".npz", ".npy")
    ):  # weights of other libraries, which the model itself reads
        timm_args["checkpoint_path"], weights = weights, None
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **timm_args)
    except Exception as error:  # a model's own code may raise anything for wrong arguments and weights
        hint = f"; {FETCHED}" if pretrained and _is_of_network(error) else ""
        raise BackboneError(f"timm can't make {name}: {reason(error)}{hint}") from error
    if weights:
        _load(backbone, name, str(weights))
    if stem_stride is not None:
        _set_stem_stride(backbone, name, stem_stride)
    return backbone


def _load(backbone: nn.Module, name: str, file: str) -> None:
    """Load a file of weights, without those of the classifier."""
    try:
        tensors = load_state_dict(file, device="cpu", weights_only=True)
        known = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
        names = tuple(f"{path}." for path in ((known,) if isinstance(known, str) else known))
        own = backbone.state_dict()
        kept = {key: value for key, value in tensors.items() if key in own or not key.startswith(names)}
        backbone.load_state_dict(kept)
    except FileNotFoundError as error:
        raise BackboneError(f"there is no file of weights at {file} (checkpoint_path)") from error
    except Exception as error:  # parsers of damaged files may raise anything
        raise BackboneError(f"timm can't load {file} into {name}: {reason(error)}") from error


def _is_of_network(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that something could not be downloaded."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    cause = error.__cause__ or error.__context__
    return (
        not kinds.isdisjoint(CLIENTS)
        or isinstance(error, ConnectionError)
        or (cause is not None and _is_of_network(cause))
    )


def reason(error: BaseException) -> str:
    """Return what went wrong in one short line; name the first tensor that does not fit, if the error names one."""
    text = str(error).strip()
    if found := re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", text):
        return (
            f"{found[1]} has shape ({found[2]}) there and ({found[3]}) in the model; is it another model's?"
        )
    if found := re.search(r"(Missing|Unexpected) key\(s\) in state_dict: \"([^\"]+)\"", text):
        return f"{found[2]} is {'missing' if found[1] == 'Missing' else 'unknown'}; is it another model's?"
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__


def check_image(backbone: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raise unless the backbone itself, uncut, runs on an image of this size (C, H, W).

    Raises:
        BackboneError: it does not; the message says what to change.
    """
    error = _failure(backbone, input_size)
    if error is None:
        return
    channels, height, width = input_size
    first = next(
        (layer.in_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)), channels
    )
    known = getattr(backbone, "pretrained_cfg", None) or {}
    fixed = any(getattr(part, "img_size", None) for part in backbone.modules()) or known.get(
        "fixed_input_size"
    )
    if first != channels:
        remedy = f"give input_size=({first}, {height}, {width}), or create_backbone(…, in_chans={channels})"
        remedy += "; on the command line leave in_chans out"
    elif fixed:
        size = str(height) if height == width else f"({height}, {width})"
        remedy = (
            f"try create_backbone(…, img_size={size}); on the command line --backbone-arg img_size={size}"
        )
    else:
        remedy = "try a larger image"
    raise BackboneError(
        f"{type(backbone).__name__} does not run on an image of {input_size}: {reason(error)}; {remedy}"
    ) from error


def _failure(backbone: nn.Module, input_size: tuple[int, int, int]) -> Exception | None:
    """Return the error of running a backbone in evaluation mode, None if it runs."""
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, *input_size).to(next(backbone.parameters())))
    except Exception as error:
        return error
    return None


def _set_stem_stride(backbone: nn.Module, name: str, stride: int) -> None:
    """Undo the halvings of the stem, last first, until its stride is `stride`."""
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
