"""A sequence of updates, such as an epoch: train, report and measure."""

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
    """One process's images of one update; its length is the number of readable ones."""

    @property
    def share(self) -> BatchShare:
        """Which images of the whole batch these are."""

    @property
    def errors(self) -> list[str]:
        """One message per unreadable image."""

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
    """Train up to update ``steps`` of a sequence; return its row of the history and messages of unreadable images.

    ``where`` names an update by its number; ``work`` is the work of one for the reporter. The row has the mean loss,
    images per second over all processes, and the share of the time that the slowest process waited for images.
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
    """The largest share of waiting of all processes."""
    share = torch.tensor([waiting], device=trainer.accelerator.device)
    return float(trainer.accelerator.gather(share).max())
