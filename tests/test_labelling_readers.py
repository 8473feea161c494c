"""Images are read in processes; one that is slow, wants memory or ends costs the image that it read and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_data import make_photos, nobody_can_open
from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images.preprocessing import Preprocessing
from hierclass.labelling import read_ahead as readers
from hierclass.labelling import reader_pipes as processes
from hierclass.labelling import reader_processes
from hierclass.labelling.inputs import Input, list_inputs, stamp
from hierclass.labelling.read_ahead import read_ahead
from hierclass.labelling.read_input import PictureReader, ReadOptions, ReadResult
from hierclass.labelling.reader_processes import ReaderPool

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


def read(photos: Path, **how: Any) -> list[ReadResult]:
    return read_inputs(list_inputs([photos]), **how)


def read_inputs(inputs: Iterable[Input], **how: Any) -> list[ReadResult]:
    reading = ReadOptions(batch_size=4, **how)
    return [found for _, _, found in read_ahead(enumerate(inputs), WHAT, reading)]


def errors_of(found: list[ReadResult]) -> dict[int, str]:
    return {number: each.pixels for number, each in enumerate(found) if isinstance(each.pixels, str)}


def change_process(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let processes run some lines of Python, before they read."""
    program = processes.PROGRAM.replace("\nserve()", "\n" + "\n".join(lines) + "\nserve()")
    monkeypatch.setattr(processes, "PROGRAM", program)


def children() -> set[int]:
    """Processes that read for this one."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {int(line.split()[0]) for line in found.stdout.splitlines() if "labelling.reader_child" in line}


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
    change_process(monkeypatch, *ABORTS)
    found = read(photos, workers=1, processes=True)
    assert set(errors_of(found)) == {7, 13}
    assert "ends the process that reads it" in errors_of(found)[13]
    assert found[13].stamp == stamp(str(photos / "13.png"))


ABORTS = (
    "from hierclass.labelling import read_input as reading",
    "real = reading.source",
    "def source(item):",
    "    if item.path.endswith('13.png'):",
    "        import os; os.abort()",
    "    return real(item)",
    "reading.source = source",
)


def test_an_image_that_takes_too_long_is_the_only_one_to_have_an_error(photos: Path) -> None:
    with tarfile.open(photos / "10b.tar", "w") as tar:
        tar.add(photos / "11.png")
    inputs = list(list_inputs([photos]))
    for workers in (1, 2):
        with nobody_can_open(photos / "10b.tar"):
            found = read_inputs(inputs, workers=workers, processes=True, seconds_per_image=2)
        assert set(errors_of(found)) == {7, 11}
        assert errors_of(found)[11] == "takes longer than 2 s to read; --seconds-per-image allows more"
        assert found[11].stamp == stamp(
            str(photos / "10b.tar")
        )  # it is not read again where nothing has changed


def test_a_picture_that_is_slow_to_decode_is_given_up(photos: Path) -> None:
    Image.new("1", (4800, 4800)).save(photos / "slow.png", compress_level=1)
    with ReaderPool(1) as pool, pytest.raises(ImageError, match=r"takes longer than 0\.1 s"):
        pool.pixels(PictureReader(WHAT), str(photos / "slow.png"), 0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not bound memory, or not so")
def test_a_picture_that_needs_too_much_memory_is_the_only_one_to_have_an_error(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_process(
        monkeypatch, "from hierclass.labelling import reader_child", "reader_child.MEMORY_LIMIT = 8 << 20"
    )
    Image.new("1", (4800, 4800)).save(photos / "12.png", compress_level=1)
    errors = errors_of(read(photos, workers=1, processes=True))
    assert set(errors) == {7, 12}
    assert "needs more memory than the" in errors[12]


@pytest.mark.parametrize(
    "answer", ["(PIXELS, False, 1, 1, 1 << 20, 1 << 20, 3 << 40)", "(PIXELS, False, 1, 1, 9, 9, 243)"]
)
def test_a_process_that_lies_is_not_believed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """A picture may take over the decoder: what its process then says can neither fill memory nor end the program."""
    change_process(
        monkeypatch,
        "from hierclass.labelling import reader_child",
        "from hierclass.labelling.reader_pipes import *",
        "def lie(stream, result):",
        f"    stream.write(FRAME.pack(*{answer}) + bytes(1000))",
        "    stream.flush()",
        "reader_child._answer = lie",
    )
    with ReaderPool(1) as pool, pytest.raises(ImageError, match="ends the process that reads it"):
        pool.pixels(PictureReader(WHAT), str(photos / "01.png"), 60)


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


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system does not say that a process is stopped")
def test_a_process_that_is_stopped_is_replaced(photos: Path) -> None:
    inputs = enumerate(Input(str(photos / "03.png")) for _ in range(60))
    reading = ReadOptions(batch_size=4, workers=2, processes=True)
    count = 0
    for number, _, found in read_ahead(inputs, WHAT, reading):
        count += not isinstance(found.pixels, str)
        if number == 20:
            for process in children():
                os.kill(process, signal.SIGSTOP)
    assert count == 60
    assert children() == set()


def test_where_no_process_starts_threads_read_and_say_so_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "PROGRAM", "import sys; sys.exit(1)")
    found = read(photos, workers=1, processes=True)
    assert set(errors_of(found)) == {7}
    assert ["nothing ends a slow one" in record.message for record in caplog.records] == [True]


def test_what_has_ended_a_process_is_not_read_here_where_no_other_can_be_started(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = photos.parent / "begun"
    change_process(
        monkeypatch,
        "import os",
        f"if os.path.exists({str(begun)!r}): os._exit(1)",
        f"open({str(begun)!r}, 'w')",
        *ABORTS,
    )
    errors = errors_of(read(photos, workers=1, processes=True))  # read here, 13.png would have been read
    assert set(errors) == {7, 13}
    assert "ends the process that reads it" in errors[13]


def test_waiting_for_the_turn_to_decode_a_very_large_picture_does_not_count(photos: Path) -> None:
    file = photos / "large.png"
    Image.new("1", (25_000_000, 1)).save(file, compress_level=1)
    with ReaderPool(1) as pool, ThreadPoolExecutor(1) as thread:
        with reader_processes._very_large:
            pending = thread.submit(pool.pixels, PictureReader(WHAT), str(file), 1.5)
            with pytest.raises(TimeoutError):
                pending.result(2)
        assert pending.result().shape == (32, 32, 3)


def test_a_process_that_ends_gives_back_the_turn(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_process(
        monkeypatch,
        "from PIL import ImageFile",
        "import os",
        "ImageFile.ImageFile.load = lambda *_: os.abort()",
    )
    Image.new("1", (25_000_000, 1)).save(photos / "large.png", compress_level=1)
    with ReaderPool(1) as pool, pytest.raises(ImageError, match="ends the process"):
        pool.pixels(PictureReader(WHAT), str(photos / "large.png"), 60)
    assert not reader_processes._very_large.locked()


def test_processes_that_are_kept_read_again_in_the_folder_that_is_the_current_one(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with processes.kept_ready(1):
        for folder in (photos, photos.parent):
            monkeypatch.chdir(folder)
            file = (photos / "01.png").relative_to(folder)
            assert not errors_of(read_inputs([Input(str(file))], processes=True))
            assert len(children()) == 1
    assert children() == set()


@pytest.mark.parametrize("seconds", [0, 0.01, 4000, float("nan")])
def test_seconds_out_of_range_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=r"an image may take 0\.1 to 3600 seconds"):
        ReadOptions(seconds_per_image=seconds)


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
