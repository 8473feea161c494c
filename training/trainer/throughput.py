"""How fast a run goes, and which share of the time it waits for images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

from hierclass.labelling.read_ahead import num_cores

T = TypeVar("T")
ENOUGH = 0.2
"""Waiting for images more than this share of the time is worth a hint."""


class ThroughputMeter:
    """Counts images and seconds from its first update on, which starts workers and compiles and so is left out.

    On a CUDA device the network runs behind the program: there, only the time in which the device had nothing to do
    counts as waiting, which events on the device tell.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin an epoch on a device."""
        self.cuda = device.type == "cuda"
        self.images, self.started = 0, time.monotonic()
        self.waited = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []

    def take(self, stream: Iterator[T]) -> T:
        """The next of a stream, timed."""
        idle = self._mark()
        started = time.monotonic()
        batch = next(stream)
        waited = time.monotonic() - started
        busy = self._mark()
        if idle is None or busy is None:
            self.waited += waited
        else:
            self._pending.append((idle, busy, waited))
        return batch

    def restart(self) -> None:
        """Forget what was counted so far."""
        self.images, self.started, self.waited = 0, time.monotonic(), 0.0
        self._pending = []

    def rate(self) -> float:
        """Images per second."""
        return self.images / max(time.monotonic() - self.started, 1e-9)

    def waiting(self) -> float:
        """Share of the time spent waiting for images, 0 to 1; waits for a CUDA device to catch up."""
        for idle, busy, waited in self._pending:
            busy.synchronize()
            self.waited += min(waited, idle.elapsed_time(busy) / 1000)
        self._pending = []
        return min(1.0, self.waited / max(time.monotonic() - self.started, 1e-9))

    def _mark(self) -> torch.cuda.Event | None:
        """An event that happens when the device has done all that it was given so far."""
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def automatic_workers(device: torch.device, local_processes: int) -> int:
    """Processes that prepare images where the user gives no number.

    One, where the network itself runs on the processor; else a core each, one per process of the run left free, up to
    16.
    """
    if device.type == "cpu":
        return 1
    return max(1, min(16, num_cores() // local_processes - 1))


def waiting_hint(waiting: float, workers: int, local_processes: int) -> str | None:
    """What may help where an epoch waited for images too long; None where it did not."""
    if waiting <= ENOUGH:
        return None
    what = f"{waiting:.0%} of the time went into waiting for images; "
    if local_processes * (workers + 1) < num_cores():
        return f"{what}raise `workers` (now {workers})"
    return f"{what}all {num_cores()} cores are in use: store smaller images, or augment less"
