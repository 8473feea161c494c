"""How many processor cores this process may use, and how many threads compute."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOST_THREADS = 256
"""More threads than this are a mistake, and would take all memory."""
_ROOT = Path("/")


def num_cores(root: Path = _ROOT) -> int:
    """Return how many processor cores this process may use, at least 1.

    Those that the system lets it run on, but no more than the processor time of its container, rounded up. ``root`` is
    the folder that holds ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, container_cores(root))))


def num_threads(root: Path = _ROOT) -> int:
    """Return how many threads compute: what OMP_NUM_THREADS says where that is a number of use, else ``num_cores``."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    known = wanted.isdecimal() and len(wanted) < 6 and 0 < int(wanted) <= MOST_THREADS
    return int(wanted) if known else num_cores(root)


def container_cores(root: Path = _ROOT) -> float:
    """Return the processor time that control groups of Linux allow this process, in cores; infinity without a limit.

    A group's limit holds for all groups inside it, so the lowest of the process's own group and its parents counts.
    """
    groups = _read(root / "proc/self/cgroup").splitlines()
    mounted = root / "sys/fs/cgroup"
    return min((cores for group in groups for cores in _limits(mounted, group)), default=math.inf)


def _limits(mounted: Path, group: str) -> Iterator[float]:
    """Yield limits in cores; ``group`` is a line of ``/proc/self/cgroup``: ``0::/a/b``, or ``4:cpu,cpuacct:/a/b``."""
    controllers, _, place = group.partition(":")[2].partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    inside = PurePosixPath(place.lstrip("/"))
    if ".." in inside.parts:  # a group outside what this process can see
        inside = PurePosixPath()
    for each in (
        inside,
        *inside.parents,
    ):  # a container may see its own group as the root, under its outer name
        if controllers:  # version 1
            folder = mounted / controllers / each
            numbers = [_read(folder / f"cpu.cfs_{what}_us") for what in ("quota", "period")]
        else:
            numbers = [*_read(mounted / each / "cpu.max").split(), "", ""][:2]
        if all(number.isdecimal() and int(number) for number in numbers):  # not "max", -1 or no file
            yield int(numbers[0]) / int(numbers[1])


def _read(file: Path) -> str:
    """Return the text of a file, "" where it can't be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
