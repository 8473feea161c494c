"""Every image is looked at before training begins, so that a broken one is known then and not in the seventh epoch.

quick  the header, the size and the end of the file; what that leaves open is decoded
full   every image is decoded, as training will
auto   full up to `FULL_UP_TO` bytes of files, quick above

What was found is kept in the folder of the run: images that have not changed since are not looked at again.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hierclass.errors import ImageError, InputError
from hierclass.files import replacing
from hierclass.images.decoding import read_header, read_image
from training.data.datasets import Source
from training.data.samples import ImageSet, Unreadable
from training.evaluation.console import Reporter
from training.recipe.option import CHECKS, list_words

FULL_UP_TO = 4 << 30
"""Bytes of files that "auto" decodes; two cores need a minute or two for it."""
CHUNK = 4096
"""Images that are handed to the threads at once, so that a million of them take no memory while they wait."""


def resolve_check_mode(mode: str, images: ImageSet) -> str:
    """The mode that is meant for images: "auto" decides by their bytes. Raises `InputError` for an unknown one."""
    if mode not in CHECKS:
        raise InputError(f"`check` {mode}: give {list_words(CHECKS)}")
    if mode != "auto":
        return mode
    return "full" if sum(map(_num_bytes, images.sources)) <= FULL_UP_TO else "quick"


def check_image(source: Source, *, full: bool, min_side: int) -> str | None:
    """Why an image can't be read, in a few words; None if it can (as far as a quick look tells)."""
    if isinstance(source, np.ndarray):
        return None
    try:
        if not full and read_header(source).whole:
            return None
        read_image(source, min_side=min_side)
    except ImageError as error:
        return str(error)
    return None


def check_images(
    images: ImageSet, *, full: bool, min_side: int, reporter: Reporter
) -> Iterator[tuple[int, Unreadable]]:
    """Check all images in threads, shown by a reporter; yield index and reason of those that can't be read."""
    started = time.monotonic()
    reporter.start(len(images))
    with contextlib.closing(reporter), ThreadPoolExecutor() as pool:
        for first in range(0, len(images), CHUNK):
            part = images.sources[first : first + CHUNK]
            found = pool.map(lambda source: check_image(source, full=full, min_side=min_side), part)
            for index, reason in enumerate(found, start=first):
                if reason is not None:
                    yield index, Unreadable(images.names[index], reason)
                rate = (index + 1) / max(time.monotonic() - started, 1e-9)
                reporter.advance(f"checked {index + 1} of {len(images)} images", rate=rate, work=1)


def _num_bytes(source: Source) -> int:
    if isinstance(source, Path):
        try:
            return source.stat().st_size
        except OSError:
            return 0
    return len(source) if isinstance(source, bytes) else 0


# ---------------------------------------------------------------- what is kept in the folder of the run


@dataclasses.dataclass(frozen=True, slots=True)
class CheckResult:
    """The file checked.json of a run: what a check found, and of which images.

    ``digest`` stands for names, sizes and times of the files, ``mode`` for how they were looked at. ``found`` has the
    unreadable ones by their place among all, rising: images of several folders may have the same name.
    """

    mode: str
    digest: str
    found: dict[int, Unreadable]

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """What can't be read, in the order of the images."""
        return tuple(self.found.values())

    @classmethod
    def load(cls, path: Path, *, mode: str, digest: str) -> CheckResult | None:
        """Read what `save` wrote, if it is of the same images and at least as thorough; else None."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = cls(
                data["mode"],
                data["digest"],
                {int(at): Unreadable(str(name), str(error)) for at, name, error in data["unreadable"]},
            )
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: the images are looked at again
            return None
        return found if found.digest == digest and found.mode in (mode, "full") else None

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        rows = [[place, one.name, one.error] for place, one in self.found.items()]
        with replacing(path) as file:
            text = json.dumps({"mode": self.mode, "digest": self.digest, "unreadable": rows}, indent=1)
            file.write_text(text + "\n", encoding="utf-8")


def digest_images(images: ImageSet) -> str:
    """A sum over the names, sizes and times of change of images that stand for their content."""
    total = hashlib.sha256()
    for source, name in zip(images.sources, images.names, strict=True):
        state = f"{name}\0{_num_bytes(source)}"
        if isinstance(source, Path):
            try:
                state += f"\0{source.stat().st_mtime_ns}"
            except OSError:
                state += "\0gone"
        total.update(state.encode("utf-8", "backslashreplace") + b"\n")
    return total.hexdigest()


def write_table(path: Path, unreadable: Sequence[Unreadable]) -> None:
    """Write a CSV table of what can't be read, with the columns image and error; with none, remove an older one."""
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file, file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "error"])
        writer.writerows((one.name, one.error) for one in unreadable)
