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
    run: Trainer,
    stream: Iterator[BatchLike],
    steps: int,
    saver: Autosave,
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
    standing = saver.standing
    pace, errors, mean = ThroughputMeter(run.accelerator.device), list[str](), standing.mean
    for step in range(standing.step, steps):
        batch = pace.take(stream)
        errors += batch.errors
        standing.loss += run.step(batch, epoch=standing.epoch, step=step)
        standing.images += len(batch)
        standing.step = step + 1
        pace.images += batch.share.batch
        if step % 10 == 0 or step + 1 == steps:
            mean = saver.check_loss(standing.mean)
            standing.waiting = pace.waiting()
        if pace.images == batch.share.batch and standing.step < steps:
            pace.restart()
        else:
            standing.rate = pace.rate()
        rate, waiting = standing.rate, standing.waiting
        reporter.step(where(step), loss=mean, rate=rate, work=work, waiting=waiting)
        saver.after_update()
    loss, images = saver.totals()
    row = {
        "loss": loss / max(images, 1),
        "lr": run.optimizer.param_groups[0]["lr"],
        "images_per_second": round(standing.rate, 1),
        "data_wait": round(_longest(run, standing.waiting), 4),
    }
    return row, gather_object(errors) if run.accelerator.num_processes > 1 else errors


def _longest(run: Trainer, waiting: float) -> float:
    """The largest of the processes' shares of waiting."""
    share = torch.tensor([waiting], device=run.accelerator.device)
    return float(run.accelerator.gather(share).max())
