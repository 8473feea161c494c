"""How many cores a process may use: given folders stand for those of Linux."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from hierclass.processors import container_cores, num_cores, num_threads


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Write the folders `proc` and `sys` of a machine."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def v1(folder: str, quota: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{folder}"
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/../other", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (  # a group inside one that allows less
            "0::/a/b",
            {"sys/fs/cgroup/a/cpu.max": "50000 100000", "sys/fs/cgroup/a/b/cpu.max": "400000 100000"},
            0.5,
        ),
        ("4:memory:/\n3:cpu,cpuacct:/box\n0::/", v1("cpu,cpuacct/box", 300_000), 3),
        ("1:cpu:/", v1("cpu", -1), math.inf),
        ("1:cpu:/docker/abc", v1("cpu", 250_000), 2.5),  # the container sees its own group as the root
        ("nonsense", {}, math.inf),
    ],
)
def test_the_processor_time_of_a_container_is_read(
    cgroup: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    assert container_cores(system(tmp_path, cgroup, files)) == cores


def test_the_cores_are_those_that_the_process_may_use_and_at_least_one(
    tmp_path: Path,
) -> None:
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert num_cores(tmp_path / "no Linux") == every
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    system(tmp_path, "0::/", {"sys/fs/cgroup/cpu.max": "1000 100000"})
    assert num_cores(tmp_path) == 1
    quota.write_text("101000 100000\n")
    assert num_cores(tmp_path) == min(every, 2)


@pytest.mark.parametrize(
    ("value", "cores"), [("3", 3), ("5,2", 5), ("0", 1), ("", 1), ("many", 1), ("100000", 1)]
)
def test_omp_num_threads_says_how_many_where_it_is_a_number(
    value: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    one = system(tmp_path, "0::/", {"sys/fs/cgroup/cpu.max": "1000 100000"})
    assert (num_threads(one), num_cores(one)) == (cores, 1)
