"""One epoch of a run: its updates, what is shown of them, and its line of the history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object

from hierclass.errors import InputError
from training.batches import TrainingBatch
from training.pace import Pace
from training.reports import Reporter
from training.run import Run
from training.saving import Saver


def train_epoch(
    run: Run, stream: Iterator[TrainingBatch], steps: int, saver: Saver, reporter: Reporter
) -> dict[str, Any]:
    """Train what is left of an epoch of so many updates; returns its row of the history.

    In the row, the loss is the mean over the images, the images per second are those of all processes, and the share
    of the time that went into waiting for images is that of the process that waited longest.
    """
    standing, recipe = saver.standing, run.recipe
    epoch, size = standing.epoch, recipe.image_size(standing.epoch)
    pace, errors, mean = Pace(run.accelerator.device), list[str](), standing.mean
    for step in range(standing.step, steps):
        batch = pace.take(stream)
        errors += batch.errors
        if len(batch.images) < recipe.accumulate:
            raise InputError(f"no image of a whole batch could be read: {batch.errors[0]}")
        standing.loss += run.step(batch, epoch=epoch, step=step)
        standing.images += len(batch.images)
        standing.step = step + 1
        pace.images += batch.share.batch
        if step % 10 == 0 or step + 1 == steps:
            mean = saver.check_loss(standing.mean)
            standing.waiting = pace.waiting()
        if pace.images == batch.share.batch and standing.step < steps:
            pace.restart()
        else:
            standing.rate = pace.rate()
        work, rate, waiting = size * size / steps, standing.rate, standing.waiting
        reporter.step(epoch=epoch, step=step, steps=steps, loss=mean, rate=rate, work=work, waiting=waiting)
        saver.after_update()
    _report_unreadable(run, errors, epoch, reporter)
    loss, images = saver.totals()
    return {
        "epoch": epoch + 1,
        "loss": loss / max(images, 1),
        "lr": run.optimizer.param_groups[0]["lr"],
        "size": size,
        "images_per_second": round(standing.rate, 1),
        "data_wait": round(_longest(run, standing.waiting), 4),
    }


def _longest(run: Run, waiting: float) -> float:
    """The largest of the processes' shares of waiting."""
    share = torch.tensor([waiting], device=run.accelerator.device)
    return float(run.accelerator.gather(share).max())


def _report_unreadable(run: Run, errors: list[str], epoch: int, reporter: Reporter) -> None:
    """Say which images no process could read."""
    if run.accelerator.num_processes > 1:
        errors = gather_object(errors)
    reporter.unreadable(errors, f"training images of epoch {epoch + 1}")
