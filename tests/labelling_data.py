"""A listener, and short ways to begin, go on with and read a run, for several test files."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from hierclass.classifier import Classifier
from hierclass.decisions.exit_policy import LevelChoice, Request
from hierclass.labelling.read_input import ReadOptions
from hierclass.labelling.run import LabelRun
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob
from hierclass.labelling.run_parts import Range
from hierclass.labelling.run_pass import Engine, LocalEngine, PassProgress, RunPass

READING = ReadOptions(batch_size=4, workers=2)
PART_ROWS = 4


class RunListener:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.passes: list[tuple[int, int]] = []
        self.done = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def listed(self, count: int) -> None: ...

    def start(self, total: int, done: int) -> None:
        self.passes.append((total, done))
        self.done = 0

    def advance(self, num_images: int, num_errors: int) -> None:
        self.done += num_images


def make_photos(folder: Path, count: int = 20) -> Path:
    """Noise in PNG files; the eighth is none."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / "07.png").write_text("no picture")
    return folder


@contextmanager
def nobody_can_open(file: Path) -> Iterator[None]:
    """Let whoever opens a file wait, for 45 seconds at least, as for a disk of the network that is gone (fcntl(2))."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(file, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def with_thumbnail(
    size: tuple[int, int], thumbnail: tuple[int, int], orientation: int = 1, data: bytes | None = None
) -> bytes:
    """A red JPEG with a green thumbnail; EXIF as cameras write it."""
    small = io.BytesIO()
    Image.new("RGB", thumbnail, (0, 200, 0)).save(small, "JPEG")
    inner = small.getvalue() if data is None else data
    # TIFF header; IFD 0 with the orientation; IFD 1 with place and length of the thumbnail.
    ifd0 = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 26)
    ifd1 = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(inner), 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + ifd0 + ifd1 + inner
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 0, 0)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def job(photos: Path, level: LevelChoice = 0, **more: Any) -> LabelJob:
    return LabelJob(names=(str(photos),), request=Request(level=level), reading=READING, **more)


def run_in(
    folder: Path, classifier: Classifier, engine: Engine | None = None, listener: RunListener | None = None
) -> tuple[LabelRun, RunListener]:
    heard = listener or RunListener()
    engine = engine or LocalEngine(classifier, part_rows=PART_ROWS)
    return LabelRun(RunFolder(folder), classifier, READING, heard, engine), heard


def label(
    folder: Path,
    classifier: Classifier,
    what: LabelJob,
    *,
    engine: Engine | None = None,
    listener: RunListener | None = None,
    **more: Any,
) -> RunListener:
    run, heard = run_in(folder, classifier, engine, listener)
    with run.folder.lock():
        run.label(what, **more)
        run.assemble(folder / "labels.parquet")
    return heard


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "labels.parquet").to_pylist()
    return found


class BreakingEngine(LocalEngine):
    """Computes passes here until some inputs are done; then an error meets it between two batches."""

    def __init__(self, classifier: Classifier, after: int, error: BaseException) -> None:
        super().__init__(classifier, part_rows=PART_ROWS)
        self._after, self._error = after, error

    def run(self, folder: RunFolder, what: RunPass, gaps: Sequence[Range]) -> PassProgress:
        count, passes = 0, super().run(folder, what, gaps)
        for done, errors in passes:
            count += done
            yield done, errors
            if count >= self._after:
                passes.throw(self._error)


@contextmanager
def failing(
    module: torch.nn.Module, fails: Callable[[torch.Tensor], bool], error: Exception
) -> Iterator[None]:
    """Let a module raise an error on inputs (B, …) for which `fails` is true."""

    def check(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if fails(arguments[0]):
            raise error

    hook = module.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
