"""Save the state of a run periodically and when it is stopped."""

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
    """Progress of a run: whole epochs done, and what is done of the current one.

    ``loss`` () is this process's sum of losses over ``images`` in this epoch; ``seconds`` is the time of whole epochs,
    ``spent`` that of this one; ``rate`` (images per second) and ``waiting`` (share of the time) are the last
    measurements.
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
        """Mean loss in this epoch over this process's images."""
        return float(self.loss) / max(self.images, 1)

    def end_epoch(self, seconds: float) -> None:
        """Count an epoch as done."""
        self.loss.zero_()
        self.epoch, self.step, self.images, self.spent = self.epoch + 1, 0, 0, 0.0
        self.seconds += seconds

    @classmethod
    def from_json(cls, values: dict[str, Any], device: torch.device, *, main: bool) -> TrainingProgress:
        """Read what `Autosave.write` stored; sums over all processes go to the main process alone."""
        names = {field.name for field in dataclasses.fields(cls)} - {"loss"}
        found = {
            name: values[name] for name in names if name in values
        }  # versions before had whole epochs alone
        progress = cls(torch.tensor(values.get("loss", 0.0) if main else 0.0, device=device), **found)
        progress.images = progress.images if main else 0
        return progress


class TimeUp(Exception):  # noqa: N818 - nothing went wrong
    """The deadline of a run has passed; its state is saved."""


class Autosave:
    """Saves a run every N minutes and when it is told to stop."""

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
        """Save to the file ``state`` every ``minutes`` (0: only at the end of epochs and of the run).

        ``deadline`` (monotonic clock) ends the run.
        """
        self.trainer, self.state, self.progress, self.interrupts = trainer, state, progress, interrupts
        self.deadline = deadline
        self.minutes, self.saved = minutes, time.monotonic()
        self.started = self.saved
        # All processes have to agree, for which an accelerator has to catch up.
        self._every = 1 if trainer.accelerator.device.type == "cpu" else 10

    def begin_epoch(self) -> None:
        """Start the clock of an epoch."""
        self.started = time.monotonic() - self.progress.spent

    def spent(self) -> float:
        """Seconds spent on this epoch, including earlier starts."""
        return time.monotonic() - self.started

    def after_update(self) -> None:
        """Save if it is due; if the run is to stop, save and raise `KeyboardInterrupt`, or `TimeUp` at the deadline."""
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
        """Return a mean loss; raises `InputError` if it is not finite."""
        if not math.isfinite(mean):
            raise InputError(f"the loss is not a number in epoch {self.progress.epoch + 1}; lower `lr`")
        return mean

    def totals(self) -> tuple[float, int]:
        """Sum of losses and number of images in this epoch over all processes."""
        progress = self.progress
        if self.trainer.accelerator.num_processes == 1:
            return float(progress.loss), progress.images
        pair = torch.stack([progress.loss, progress.loss.new_tensor(progress.images)])
        loss, images = self.trainer.accelerator.reduce(pair, "sum").tolist()
        return loss, int(images)

    def save(self) -> None:
        """Write the state; must be called by every process, the main one writes."""
        loss, images = self.totals()
        self.check_loss(loss)  # what is saved can be continued
        self.write(loss, images)
        self.trainer.accelerator.wait_for_everyone()

    def write(self, loss: float, images: int) -> None:
        """Write the state with sums over all processes; only the main process does anything."""
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
        """For each flag, whether it is set in any process."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return list(wishes)
        if self.progress.step % self._every:
            return [False] * len(wishes)
        summed = torch.tensor(wishes, dtype=torch.float32, device=accelerator.device)
        return [wish > 0 for wish in accelerator.reduce(summed, "sum").tolist()]
