"""Files that are written whole or not at all, and folders that may be written to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hierclass.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
"""The two files of a model."""


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
    names = sorted(file.name for file in folder.iterdir())
    others = [name for name in names if name not in (CONFIG_FILE, WEIGHTS_FILE)]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of a model; name a new or empty folder"
        )
    if names and not force:
        raise InputError(f"{folder} holds a model; add --force to replace it, or name another folder")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when the block ends, that file is synced and renamed to `path`.

    What `path` held before stays there until then, and for good if the block raises; then the unfinished file
    goes. Raises OSError as writing and renaming do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
