"""The dense network that a nested one was cut from, untrained: what others would run in its place."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hierclass.checkpoints.checkpoint import Checkpoint
from hierclass.checkpoints.description import WEIGHT_SOURCES
from hierclass.nested import NestedNetwork, create_backbone, nest
from training.distillation.teacher_runtime import PixelClassifier, export_classifier


def dense_network(checkpoint: Checkpoint) -> nn.Sequential:
    """Return the timm backbone with a classifier of the last level's classes."""
    network, architecture = checkpoint.network, checkpoint.architecture
    arguments = {key: value for key, value in architecture.backbone_args.items() if key not in WEIGHT_SOURCES}
    backbone = create_backbone(architecture.backbone, stem_stride=architecture.stem_stride, **arguments)
    return nn.Sequential(backbone, nn.Linear(network.num_features[-1], network.num_classes[-1]))


def dense_level(checkpoint: Checkpoint) -> NestedNetwork:
    """Return it as a network of one level that is all of it: its norms can be folded as those of levels are."""
    backbone, _ = dense_network(checkpoint)
    classes, size = checkpoint.network.num_classes[-1:], checkpoint.network.input_size
    return nest(backbone, structure="prefix", widths=(1.0,), num_classes=classes, input_size=size)


def export_dense(checkpoint: Checkpoint, file: Path) -> None:
    """Write the dense network as torch exports it: `images` uint8 (B, S, S, 3) to `logits`."""
    network = PixelClassifier(dense_network(checkpoint), checkpoint.preprocessing).eval()
    file.write_bytes(export_classifier(network, checkpoint.preprocessing.size))
