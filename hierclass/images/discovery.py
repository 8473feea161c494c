"""Find the images that a user names: files, folders, and lists of paths on standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from hierclass.errors import InputError
from hierclass.images.kinds import scanned_endings

STANDARD_INPUT = "-"
LONGEST_PATH = 1 << 20
"""Bytes of a line of a list of paths, at most; the longest paths of any system have 32 KB."""


def find_inputs(
    names: Iterable[str | os.PathLike[str]],
    *,
    stdin: BinaryIO | None = None,
    also: Collection[str] = (),
) -> Iterator[str]:
    """Yield the path of every image that `names` lead to, in their order.

    A file is yielded as it is named, whether it exists or not. A folder yields its images, recursively, sorted by
    name, without hidden files and folders; each folder is entered once, so links may form loops. A folder without
    images is yielded itself; reading it gives the error. `-` stands for the paths listed on `stdin` (standard input
    if None), one per line or separated by NUL bytes. Files with one of the endings `also` count as images.

    Raises:
        InputError: there were only empty folders and lists (raised after the last path).
    """
    num_files = 0
    folder, asked = "", list[str]()
    for name in _expand(_noted(names, asked), stdin):
        if not os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            num_files += 1
            yield name
            continue
        folder = name
        empty = True
        for path in _walk(name, scanned_endings() | frozenset(also)):
            empty = False
            num_files += 1
            yield path
        if empty:
            yield name
    if num_files == 0:
        found = "the list on standard input is empty" if asked else "no image is named"
        if folder:
            found = f"no images in the folder {display_name(folder)}"
        raise InputError(
            f"nothing to do: {found}; name image files, folders of images, or - for a list of paths"
        )


def display_name(path: str | os.PathLike[str]) -> str:
    """Return a path as valid UTF-8 text; other bytes are written as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _noted(names: Iterable[str | os.PathLike[str]], asked: list[str]) -> Iterator[str]:
    """Pass names on; note in `asked` that there was one for standard input."""
    for name in names:
        if os.fspath(name) == STANDARD_INPUT:
            asked.append(STANDARD_INPUT)
        yield os.fspath(name)


def _expand(names: Iterable[str | os.PathLike[str]], stdin: BinaryIO | None) -> Iterator[str]:
    for name in names:
        if os.fspath(name) == STANDARD_INPUT:
            if stdin is None and sys.stdin is None:
                raise InputError("standard input is closed; name image files or folders")
            yield from _listed(sys.stdin.buffer if stdin is None else stdin)
        else:
            yield os.fspath(name)


def _listed(stream: BinaryIO) -> Iterator[str]:
    head = stream.read(1 << 16)  # longer than any path: a list separated by NUL bytes shows one here
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            "the list on standard input is UTF-16 text; write it as UTF-8 (in PowerShell: | Out-File -Encoding utf8)"
        )
    separator = b"\0" if b"\0" in head else b"\n"
    rest = head.removeprefix(b"\xef\xbb\xbf")
    while True:
        chunk = stream.read(1 << 16)
        *lines, rest = (rest + chunk).split(separator)
        if len(rest) > LONGEST_PATH:
            raise InputError("the list on standard input has a line of a mebibyte, which is no path")
        if not chunk:
            lines.append(rest)
        for line in lines:
            path = line if separator == b"\0" else line.removesuffix(b"\r")
            if path.strip():
                yield os.fsdecode(path)
        if not chunk:
            return


def _walk(folder: str, endings: Collection[str]) -> Iterator[str]:
    """Yield the images under a folder; a stack of sorted listings in place of recursion, so depth is unlimited."""
    entered = {_identity(folder)}
    stack = [iter(_listing(folder) or ())]
    while stack:
        path, is_folder = next(stack[-1], ("", False))
        if not path:
            stack.pop()
        elif not is_folder:
            if _has_ending(path, endings):
                yield path
        elif (identity := _identity(path)) not in entered:
            entered.add(identity)
            listing = _listing(path)
            # A folder that can't be listed, and an empty one called photo.jpg, would be missed by the user.
            if listing is None or (not listing and _has_ending(path, endings)):
                yield path
            else:
                stack.append(iter(listing))


def _listing(folder: str) -> list[tuple[str, bool]] | None:
    """Return (path, is a folder) of a folder's entries, sorted by name; None if it can't be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.path, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")
            )
    except OSError:
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _has_ending(path: str, endings: Collection[str]) -> bool:
    return PurePath(path).suffix.lower() in endings


def _identity(folder: str) -> tuple[int, int] | str:
    try:
        status = Path(folder).stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino
