"""Check all images before training, so that broken ones are found at once.

quick  reads header, size and end of each file, and decodes where these do not suffice
full   decodes every image as training does
auto   full up to `FULL_UP_TO` bytes of files, else quick

The result is stored in the run's folder; unchanged images are not checked again.
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
"""Bytes of files up to which "auto" decodes everything: a minute or two on two cores."""
CHUNK = 4096
"""Images handed to the threads at once; bounds memory."""


def resolve_check_mode(mode: str, images: ImageSet) -> str:
    """Resolve "auto" by the number of bytes of the images; raises `InputError` for an unknown mode."""
    if mode not in CHECKS:
        raise InputError(f"`check` {mode}: give {list_words(CHECKS)}")
    if mode != "auto":
        return mode
    return "full" if sum(map(_num_bytes, images.sources)) <= FULL_UP_TO else "quick"


def check_image(source: Source, *, full: bool, min_side: int) -> str | None:
    """Return why an image can't be read, or None if it can (as far as a quick check tells)."""
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
    """The file checked.json of a run: the unreadable images and which images were checked how.

    ``digest`` identifies names, sizes and times of the files. ``found`` maps the index of an image to the reason; names
    may repeat in several folders.
    """

    mode: str
    digest: str
    found: dict[int, Unreadable]

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """The unreadable images in order."""
        return tuple(self.found.values())

    @classmethod
    def load(cls, path: Path, *, mode: str, digest: str) -> CheckResult | None:
        """Read what `save` wrote if it covers the same images at least as thoroughly, else return None."""
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
    """Checksum of the names, sizes and modification times of images."""
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
    """Write unreadable images as a CSV table (columns image, error); without any, remove an older table."""
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file, file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "error"])
        writer.writerows((one.name, one.error) for one in unreadable)
