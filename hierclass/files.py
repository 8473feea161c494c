"""Files that are written whole or not at all, and folders that may be written to."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hierclass.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
"""The two files of a model."""
BUNDLED = Path(__file__).parent / "models" / "imagenet-1k"
"""The model that comes with the package."""
_TEMPORARY = re.compile(r"\.(?P<file>.+)\.\d+\.tmp")
"""Name under which a process (its number) writes a file before it is whole; a kill leaves it behind."""


def check_model_folder(folder: Path, source: Path | None, *, force: bool) -> None:
    """Refuse a folder in which a model would overwrite something, or an earlier model without `force`.

    `source` is the model that the new one is made of, which is never overwritten.

    Raises:
        InputError: it is no folder, or holds something; the message says what to do.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder} is no folder; name a new or empty one for the model")
        return
    if source is not None and folder.resolve() == source.resolve():
        raise InputError(f"{folder} is the model itself; name another folder for the new one")
    left_by_a_kill = {file.name for file in _temporaries(folder, CONFIG_FILE, WEIGHTS_FILE)}
    names = sorted({file.name for file in folder.iterdir()} - left_by_a_kill)
    others = [name for name in names if name not in (CONFIG_FILE, WEIGHTS_FILE)]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of a model; name a new or empty folder"
        )
    if names and not force:
        raise InputError(f"{folder} holds a model; add --force to replace it, or name another folder")


def check_writable(file: Path, option: str) -> None:
    """Refuse a file that can't be written, before the work whose result it is to hold.

    Raises:
        InputError: it is a folder, or nothing can be written beside it; the message begins with `option`.
    """
    if file.is_dir():
        raise InputError(f"{option} {file} is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InputError(f"{option} {file} cannot be written: {error.strerror or error}") from error


def remove_temporaries(folder: Path, *names: str) -> None:
    """Remove what writers of files of these names left half-written when they were killed."""
    for file in _temporaries(folder, *names):
        file.unlink(missing_ok=True)


def _temporaries(folder: Path, *names: str) -> list[Path]:
    matches = ((file, _TEMPORARY.fullmatch(file.name)) for file in folder.iterdir())
    return [file for file, match in matches if match and match["file"] in names]


@contextlib.contextmanager
def locked(file: Path, message: str = "", *, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is made; the system frees it when the process ends, however it ends.

    With `wait` another process that holds it is waited for.

    Raises:
        InputError: another process holds it; the text is `message`.
        OSError: the file can't be made.
    """
    with file.open("w") as lock:
        try:
            import fcntl  # absent on Windows, where nothing keeps a second process out

            fcntl.lockf(
                lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            )  # not inherited by children, unlike flock
        except ImportError:
            pass
        except (BlockingIOError, PermissionError) as error:
            raise InputError(message) from error
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when the block ends, that file is synced and renamed to `path`.

    What `path` held before stays there until then, and for good if the block raises; then the unfinished file
    goes. Raises OSError as writing and renaming do, with the name of `path`.
    """
    with replacing_all(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Replace files as `replacing` does, all or none: they are renamed when the last one is synced.

    Only a process that ends between two renames leaves some replaced and others not.
    """
    temporaries = tuple(path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths)
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "r+b") as stream:
                os.fsync(stream.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
        for folder in {path.parent for path in paths}:
            _sync_folder(folder)
    except OSError as error:
        targets = {str(temporary): path for temporary, path in zip(temporaries, paths, strict=True)}
        nameless = error.filename is None and error.errno is not None
        if nameless or str(error.filename) in targets:  # people don't know the temporary name
            error.filename, error.filename2 = str(targets.get(str(error.filename), paths[0])), None
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can (Windows can't)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
