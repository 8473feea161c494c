"""Images are read in processes; one that ends costs the image that it read and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from labelling_data import make_photos

from hierclass.images.preprocessing import Preprocessing
from hierclass.labelling import read_ahead as readers
from hierclass.labelling import reader_pipes as processes
from hierclass.labelling.inputs import Input, list_inputs
from hierclass.labelling.read_ahead import read_ahead
from hierclass.labelling.read_input import ReadOptions, ReadResult

WHAT = Preprocessing(32)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(readers, "_MANY", 10)
    with processes.kept_ready(0):  # every test starts its own
        yield


def read(photos: Path, **how: int | bool) -> list[ReadResult]:
    inputs = enumerate(list_inputs([photos]))
    return [found for _, _, found in read_ahead(inputs, WHAT, ReadOptions(batch_size=4, **how))]


def children() -> set[int]:
    """Processes that read for this one."""
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {
        int(line.split()[0]) for line in found.stdout.splitlines() if "labelling.reader_processes" in line
    }


def test_processes_read_what_threads_read_and_end_with_the_rows(photos: Path) -> None:
    ours, theirs = read(photos, workers=2, processes=True), read(photos, workers=2)
    assert len(ours) == 20
    for one, other in zip(ours, theirs, strict=True):
        assert one.stamp == other.stamp
        if isinstance(one.pixels, str):
            assert one.pixels == other.pixels
        else:
            np.testing.assert_array_equal(one.pixels, other.pixels)
    assert children() == set()


def test_an_image_that_ends_its_process_is_the_only_one_to_have_an_error(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = processes.PROGRAM.replace(
        "\nserve()",
        "\nfrom hierclass.labelling import read_input as reading\n"
        "real = reading.source\n"
        "def source(item):\n"
        "    if item.path.endswith('13.png'):\n"
        "        import os; os.abort()\n"
        "    return real(item)\n"
        "reading.source = source\n"
        "serve()",
    )
    monkeypatch.setattr(processes, "PROGRAM", program)
    found = read(photos, workers=1, processes=True)
    errors = {number: each.pixels for number, each in enumerate(found) if isinstance(each.pixels, str)}
    assert set(errors) == {7, 13}
    assert "ends the process that reads it" in errors[13]


@pytest.fixture
def ended_by_broken_pipes() -> Iterator[None]:
    """Signals as the command sets them where its table goes to a pipe."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.mark.usefixtures("ended_by_broken_pipes")
def test_a_process_that_is_killed_is_replaced(photos: Path) -> None:
    inputs = enumerate(Input(str(photos / "03.png")) for _ in range(400))
    reading = ReadOptions(batch_size=4, workers=2, processes=True)
    count = 0
    for number, _, found in read_ahead(inputs, WHAT, reading):
        count += not isinstance(found.pixels, str)
        if number % 100 == 50:
            for process in children():
                os.kill(process, signal.SIGKILL)
    assert count == 400


def test_where_no_process_starts_threads_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROGRAM", "import sys; sys.exit(1)")
    found = read(photos, workers=2, processes=True)
    assert [isinstance(each.pixels, str) for each in found] == [number == 7 for number in range(20)]


def test_processes_end_when_the_one_that_they_read_for_is_killed(photos: Path) -> None:
    script = (
        "import sys, time\n"
        "from hierclass.labelling import read_ahead as readers\n"
        "from hierclass.labelling.inputs import Input\n"
        "from hierclass.labelling.read_input import ReadOptions\n"
        "from hierclass.images.preprocessing import Preprocessing\n"
        "inputs = ((n, Input(sys.argv[1])) for n in range(10**6))\n"
        "how = ReadOptions(workers=2, processes=True)\n"
        "for n, _, found in readers.read_ahead(inputs, Preprocessing(32), how):\n"
        "    if n == 300:\n"
        "        print('reading', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(photos / "01.png")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert lines.readline() == b"reading\n"
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        theirs = [int(line) for line in listed.stdout.split()]
        assert len(theirs) == 2
        process.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in theirs) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{each}").exists() for each in theirs)


def test_what_waits_in_memory_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(readers, "_MOST_BYTES", 40_000)
    data = (photos / "01.png").read_bytes()
    pq.write_table(pa.table({"image": [data] * 60}), photos.parent / "a.parquet")
    taken = 0

    def inputs() -> Iterator[tuple[int, Input]]:
        nonlocal taken
        for numbered in enumerate(list_inputs([photos.parent / "a.parquet"])):
            taken += 1
            yield numbered

    stream = read_ahead(inputs(), WHAT, ReadOptions(batch_size=64, workers=1))
    next(stream)
    assert taken < 20
    stream.close()
