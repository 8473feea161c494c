"""The teacher: a timm classifier with a file of weights, or the last level of a model folder."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, make_backbone
from hierclass.checkpoints.description import stored_fields, without_weight_sources
from hierclass.errors import BackboneError, InputError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import create_backbone
from hierclass.nested.backbone import reason
from hierclass.timm_models.pretrained_classifier import (
    create_classifier,
    find_cached_weights,
    find_published,
    match_leaves,
    match_outputs,
    read_preprocessing,
)
from taxonomy import Taxonomy, load_taxonomy


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A backbone, (B, 3, S, S) → (B, F), and one linear layer whose outputs are the leaves of a taxonomy.

    ``name``, ``backbone_args`` and ``stem_stride`` are the arguments with which timm makes the backbone.
    """

    name: str
    backbone: nn.Module
    head: nn.Linear
    taxonomy: Taxonomy
    preprocessing: Preprocessing
    backbone_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    stem_stride: int | None = None

    @property
    def classifier(self) -> nn.Module:
        """Normalised images (B, 3, S, S) → logits of the leaves (B, leaves)."""
        return nn.Sequential(self.backbone, self.head).eval()

    @property
    def digest(self) -> str:
        """SHA-256 sum of weights, classes and preprocessing."""
        texts = [self.name, stored_fields(self.preprocessing), self.taxonomy.to_dict()]
        found = hashlib.sha256(json.dumps(texts).encode())
        for name, value in self.classifier.state_dict().items():
            found.update(f"{name} {tuple(value.shape)}".encode())
            found.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def at_side(self, side: int) -> Teacher:
        """The same teacher for another image side in pixels."""
        return dataclasses.replace(self, preprocessing=dataclasses.replace(self.preprocessing, size=side))


def timm_teacher(
    name: str, *, weights: Path | None, taxonomy: Taxonomy | str | None, classes: Path | None = None
) -> Teacher:
    """Load a timm classifier; None takes timm's weights from the local cache and the taxonomy of ImageNet-1k.

    ``classes`` is a text file that names each output, one per line; without it the outputs are ImageNet's classes.
    Raises as `hierclass.from_timm`, and `BackboneError` for a classifier that is not a backbone and one linear layer.
    """
    published = find_published(name)
    labels = None if classes is None else _read_classes(classes)
    count = published.num_classes if labels is None else len(labels)
    tree, outputs = match_outputs(name, count, taxonomy, labels)
    file = find_cached_weights(name, published) if weights is None else weights
    model = create_classifier(name, file, None if labels is None else count)
    layer = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if type(layer) is not nn.Linear:
        raise BackboneError(
            f"the classifier of {name} is more than one linear layer, which can't be nested; take another model"
        )
    backbone = _fill(create_backbone(name), model, name)
    head = _rows(layer, outputs)
    preprocessing = read_preprocessing(name, model)
    teacher = Teacher(name, backbone, head, tree, preprocessing)
    _check_same(teacher, model, outputs)
    return teacher


def model_teacher(path: Path, taxonomy: Taxonomy | str | None) -> Teacher:
    """Load the last level of a model folder; ``taxonomy`` None takes the model's own.

    Raises `CheckpointError` for the model, and `BackboneError` if its last level is no plain timm network.
    """
    checkpoint = load_checkpoint(path)
    network, own = checkpoint.network, checkpoint.taxonomy
    last = network.num_levels - 1
    head: Any = network.heads[last]
    if type(head) is not nn.Linear or checkpoint.architecture.levels is not None:
        raise BackboneError(
            f"{path} was compressed and lacks the level that knows the leaves; give the whole model"
        )
    labels = list(own.leaves)
    tree = own if taxonomy is None else taxonomy
    tree = tree if isinstance(tree, Taxonomy) else load_taxonomy(tree)
    outputs = match_leaves(tree, labels, str(path), "leaves of its own tree")
    architecture = checkpoint.architecture
    backbone = make_backbone(without_weight_sources(architecture))
    _fill(backbone, _plain(checkpoint, path), f"the last level of {path}")
    return Teacher(
        architecture.backbone,
        backbone,
        _rows(head, outputs),
        tree,
        checkpoint.preprocessing,
        architecture.backbone_args,
        architecture.stem_stride,
    )


def _plain(checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The last level as an ordinary timm model."""
    network = checkpoint.network
    extracted = network.extract(network.num_levels - 1)
    if isinstance(extracted, type(network)):
        raise BackboneError(
            f"{path} is of structure {network.structure}, whose last level is no plain timm network; give a model of "
            "structure prefix, depths or masks, or `timm`"
        )
    first = extracted[0] if isinstance(extracted, nn.Sequential) else extracted
    assert isinstance(first, nn.Module)
    return first


def _read_classes(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"`classes` {file} can't be read: {what}") from error
    labels = [line.strip() for line in lines if line.strip()]
    if len(set(labels)) < max(len(labels), 2):
        raise InputError(f"`classes` {file}: give a line per output of the classifier, each another name")
    return labels


def _fill(backbone: nn.Module, model: nn.Module, what: str) -> nn.Module:
    """Load the weights of a whole classifier into a backbone, without those of the last layer."""
    found, own = model.state_dict(), backbone.state_dict()
    try:
        backbone.load_state_dict({key: value for key, value in found.items() if key in own})
    except RuntimeError as error:
        raise BackboneError(f"{what} can't be taken as a backbone: {reason(error)}") from error
    return backbone.eval().requires_grad_(False)


def _rows(layer: nn.Linear, outputs: list[int]) -> nn.Linear:
    """A linear layer of the given outputs of another layer, in that order."""
    head = nn.Linear(layer.in_features, len(outputs))
    with torch.no_grad():
        head.weight.copy_(layer.weight[outputs])
        head.bias.zero_() if layer.bias is None else head.bias.copy_(layer.bias[outputs])
    return head.requires_grad_(False)


@torch.no_grad()
def _check_same(teacher: Teacher, model: nn.Module, outputs: list[int]) -> None:
    """Raise `BackboneError` if a timm model is not its backbone followed by its last layer."""
    side = teacher.preprocessing.size
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        theirs, ours = copy.deepcopy(model).eval()(image), teacher.classifier(image)
        same = torch.allclose(theirs[:, outputs], ours, rtol=1e-3, atol=1e-3)
    except Exception as error:  # whatever a network of timm raises
        raise BackboneError(
            f"{teacher.name} does not run on images of {side} pixels: {reason(error)}"
        ) from error
    if not same:
        raise BackboneError(
            f"the classifier of {teacher.name} is more than one linear layer, which can't be nested; take another model"
        )
