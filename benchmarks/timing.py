"""What several benchmarks share: calls timed in shuffled rounds, busy neighbours, and what the machine is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from hierclass.processors import num_cores

SAMPLE_SECONDS = 0.05
"""A sample repeats its call until it takes about this long, so that the clock's grain does not matter."""
_REST = 0.01
"""Seconds before each sample: torch's threads wait busily for a while after the last call."""

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


def seconds_per_call(call: Call, repeats: int, wait: Call) -> float:
    """Mean time of `repeats` calls in a row, the device's queue drained before and after."""
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def measure_rounds(
    calls: Mapping[Key, Call], rounds: int, wait: Call, seed: int = 0
) -> dict[Key, list[float]]:
    """Time every call once per round, interleaved; return seconds per call, one value per round."""
    repeats = {}
    for name, call in calls.items():
        seconds_per_call(call, 3, wait)  # warm-up
        once = seconds_per_call(call, 3, wait)
        repeats[name] = max(1, round(SAMPLE_SECONDS / once))
    order = list(calls)
    shuffler = random.Random(seed)
    samples: dict[Key, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            time.sleep(_REST)
            samples[name].append(seconds_per_call(calls[name], repeats[name], wait))
    return samples


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Keep so many processes beside this one that each use a core all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def describe_machine(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """What the figures were measured on; `threads` are those that a call uses, None: one per core."""
    return {
        "device": _gpu_name(device) if device.startswith("cuda") else processor_name(),
        "cores": os.cpu_count(),
        "threads": threads or num_cores(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "timm", "onnxruntime")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def wide_console() -> Console:
    """Return a console that gives wide tables room where no terminal's width sets a limit."""
    return Console() if sys.stdout.isatty() else Console(width=130)


def _gpu_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Name of the processor as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
