"""Measure images per second, and the share of the time spent waiting for images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

from hierclass.processors import num_cores

T = TypeVar("T")
ENOUGH = 0.2
"""Share of the time spent waiting from which a hint is printed."""


class ThroughputMeter:
    """Counts images and seconds, without the first update, which starts workers and compiles.

    On a CUDA device, which runs behind the program, only the device's idle time counts as waiting (measured by events).
    """

    def __init__(self, device: torch.device) -> None:
        """Start measuring on a device."""
        self.cuda = device.type == "cuda"
        self.images, self.started = 0, time.monotonic()
        self.waited = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []

    def take(self, stream: Iterator[T]) -> T:
        """Return the next item of a stream and measure the wait."""
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
        """Reset the counts."""
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
        """An event that happens when the device has finished all work so far; None without CUDA."""
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def automatic_workers(device: torch.device, local_processes: int) -> int:
    """Default number of processes that prepare images.

    1 if the network runs on the processor; else the cores per process of the run less one, up to 16.
    """
    if device.type == "cpu":
        return 1
    return max(1, min(16, num_cores() // local_processes - 1))


def waiting_hint(waiting: float, workers: int, local_processes: int) -> str | None:
    """Advice if an epoch waited for images too long, else None."""
    if waiting <= ENOUGH:
        return None
    what = f"{waiting:.0%} of the time went into waiting for images; "
    if local_processes * (workers + 1) < num_cores():
        return f"{what}raise `workers` (now {workers})"
    return f"{what}all {num_cores()} cores are in use: store smaller images, or augment less"
