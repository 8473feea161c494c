"""A stretch of updates, such as an epoch: trained, shown, and told as a line of the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object

from training.data.sampler import BatchShare
from training.evaluation.console import Reporter
from training.trainer.autosave import Autosave
from training.trainer.throughput import ThroughputMeter
from training.trainer.trainer import Trainer


class BatchLike(Protocol):
    """What one process trains on in one update: as many images as its length, ``errors`` of those left out."""

    @property
    def share(self) -> BatchShare:
        """Which images these are of the whole batch."""

    @property
    def errors(self) -> list[str]:
        """A message per image that could not be read."""

    def __len__(self) -> int: ...


def train_updates(
    trainer: Trainer,
    stream: Iterator[BatchLike],
    steps: int,
    autosave: Autosave,
    reporter: Reporter,
    *,
    where: Callable[[int], str],
    work: float,
) -> tuple[dict[str, Any], list[str]]:
    """Train what is left of so many updates; returns their part of a row of the history, and unreadable images.

    ``where`` says which update it is, by its number in the stretch; ``work`` is what an update counts in the
    reporter's total. In the row, the loss is the mean over the images, the images per second are those of all
    processes, and the share of the time that went into waiting for images is that of the process that waited longest.
    """
    progress = autosave.progress
    meter, errors, mean = ThroughputMeter(trainer.accelerator.device), list[str](), progress.mean
    for step in range(progress.step, steps):
        batch = meter.take(stream)
        errors += batch.errors
        progress.loss += trainer.step(batch, epoch=progress.epoch, step=step)
        progress.images += len(batch)
        progress.step = step + 1
        meter.images += batch.share.batch
        if step % 10 == 0 or step + 1 == steps:
            mean = autosave.check_loss(progress.mean)
            progress.waiting = meter.waiting()
        if meter.images == batch.share.batch and progress.step < steps:
            meter.restart()
        else:
            progress.rate = meter.rate()
        rate, waiting = progress.rate, progress.waiting
        reporter.step(where(step), loss=mean, rate=rate, work=work, waiting=waiting)
        autosave.after_update()
    loss, images = autosave.totals()
    row = {
        "loss": loss / max(images, 1),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "images_per_second": round(progress.rate, 1),
        "data_wait": round(_longest(trainer, progress.waiting), 4),
    }
    return row, gather_object(errors) if trainer.accelerator.num_processes > 1 else errors


def _longest(trainer: Trainer, waiting: float) -> float:
    """The largest of the processes' shares of waiting."""
    share = torch.tensor([waiting], device=trainer.accelerator.device)
    return float(trainer.accelerator.gather(share).max())
