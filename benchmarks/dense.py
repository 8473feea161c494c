"""The dense network that a nested one was cut from, untrained: what others would run in its place."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hierclass.checkpoints.checkpoint import Checkpoint
from hierclass.checkpoints.description import WEIGHT_SOURCES
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import NestedNetwork, create_backbone, nest


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


class NormalisedDense(nn.Module):
    """The dense network for pixels (B, S, S, 3), 0 … 255."""

    shift: Tensor
    scale: Tensor

    def __init__(self, dense: nn.Module, preprocessing: Preprocessing) -> None:
        """Put the normalisation of images before a network."""
        super().__init__()
        self.dense = dense
        for name, values in (("shift", preprocessing.mean), ("scale", preprocessing.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        found: Tensor = self.dense((images.permute(0, 3, 1, 2).float() - self.shift) / self.scale)
        return found


def export_dense(checkpoint: Checkpoint, file: Path) -> None:
    """Write the dense network as torch exports it: `images` uint8 (B, S, S, 3) to `logits`."""
    network = NormalisedDense(dense_network(checkpoint), checkpoint.preprocessing).eval()
    side = checkpoint.preprocessing.size
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            file,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
