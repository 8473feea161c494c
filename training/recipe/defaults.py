"""Default network and schedule of a run, chosen from the data by fixed rules (docs/training.md), each with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

TINY, SMALL = 48, 96
"""Largest shorter sides in pixels of tiny and of small images; larger ones are photographs."""
MANY = 2000
"""Images from which on all of a model's network is trained, with an accelerator."""


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Number of images, typical shorter side in pixels, and whether there is an accelerator."""

    num_images: int
    side: int
    accelerator: bool


@dataclasses.dataclass(frozen=True, slots=True)
class DefaultChoice:
    """Values for some options, and the reason in a few words."""

    values: Mapping[str, Any]
    why: str


def choose_tune(facts: DatasetFacts) -> DefaultChoice:
    """What is trained of a model's network: all with an accelerator and `MANY` images, else heads alone."""
    if not facts.accelerator:
        return DefaultChoice({"tune": "heads"}, "on a processor")
    if facts.num_images < MANY:
        return DefaultChoice({"tune": "heads"}, f"{facts.num_images} images are few")
    return DefaultChoice({"tune": "all"}, f"on an accelerator, with {facts.num_images} images")


def choose_network(facts: DatasetFacts) -> DefaultChoice:
    """Backbone, stem and pixels per side, by the size of the images and the machine.

    | shorter side | with an accelerator | on a processor |
    | up to 48 | resnet18, stem stride 1, 32 px | resnet18, stem stride 2, 32 px |
    | up to 96 | resnet18, stem stride 2, 64 px | resnet18, 64 px |
    | above | resnet50, 224 px | resnet18, 128 px |
    """
    where = "an accelerator" if facts.accelerator else "a processor"
    kind = "tiny" if facts.side <= TINY else "small" if facts.side <= SMALL else "photographs"
    why = f"images are {kind} (shorter side about {facts.side} px), on {where}"
    if kind == "tiny":
        stride = 1 if facts.accelerator else 2
        return DefaultChoice({"backbone": "resnet18", "stem_stride": stride, "size": 32}, why)
    if kind == "small":
        return DefaultChoice(
            {"backbone": "resnet18", "stem_stride": 2 if facts.accelerator else None, "size": 64}, why
        )
    if facts.accelerator:
        return DefaultChoice({"backbone": "resnet50", "stem_stride": None, "size": 224}, why)
    return DefaultChoice({"backbone": "resnet18", "stem_stride": None, "size": 128}, why)


def choose_schedule(num_images: int, *, pretrained: bool, batch_size: int | None = None) -> DefaultChoice:
    """Choose epochs, batch size and learning rate by the number of images.

    The batch size is the power of two below a sixteenth of the images, 16 to 128. Epochs are 30 · √(50,000 / images),
    15 to 100; from pretrained weights a third, at least 10. The learning rate is 0.1 · batch size / 128 (Goyal et al.
    2017, arXiv 1706.02677); from pretrained weights three tenths of that.
    """
    if batch_size is None:
        batch_size = min(max(1 << (max(num_images // 16, 1).bit_length() - 1), 16), 128)
    epochs = min(max(round(30 * (50_000 / num_images) ** 0.5), 15), 100)
    rate = 0.1 * batch_size / 128
    if pretrained:
        epochs, rate = max(round(epochs / 3), 10), 0.3 * rate
    start = "pretrained weights" if pretrained else "from scratch"
    values = {"epochs": epochs, "batch_size": batch_size, "lr": round(rate, 6)}
    return DefaultChoice(values, f"{num_images} images, {start}")


def choose_tuning(num_images: int, *, batch_size: int | None = None) -> DefaultChoice:
    """Choose the schedule for training all of a model's network: AdamW, held norm statistics, few epochs.

    Epochs are 13 up to 2,000 images and fall with the square root of their number, to 5. On two sets of 790 and 900
    photographs AdamW was 1 and 3 points better than SGD at 0.003 with norms that normalise by the batch.
    """
    found = choose_schedule(num_images, pretrained=True, batch_size=batch_size)
    epochs = min(max(round(13 * (2_000 / num_images) ** 0.5), 5), 13)
    values = {
        "epochs": epochs,
        "batch_size": found.values["batch_size"],
        "opt": "adamw",
        "lr": 0.0001,
        "weight_decay": 0.05,
        "statistics": "pretrained",
    }
    return DefaultChoice(values, f"{num_images} images, all of a pretrained network")
