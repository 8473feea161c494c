"""How long fitting heads, or training all of a network, will take on this machine: tried on a few images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hierclass.errors import ImageError
from hierclass.images.preprocessing import read_square
from hierclass.processors import num_cores
from hierclass.runtime.choice import open_model
from training.data.datasets import Source
from training.heads.features import level_features

TRIED = 8
"""Images that are tried."""


def seconds_for_features(
    model: Path, sample: Sequence[Source], count: int, threads: int | None = None
) -> float:
    """Seconds that the features of ``count`` images like those of a sample will take, by all levels of a model."""
    description, runtime = open_model(model, threads=threads)
    size = description.preprocessing.size
    started, read = time.monotonic(), 0
    for source in sample[:TRIED]:
        with contextlib.suppress(ImageError):
            read_square(source, description.preprocessing)
            read += 1
    reading = (time.monotonic() - started) / max(read, 1) / num_cores()
    runtime.enter_thread()
    pixels = np.zeros((TRIED, size, size, 3), np.uint8)
    level_features(runtime, pixels)  # opens sessions
    started = time.monotonic()
    level_features(runtime, pixels)
    return count * max(reading, (time.monotonic() - started) / TRIED)


def seconds_for_training(model: Path, images: float, batch_size: int) -> float:
    """Seconds that training a model's network on so many images, epochs counted, will take on this machine's device."""
    import torch

    from hierclass.checkpoints.checkpoint import load_checkpoint
    from training.trainer.processes import make_accelerator

    device = make_accelerator("no").device
    checkpoint = load_checkpoint(model)
    network, size = checkpoint.network.to(device).train(), checkpoint.preprocessing.size
    batch = torch.zeros(min(batch_size, TRIED if device.type == "cpu" else 64), 3, size, size, device=device)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for _ in range(2):  # the first one opens what is needed
        started = time.monotonic()
        loss = torch.stack([logits.float().mean() for logits in network.forward_all(batch)]).sum()
        torch.autograd.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return images * (time.monotonic() - started) / len(batch)
