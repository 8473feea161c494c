"""The folder of uploads: which files a request may mean, how much there may be, and when they are deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hierclass.errors import ImageError, InputError

KEPT_SECONDS = 3600
SWEEP_SECONDS = 60
MAX_STORED = 8 << 30
"""Bytes of uploads of all visitors together; more are refused until older ones are deleted."""


class Uploads:
    """A folder that holds what visitors sent, and nothing else; what is older than an hour is deleted."""

    def __init__(self, folder: Path, also: Sequence[Path] = (), kept_seconds: float = KEPT_SECONDS) -> None:
        """Watch over a folder; requests may also mean files in the folders `also` (examples)."""
        self.folder = folder.resolve()
        self._also = [each.resolve() for each in also]
        self.kept_seconds = kept_seconds
        self._stop = threading.Event()

    def find(self, sent: Any) -> Path:
        """Return the file that a request means: a mapping with `path`, as uploading answered it.

        A request may name any file, so that only files in the folder count, and no links out of it.

        Raises:
            ImageError: it means no file that was uploaded, or that one is deleted.
        """
        path = sent.get("path") if isinstance(sent, Mapping) else None
        if not isinstance(path, str) or "\0" in path or len(path) > 4096:
            raise ImageError("did not arrive")
        file = Path(path).resolve()
        if (
            not any(file.is_relative_to(folder) for folder in (self.folder, *self._also))
            or not file.is_file()
        ):
            raise ImageError("is not here any more")
        return file

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Give a folder for the time of one request."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as place:
            yield Path(place)

    def result_folder(self) -> Path:
        """Return a new folder for files that a visitor may fetch; it is deleted with the uploads."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def check_space(self) -> None:
        """Raise InputError if no more uploads are taken just now."""
        size = sum(entry.stat().st_size for entry in _files(self.folder))
        if size > MAX_STORED:
            raise InputError("too many uploads are waiting on this page; please try again in an hour")

    def sweep(self) -> None:
        """Delete what is too old; what can't be deleted is tried again."""
        oldest = time.time() - self.kept_seconds
        for folder, folders, names in os.walk(self.folder, topdown=False):
            for name in names:
                with contextlib.suppress(OSError):
                    file = Path(folder, name)
                    if file.lstat().st_ctime < oldest:
                        file.unlink()
            for name in folders:
                with contextlib.suppress(OSError):  # most often, it is not empty
                    inner = Path(folder, name)
                    if inner.lstat().st_ctime < oldest:
                        inner.rmdir()

    def start_sweeping(self) -> None:
        """Sweep every minute, in a thread that ends with the process."""
        threading.Thread(target=self._keep_sweeping, name="hierclass-sweeper", daemon=True).start()

    def close(self) -> None:
        """Stop sweeping, and delete everything."""
        self._stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_sweeping(self) -> None:
        while not self._stop.wait(SWEEP_SECONDS):
            self.sweep()


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield entry
