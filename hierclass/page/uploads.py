"""The folder of uploads: which files requests may name, how much is stored, and when files are deleted."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from hierclass.errors import ImageError, InputError
from hierclass.files import locked

KEPT_SECONDS = 3600
SWEEP_SECONDS = 60
MAX_STORED = 8 << 30
"""Bytes of all uploads together, at most; more are refused until older ones are deleted."""
MAX_FILES = 50_000
"""Files of all uploads together, at most."""
KEEP_FREE = 1 << 30
"""Bytes of the disk that uploads and tables leave free: other programs of this computer need some."""
KEEP_FREE_SHARE = 0.05
"""The same as a share of the disk; of the two the smaller holds, since a container's /tmp may be small."""
LONGEST_PATH = 4096
"""Characters of a path that a request names, at most; Linux takes no more."""
PREFIX = "hierclass-page-"
_LOCK = ".lock"


class Uploads:
    """The folder of what visitors sent; files older than an hour are deleted."""

    def __init__(self, folder: Path, also: Sequence[Path] = (), kept_seconds: float = KEPT_SECONDS) -> None:
        """Use a folder; requests may also name files in the folders `also` (examples)."""
        self.folder = folder.resolve()
        self._also = [each.resolve() for each in also]
        self._kept: frozenset[str] = frozenset()
        self.kept_seconds = kept_seconds
        self._stop = threading.Event()

    @classmethod
    @contextmanager
    def opened(cls, also: Sequence[Path] = ()) -> Iterator[Uploads]:
        """Create a folder for as long as a page runs; remove those of pages that were killed.

        Meanwhile it also takes all temporary files of this process.

        Raises:
            InputError: no folder for temporary files can be written.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            for other in folder.parent.glob(f"{PREFIX}*"):
                if other != folder:
                    _remove_if_dead(other)
            with locked(folder / _LOCK, "another page uses this folder"):
                before, tempfile.tempdir = tempfile.tempdir, str(folder)
                uploads = cls(folder, also)
                try:
                    yield uploads
                finally:
                    tempfile.tempdir = before
                    uploads.close()
        except OSError as error:
            raise InputError(f"temporary files can't be written: {error.strerror or error}") from error

    def keep_what_is_there(self) -> None:
        """Never delete the files that are there now: they are the page's own."""
        self._kept = frozenset(entry.path for entry in _files(self.folder))

    def find(self, sent: Any) -> Path:
        """Return the file that a request names by a mapping with `path`, as Gradio answers an upload.

        Requests are not trusted: only files in the folder are returned, and no links out of it.

        Raises:
            ImageError: the file was not uploaded or is deleted.
        """
        path = sent.get("path") if isinstance(sent, Mapping) else None
        if not isinstance(path, str) or "\0" in path or len(path) > LONGEST_PATH:
            raise ImageError("did not arrive")
        file = Path(path).resolve()
        if (
            not any(file.is_relative_to(folder) for folder in (self.folder, *self._also))
            or not file.is_file()
        ):
            raise ImageError("is not here any more")
        return file

    def is_ours(self, path: str) -> bool:
        """Whether a path lies in the folder or in one of `also`; the file itself may be gone. Touches no disk."""
        if "\0" in path or len(path) > LONGEST_PATH:
            return False
        file = PurePath(os.path.normpath(path))
        return any(file.is_relative_to(folder) for folder in (self.folder, *self._also))

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Create a folder for the duration of one request."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as place:
            yield Path(place)

    def result_folder(self) -> Path:
        """Create a folder for files that a visitor may download; it is deleted like the uploads.

        Raises:
            InputError: the disk is nearly full.
        """
        self._check_disk(0)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def check_space(self, arriving: int = 0) -> None:
        """Raise InputError if there is no room for more uploads; `arriving` bytes are still to come."""
        self._check_disk(arriving)
        size, count = arriving, 0
        for entry in itertools.islice(_files(self.folder), MAX_FILES + 1):
            with contextlib.suppress(OSError):  # deleted meanwhile
                size, count = size + entry.stat().st_size, count + 1
        if size > MAX_STORED or count > MAX_FILES:
            raise InputError("too many uploads are kept on this page; please try again in an hour")

    def free_space(self) -> int:
        """Return the number of bytes that may be written to the disk; it is not filled."""
        disk = shutil.disk_usage(self.folder)
        return max(0, disk.free - int(min(KEEP_FREE, disk.total * KEEP_FREE_SHARE)))

    def _check_disk(self, size: int) -> None:
        if size >= self.free_space():
            raise InputError("the disk of this page is nearly full; please tell whoever runs it")

    def sweep(self) -> None:
        """Delete files that are too old; those that can't be deleted are tried again next time."""
        oldest, kept = time.time() - self.kept_seconds, {*self._kept, str(self.folder / _LOCK)}
        for folder, folders, names in os.walk(self.folder, topdown=False):
            for name in names:
                with contextlib.suppress(OSError):
                    file = Path(folder, name)
                    if file.lstat().st_ctime < oldest and str(file) not in kept:
                        file.unlink()
            for name in folders:
                with contextlib.suppress(OSError):  # most often, it is not empty
                    inner = Path(folder, name)
                    if inner.lstat().st_ctime < oldest:
                        inner.rmdir()

    def start_sweeping(self) -> None:
        """Sweep every minute in a daemon thread."""
        threading.Thread(target=self._keep_sweeping, name="hierclass-sweeper", daemon=True).start()

    def close(self) -> None:
        """Stop sweeping and delete everything."""
        self._stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_sweeping(self) -> None:
        while not self._stop.wait(SWEEP_SECONDS):
            self.sweep()


def _remove_if_dead(folder: Path) -> None:
    """Remove the uploads of a page that does not run any more; a running page holds the lock."""
    if folder.is_symlink():
        return
    with contextlib.suppress(InputError, OSError), locked(folder / _LOCK, "a page runs"):
        shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield entry
