"""Load a timm classifier with the weights of a file, and match its outputs with the leaves of a tree.

Weights come from timm's local cache or from a file; nothing is downloaded, and nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import PretrainedCfg, load_state_dict
from torch import nn

from hierclass.checkpoints.description import INTERPOLATIONS
from hierclass.checkpoints.weights_header import check_archive, read_header
from hierclass.errors import BackboneError, CheckpointError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested.backbone import reason
from hierclass.timm_models import TAXONOMY
from hierclass.timm_models.weight_files import find_cached
from taxonomy import Taxonomy, TaxonomyError, load_taxonomy
from taxonomy.labels import key

SEED = 0x68696572
"""Seed of the weights before loading; equal weights afterwards were not in the file."""


def find_published(name: str) -> PretrainedCfg:
    """Return timm's configuration of a model and its published weights.

    Raises:
        BackboneError: timm has no such model.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f", but {', '.join(close)}" if close else "; timm.list_models() lists them all"
        raise BackboneError(f"timm has no model called {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        known = ", ".join(timm.list_models(f"{name.split('.')[0]}.*", pretrained=True))
        raise BackboneError(f"timm has no model called {name!r}, but {known}") from error


def match_outputs(
    name: str,
    num_outputs: int,
    taxonomy: Taxonomy | str | os.PathLike[str] | None,
    labels: Sequence[str] | None = None,
) -> tuple[Taxonomy, list[int]]:
    """Return the tree, and for every leaf the index of the classifier's output that stands for it.

    `labels` are the names of the outputs; None: the synset ids of the ImageNet of that size.

    Raises:
        BackboneError: it is no classifier that the tree fits.
        TaxonomyError: a leaf has no output, or there is no such taxonomy.
    """
    subset = infer_imagenet_subset({"num_classes": num_outputs})
    if labels is None and (subset is None or (taxonomy is None and subset != TAXONOMY)):
        kind = f"{num_outputs:,} outputs" if num_outputs else "no classifier"
        own = " (from Python, taxonomy= takes a tree of its own classes)" if subset else ""
        raise BackboneError(
            f"{name} has {kind}; a timm model must have the 1,000 classes of ImageNet-1k here{own}"
        )
    if not isinstance(taxonomy, Taxonomy):
        taxonomy = load_taxonomy(TAXONOMY if taxonomy is None else taxonomy)
    if labels is None:
        assert subset is not None
        known = ImageNetInfo(subset).label_names()
        return taxonomy, match_leaves(taxonomy, known, f"{name} ({subset})", "synset ids among its classes")
    return taxonomy, match_leaves(taxonomy, labels, name, "leaves by the names of its classes")


def match_leaves(taxonomy: Taxonomy, labels: Sequence[str], whose: str, what: str) -> list[int]:
    """Return for every leaf of a tree the index of the label that is its id or reads like its name.

    Raises:
        TaxonomyError: a leaf has no label; the message says `whose` classes the labels are and `what` to give.
    """
    exact = {label: index for index, label in enumerate(labels)}
    read: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        read.setdefault(key(label), []).append(index)
    found = []
    for leaf in taxonomy.leaves:
        named = read.get(key(taxonomy.node(leaf).name), [])
        found.append(exact.get(leaf, named[0] if len(named) == 1 else -1))
    foreign = [leaf for leaf, index in zip(taxonomy.leaves, found, strict=True) if index < 0]
    if foreign:
        raise TaxonomyError(
            f"{len(foreign):,} leaves of taxonomy {taxonomy.name!r} are no classes of {whose}, "
            f"the first is {foreign[0]!r}; give {what}"
        )
    return found


def find_cached_weights(name: str, published: PretrainedCfg) -> Path:
    """Return the file of timm's own weights in its cache.

    Raises:
        CheckpointError: timm has not downloaded it, or publishes none.
    """
    found = find_cached(published)
    if found is not None:
        return found
    if not published.has_weights:
        raise CheckpointError(
            f"timm publishes no weights of {name}; give a file (weights=FILE, --weights FILE)"
        )
    raise CheckpointError(
        f"the weights of {name} are not in the local cache, and hierclass downloads nothing; give their file "
        "(weights=FILE, --weights FILE), or let timm fetch them once: "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
    )


def create_classifier(name: str, file: Path, num_classes: int | None = None) -> nn.Module:
    """Create a timm model with all its weights from a file; `num_classes` None takes timm's own number.

    If the tensors have other names but timm's order, kinds and shapes, as in files of other libraries, they are
    loaded in that order.

    Raises:
        CheckpointError: the weights are missing, damaged or another model's.
    """
    tensors = _tensor_names(file)
    try:
        model = _load_by_name(name, file, tensors, num_classes)
    except CheckpointError:
        by_order = _load_in_order(name, file, num_classes)
        if by_order is None:
            raise
        model = by_order
    # never trained here; counting costs stumbles over some that are
    return _check_finite(model, file).eval().requires_grad_(False)


def _load_by_name(name: str, file: Path, tensors: set[str], num_classes: int | None) -> nn.Module:
    overlay: dict[str, object] = {"file": str(file), "custom_load": False}
    if num_classes is not None:
        overlay["num_classes"] = num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            model: nn.Module = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes
            )
        except Exception as error:  # a model's own converter of weights may stumble in any way over others
            raise CheckpointError(f"timm can't load {file} into {name}: {reason(error)}") from error
    if not _names(model) <= tensors and (missing := _untouched(name, model, num_classes)):
        raise CheckpointError(
            f"{file} has no values for {len(missing)} weights of {name}, the first is {missing[0]}; "
            "is it another model's?"
        )
    return model


def _load_in_order(name: str, file: Path, num_classes: int | None) -> nn.Module | None:
    """Create a model and load the tensors in their order; None if a kind or shape differs from timm's."""
    try:
        tensors = load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception:  # what the parser of a file meets that `_tensor_names` let pass
        return None
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    own = model.state_dict()
    if len(own) != len(tensors):
        return None
    for (ours, value), (theirs, other) in zip(own.items(), tensors.items(), strict=True):
        same_kind = ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        if not same_kind or not isinstance(other, torch.Tensor) or value.shape != other.shape:
            return None
    model.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return model


def _tensor_names(file: Path) -> set[str]:
    """Return the names of the tensors in a file of weights without reading them; refuse anything but data."""
    if not file.is_file():
        raise CheckpointError(f"there is no file of weights at {file}")
    if file.suffix == ".safetensors":
        try:
            return set(read_header(file).tensors)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error
    try:
        check_archive(file)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of timm's own training
            content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # what the parser of a damaged file meets
        raise CheckpointError(
            f"{file} is damaged, or holds more than weights, which is refused since it could run code; "
            "give a state_dict saved as .safetensors or .pth"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no weights; give a state_dict saved as .safetensors or .pth")
    _check_room(content, file)
    return {name for name in content if isinstance(name, str)}


def _check_room(content: Any, file: Path, depth: int = 4) -> None:
    """Refuse tensors that are larger than their file: one number can be made to look like any number of them."""
    size, items = file.stat().st_size, content.values() if isinstance(content, dict) else content
    for item in items:
        if isinstance(item, torch.Tensor) and item.numel() * item.element_size() > size:
            raise CheckpointError(f"{file} is damaged: it holds a tensor that is larger than the file")
        if isinstance(item, (dict, list, tuple)) and depth:
            _check_room(item, file, depth - 1)


def _check_finite(model: nn.Module, file: Path) -> nn.Module:
    """Refuse weights that are infinite or no numbers."""
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{file} is damaged: {name} holds values that are no finite numbers")
    return model


def _names(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}


def _untouched(name: str, model: nn.Module, num_classes: int | None) -> list[str]:
    """Return the weights that loading did not set: those that the same seed makes again.

    timm does not require every weight for every model (DLA, say), and would use them untrained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fresh = dict(timm.create_model(name, pretrained=False, num_classes=num_classes).named_parameters())
    return [
        key
        for key, value in model.named_parameters()
        if value.ndim > 1 and torch.equal(value, fresh[key]) and bool(value.min() < value.max())
    ]


def read_preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """Return timm's preprocessing of a model for tests, with the centre square.

    Raises:
        BackboneError: the model does not take square RGB images.
    """
    fixed = bool(getattr(model, "pretrained_cfg", {}).get("fixed_input_size"))
    config = resolve_model_data_config(model, use_test_size=not fixed)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"{name} reads images of {channels} x {height} x {width}; here they must be 3 x S x S"
        )
    interpolation = config["interpolation"]
    return Preprocessing(
        size=int(height),
        crop=min(float(config["crop_pct"]), 1.0),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
