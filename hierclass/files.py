"""Write files whole or not at all, lock them, and check in advance that files and folders can be written."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import itertools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from hierclass.errors import InputError
from taxonomy.json_document import sync_folder

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
"""Names of the two files of a model."""
GRAPH_WEIGHTS_FILE = "graphs.safetensors"
"""Weights of graphs that `WEIGHTS_FILE` does not hold."""
_GRAPH = re.compile(r"level\d+(\.int8)?\.onnx")
MAX_GRAPH_BYTES = 2**31 - 1
"""Size of a graph; what its format (protocol buffers) allows."""
BUNDLED = Path(__file__).parent / "models" / "imagenet-1k"
"""Folder of the model that comes with the package."""
_TEMPORARY = re.compile(r"\.(?P<file>.+)\.(?P<process>\d+)\.tmp")
"""Name of the temporary file of a process (its number); a kill leaves it behind."""
_HOUR = 3600.0
_ATTEMPTS = 100
"""To make a lock in a folder that others may remove."""


def check_regular(file: Path) -> int:
    """Return the size of a regular file, or of one that a link leads to, in bytes, without opening it.

    To open a pipe can block for ever, and a device has no end.

    Raises:
        OSError: there is no such file, or it is no regular one.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file (but a folder, pipe, socket or device)")
    return found.st_size


@contextlib.contextmanager
def open_regular(file: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file, or a link to one, to be read.

    Raises:
        OSError: as `check_regular`, or it can't be opened.
    """
    check_regular(file)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(file, flags), "rb") as stream:
        yield stream


def read_regular(file: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: as `open_regular`, or it is larger.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, most) + 1)  # for which memory is taken before it is read
    if len(content) > most:
        raise OSError(f"it is larger than {most >> 20} MB")
    return content


def read_graph_file(file: Path) -> bytes:
    """Read the file of a graph; raises OSError for no regular file."""
    return read_regular(file, MAX_GRAPH_BYTES)


def no_model(folder: Path) -> str:
    """Return what is wrong with a folder that holds no model, and what to name instead."""
    if (folder / "model" / CONFIG_FILE).is_file():
        return f"{folder} is a run, whose model is in a folder of its own: name {folder / 'model'}"
    if folder.is_dir():
        return f"{folder} is no model: it has no {CONFIG_FILE}"
    return f"there is no model at {folder}; name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"


def graph_file(level: int) -> str:
    """Return the name of the graph of a level."""
    return f"level{level}.onnx"


def int8_file(level: int) -> str:
    """Return the name of the graph of a level in 8 bits."""
    return f"level{level}.int8.onnx"


def is_graph_file(name: str) -> bool:
    """Return whether a file of this name in a model's folder is a graph or holds weights of graphs."""
    return name == GRAPH_WEIGHTS_FILE or _GRAPH.fullmatch(name) is not None


def is_part_of_model(name: str) -> bool:
    """Return whether a file of this name in a model's folder is one of those that the model runs from."""
    return name in (CONFIG_FILE, WEIGHTS_FILE) or is_graph_file(name)


def remove_graphs(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove graphs in the folder of a model, except for the files `keep` and the weights that they share."""
    kept = {GRAPH_WEIGHTS_FILE, *keep} if keep else set()
    for file in list(folder.iterdir()):
        if is_graph_file(meant_name(file.name)) and file.name not in kept:
            file.unlink(missing_ok=True)


def check_model_folder(folder: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuse a folder if writing a model there would replace other files, or a model without `overwrite`.

    The folder `source` of the model that the new one is made of is always refused.

    Raises:
        InputError: the folder is refused; the message says what to do.
    """
    if source is not None and folder.is_dir() and folder.resolve() == source.resolve():
        raise InputError(f"{folder} is the model itself; name another folder for the new one")
    check_output_folder(folder, is_part_of_model, "a model", overwrite=overwrite)


def check_output_folder(
    folder: Path, is_part: Callable[[str], bool], what: str, *, overwrite: bool, mark: str | None = None
) -> None:
    """Refuse a folder if writing `what` there would replace other files, or an earlier one without `overwrite`.

    `is_part` says of the name of a file whether it belongs to `what`. Without the file `mark`, or a temporary one of
    it that a killed writer left, only temporary files do.

    Raises:
        InputError: the folder is refused; the message says what to do.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder} is no folder; name a new or empty one for {what}")
        return
    names = sorted(file.name for file in folder.iterdir())
    marked = mark is None or mark in map(meant_name, names)
    others = [
        name for name in names if not is_part(meant_name(name)) or not (marked or _TEMPORARY.fullmatch(name))
    ]
    if others:
        raise InputError(
            f"{folder} holds {others[0]}, which is no part of {what}; name a new or empty folder"
        )
    if any(not _TEMPORARY.fullmatch(name) for name in names) and not overwrite:
        raise InputError(f"{folder} holds {what}; add --overwrite to replace it, or name another folder")


def check_writable(file: Path, option: str, *, overwrite: bool) -> Path:
    """Refuse a file that can't be written, or exists, before the work whose result it will hold.

    With `overwrite`, and where it is empty, a file may be replaced. Returns what is to be written: that of a link is
    the file that it leads to.

    Raises:
        InputError: it is refused; the message begins with `option` and says what to do.
    """
    target = Path(os.path.realpath(file))
    if target.is_dir():
        raise InputError(f"{option} {file} is a folder; name a file")
    if file.exists() and not target.is_file():
        raise InputError(f"{option} {file} is no file; name one that may be replaced")
    if has_content(target) and not overwrite:
        raise InputError(
            f"{option} {file} exists (written {written_at(target)}); add --overwrite to replace it, or name another "
            "file"
        )
    if reason := why_unwritable(target):
        raise InputError(f"{option} {file} cannot be written: {reason}")
    return target


def has_content(file: Path) -> bool:
    """Return whether there is a regular file, or a link to one, that is not empty."""
    try:
        return check_regular(file) > 0
    except OSError:
        return False


def written_at(file: Path) -> str:
    """Return when a file was changed last, for people: "2026-11-27 19:31"."""
    return f"{datetime.datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}"


def why_unwritable(file: Path) -> str | None:
    """Return why `replacing` could not write a file, None if it could; `file` itself is not touched."""
    if file.is_file() and not os.access(file, os.W_OK):
        return "it is read-only"  # to replace it takes leave to write to the folder alone
    probe = _temporary(file)
    try:
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, if they are missing; their names are synced to disk.

    Raises OSError as Path.mkdir does.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def remove_temporaries(folder: Path, *names: str) -> None:
    """Remove the temporary files that killed writers of these files left in a folder."""
    for file in _temporaries(folder, *names):
        file.unlink(missing_ok=True)


def leftovers(folder: Path) -> Iterator[Path]:
    """Yield temporary files and folders that killed processes left in a folder: theirs who are gone, or an hour old."""
    for name in os.listdir(folder):  # noqa: PTH208 - folders of photographs are large
        if match := _TEMPORARY.fullmatch(name):
            path = folder / name
            with contextlib.suppress(OSError):
                if not _runs(int(match["process"])) or time.time() - path.lstat().st_mtime > _HOUR:
                    yield path


def _runs(process: int) -> bool:
    """Return whether there is a process of this number; on Windows, that there may be."""
    if sys.platform == "win32":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _temporary(path: Path) -> Path:
    """The name under which this process writes a file before it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _temporaries(folder: Path, *names: str) -> list[Path]:
    return [
        file
        for file in folder.iterdir()
        if _TEMPORARY.fullmatch(file.name) and meant_name(file.name) in names
    ]


def meant_name(name: str) -> str:
    """Return the name that a temporary file was to get, and that of any other file as it is."""
    match = _TEMPORARY.fullmatch(name)
    return match["file"] if match else name


@contextlib.contextmanager
def locked(file: Path, message: str = "", *, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is created with its folder; the system frees it however the process ends.

    With `wait`, wait until no other process holds it. Who holds it may remove the file, as the last thing in it that it
    does: others notice, and lock the file that then has the name.

    Raises:
        InputError: another process holds it; the text is `message`.
        OSError: the file can't be made, or is a link or no regular file.
    """
    for attempt in itertools.count(1):
        try:
            make_folder(file.parent)
            descriptor = _open_lock(file)
        except (FileExistsError, FileNotFoundError):
            if attempt == _ATTEMPTS:
                raise
            continue  # somebody removed the folder meanwhile
        try:
            _lock(descriptor, message, wait=wait)
            if _is_named(descriptor, file):
                yield
                return
        finally:
            os.close(descriptor)


def _open_lock(file: Path) -> int:
    """Open a file, which is created; neither a link nor a device, and nothing in it changes."""
    flags = os.O_RDWR | os.O_CREAT
    for each in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
        flags |= getattr(os, each, 0)  # not all systems have these
    wrong = OSError(errno.EINVAL, f"its {file.name} is no regular file; remove it", os.fspath(file))
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise (wrong if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise wrong
    return descriptor


def _lock(descriptor: int, message: str, *, wait: bool) -> None:
    try:
        import fcntl  # absent on Windows, where nothing keeps a second process out
    except ImportError:
        return
    try:  # not inherited by children, unlike flock
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError) as error:
        raise InputError(message) from error


def _is_named(descriptor: int, file: Path) -> bool:
    """Whether a file that is open still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when the block ends, that file is synced and renamed to `path`.

    Until then, and if the block raises, `path` keeps what it held before; the unfinished file is removed. Raises
    OSError as writing and renaming do, with the name of `path`.
    """
    with replacing_all(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(*paths: Path, mark: Path | None = None) -> Iterator[tuple[Path, ...]]:
    """Replace files as `replacing` does, all or none: they are renamed in order when the last one is synced.

    Only a process that is killed between two renames leaves some replaced and others not. The last file may be the
    `mark` that they belong together: meanwhile it has a temporary name, by which `check_output_folder` knows them.
    """
    temporaries = tuple(map(_temporary, paths))
    aside = mark.with_name(f".{mark.name}.0.tmp") if mark else None  # no process has the number 0
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "r+b") as stream:
                os.fsync(stream.fileno())
        if mark and aside:
            aside.touch()
            with contextlib.suppress(FileNotFoundError):
                os.replace(mark, aside)
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
        if aside:
            aside.unlink()
        for folder in {path.parent for path in paths}:
            sync_folder(folder)
    except OSError as error:
        targets = {str(temporary): path for temporary, path in zip(temporaries, paths, strict=True)}
        nameless = error.filename is None and error.errno is not None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a copy, that is the second file
        name = str(error.filename2 if full and error.filename2 else error.filename)
        if nameless or name in targets:  # people don't know the temporary name
            error.filename, error.filename2 = str(targets.get(name, paths[0])), None
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
