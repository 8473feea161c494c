"""When the state of a run is saved, and where in an epoch it stands."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hierclass.errors import InputError
from training.trainer.interrupts import Interrupts
from training.trainer.trainer import Trainer


@dataclasses.dataclass
class TrainingProgress:
    """Where a run stands: whole epochs done, and what is done of the next.

    ``loss`` () is the sum of the losses of the ``images`` trained on in this epoch, by this process;
    ``seconds`` are those of whole epochs, ``spent`` those of this one; ``rate`` (images per second) and ``waiting``
    (share of the time) were measured last.
    """

    loss: Tensor
    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    rate: float = 0.0
    waiting: float = 0.0
    best: dict[str, Any] | None = None

    @property
    def mean(self) -> float:
        """Mean loss of the images of this epoch, of this process's share."""
        return float(self.loss) / max(self.images, 1)

    def end_epoch(self, seconds: float) -> None:
        """Count an epoch as done."""
        self.loss.zero_()
        self.epoch, self.step, self.images, self.spent = self.epoch + 1, 0, 0, 0.0
        self.seconds += seconds

    @classmethod
    def from_json(cls, values: dict[str, Any], device: torch.device, *, main: bool) -> TrainingProgress:
        """What `Saver.save` stored, which the main process goes on from; the others have part in the sums no more."""
        names = {field.name for field in dataclasses.fields(cls)} - {"loss"}
        found = {
            name: values[name] for name in names if name in values
        }  # versions before had whole epochs alone
        progress = cls(torch.tensor(values.get("loss", 0.0) if main else 0.0, device=device), **found)
        progress.images = progress.images if main else 0
        return progress


class TimeUp(Exception):  # noqa: N818 - nothing went wrong
    """The time that a run was given is over; its state is saved."""


class Autosave:
    """Saves a run every so many minutes, and when it is told to stop."""

    def __init__(
        self,
        trainer: Trainer,
        state: Path,
        progress: TrainingProgress,
        interrupts: Interrupts,
        *,
        minutes: float,
        deadline: float = math.inf,
    ) -> None:
        """Save to the file ``state``; with 0 minutes only when an epoch or the run ends.

        ``deadline`` is a time of the monotonic clock at which the run is to end.
        """
        self.trainer, self.state, self.progress, self.interrupts = trainer, state, progress, interrupts
        self.deadline = deadline
        self.minutes, self.saved = minutes, time.monotonic()
        self.started = self.saved
        # All processes have to agree, for which an accelerator has to catch up.
        self._every = 1 if trainer.accelerator.device.type == "cpu" else 10

    def begin_epoch(self) -> None:
        """Hear that time is spent on an epoch from now on."""
        self.started = time.monotonic() - self.progress.spent

    def spent(self) -> float:
        """Seconds spent on this epoch, by an earlier part of the run too."""
        return time.monotonic() - self.started

    def after_update(self) -> None:
        """Save if it is time; if the run is to stop, save and raise `KeyboardInterrupt`, or `TimeUp` by the clock."""
        now = time.monotonic()
        due = self.minutes > 0 and now - self.saved >= 60 * self.minutes
        due, stop, late = self._agree(due, self.interrupts.asked, now >= self.deadline)
        if due or stop or late:
            self.save()
        if stop:
            raise KeyboardInterrupt
        if late:
            raise TimeUp

    def check_loss(self, mean: float) -> float:
        """The mean loss of an epoch so far; raises `InputError` if it is not a number."""
        if not math.isfinite(mean):
            raise InputError(f"the loss is not a number in epoch {self.progress.epoch + 1}; lower `lr`")
        return mean

    def totals(self) -> tuple[float, int]:
        """Sum of the losses and number of the images of this epoch, of all processes together."""
        progress = self.progress
        if self.trainer.accelerator.num_processes == 1:
            return float(progress.loss), progress.images
        pair = torch.stack([progress.loss, progress.loss.new_tensor(progress.images)])
        loss, images = self.trainer.accelerator.reduce(pair, "sum").tolist()
        return loss, int(images)

    def save(self) -> None:
        """Write the state; every process calls it, the main one writes."""
        loss, images = self.totals()
        self.check_loss(loss)  # what is saved can be continued
        self.write(loss, images)
        self.trainer.accelerator.wait_for_everyone()

    def write(self, loss: float, images: int) -> None:
        """Write the state, with the sums over all processes, from the main process; the others do nothing."""
        self.saved = time.monotonic()
        if not self.trainer.accelerator.is_main_process:
            return
        progress = self.progress
        values = {
            field.name: getattr(progress, field.name)
            for field in dataclasses.fields(progress)
            if field.name != "loss"
        }
        spent = self.spent() if progress.step else 0.0
        self.trainer.save(self.state, {**values, "loss": loss, "images": images, "spent": spent})

    def _agree(self, *wishes: bool) -> list[bool]:
        """Whether any process wants it, for each of some wishes."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return list(wishes)
        if self.progress.step % self._every:
            return [False] * len(wishes)
        summed = torch.tensor(wishes, dtype=torch.float32, device=accelerator.device)
        return [wish > 0 for wish in accelerator.reduce(summed, "sum").tolist()]
