"""Find the images that a user names: files, folders, and lists of paths on standard input."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hierclass.errors import InputError
from hierclass.images.kinds import photograph_advice, scanned_endings
from hierclass.images.path_lists import PACKED_ENDINGS, as_meant, how_to_label, read_list, why_no_image
from taxonomy.folders import IGNORED, Ignore
from taxonomy.streams import is_option, plural

STANDARD_INPUT = "-"
_MOST_ENDINGS, _MOST_SHOWN, _LONGEST_ENDING = 1000, 6, 12
"""How many endings are counted apart and shown, and how long one may be: names are a stranger's."""
_OTHERS = "others"
_SIDECAR = ".xmp"
_NO_IMAGES = "is a folder without images"
_OF_RUNS = {"run.json", "inputs.parquet", "parts"}
_TABLES = {"labels.csv", "labels.jsonl", "labels.parquet", "features.parquet"}
"""What `hierclass label -o run/` writes into a folder."""


class PassedOver:
    """Counts the files that a search leaves out because their endings are not of images, by ending.

    Sidecars (.xmp) are not counted: they lie beside photographs and are no photographs that somebody misses.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._endings = Counter[str]()

    def __len__(self) -> int:
        return self._endings.total()

    def add(self, name: str) -> None:
        """Count a file."""
        ending = ending_of(name)
        if ending == _SIDECAR:
            return
        if ending not in self._endings and (
            len(self._endings) >= _MOST_ENDINGS or len(ending) > _LONGEST_ENDING or not ending.isprintable()
        ):
            ending = _OTHERS
        self._endings[ending] += 1

    def update(self, other: PassedOver) -> None:
        """Count what another has counted."""
        self._endings.update(other._endings)

    def counts(self) -> str:
        """Return a text such as "12 other files passed over (.nef 9, .mov 3)"; empty if there are none."""
        if not self:
            return ""
        ordered = sorted(
            self._endings.items(), key=lambda item: (item[0] == _OTHERS, -item[1], not item[0], item[0])
        )
        shown = [f"{ending or 'no ending'} {count:,}" for ending, count in ordered[:_MOST_SHOWN]]
        if more := sum(count for _, count in ordered[_MOST_SHOWN:]):
            shown.append(f"{_OTHERS} {more:,}")
        return f"{plural(len(self), 'other file')} passed over ({', '.join(shown)})"

    def advice(self) -> str:
        """Say how photographs among them can be read that are not read here; empty if there are none."""
        return photograph_advice(self._endings)

    def text(self) -> str:
        """Return the counts and the advice as one line; empty if there are none."""
        return "; ".join(filter(None, [self.counts(), self.advice()]))

    def where_to_look(self) -> str:
        """Say how to search those that may hold images: what is packed, and Parquet files."""
        packed = ", ".join(ending for ending in PACKED_ENDINGS if ending in self._endings)
        return "; ".join(
            ([f"unpack {packed} first"] if packed else [])
            + (["name a .parquet file to label its rows"] if ".parquet" in self._endings else [])
        )


def nothing_to_do(found: str, passed_over: PassedOver) -> InputError:
    """Return the error that there is nothing to label: what was found instead, and what to do."""
    instead = [passed_over.text(), passed_over.where_to_look()]
    if not any(instead):
        instead = ["name image files, folders of images, or - for a list of paths"]
    return InputError("; ".join([f"nothing to do: {found}", *filter(None, instead)]))


def but_ignored(path: str) -> str:
    """Return what follows "no images" where only an ignored one, `path`, is there; "" if there is none."""
    return f" but ignored ones, such as {display_name(path)} (see --ignore)" if path else ""


def find_inputs(
    names: Iterable[str | os.PathLike[str]],
    *,
    stdin: BinaryIO | None = None,
    also: Collection[str] = (),
    ignore: Collection[str] = IGNORED,
    passed_over: PassedOver | None = None,
) -> Iterator[str]:
    """Yield the path of every image that `names` lead to, in their order.

    A file is yielded as it is named, whether it exists or not; blanks and quotes around a name, `~` and file URLs are
    understood where there is no file of that very name. A folder yields its images, recursively, sorted by name,
    without what the patterns `ignore` leave out (`taxonomy.folders.Ignore`); each folder is entered once, so links may
    form loops. A folder without images is yielded itself; reading it gives the error. `-` stands for the list on
    `stdin` (standard input if None), as `hierclass.images.path_lists.read_list` reads it. Files with one of the endings
    `also` count as images; the other files in folders are counted in `passed_over`.

    Raises:
        InputError: there were only empty folders and lists (after the last path), or standard input holds no list.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    endings = scanned_endings() | frozenset(also)
    num_files = 0
    folder, asked = "", list[str]()
    for name in _expand(_noted(names, asked), stdin):
        if not os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            num_files += 1
            yield name
            continue
        folder = name
        empty = True
        for path in _walk(name, endings, Ignore(ignore, name), passed_over):
            empty = False
            num_files += 1
            yield path
        if empty:
            yield name
    if num_files == 0:
        found = "the list on standard input is empty" if asked else "no image is named"
        if folder:
            why = what_else(folder)
            ignored = next(_walk(folder, endings, Ignore(()), PassedOver()), "")
            found = f"no images in the folder {display_name(folder)}"
            found = found + but_ignored(ignored) if why == _NO_IMAGES else f"{display_name(folder)} {why}"
        raise nothing_to_do(found, passed_over)


def check_named(name: str | os.PathLike[str]) -> None:
    """Raise InputError if a file that somebody names is a list, a table, packed or rather an option; say what to do."""
    path = as_meant(os.fspath(name))
    if is_option(path) and not os.path.lexists(path):
        raise InputError(f"{display_name(path)} is taken for a file after --; options are given before it")
    if why := why_no_image(path):
        how = f"; leave it out, or give it as a list: {command}" if (command := how_to_label(path)) else ""
        raise InputError(f"{display_name(path)} {why}{how}")


def what_else(path: str) -> str:
    """Say what a path is that can't be read as an image: a folder, a list, a table or packed; "" for another file."""
    if not os.path.isdir(path):  # noqa: PTH112 - raises nothing where a name is too long
        return why_no_image(path)
    try:
        os.scandir(path).close()
    except OSError as error:
        return f"is a folder that can't be listed: {(error.strerror or str(error)).lower()}"
    return _NO_IMAGES


def display_name(path: str | os.PathLike[str]) -> str:
    """Return a path as valid UTF-8 text; other bytes are written as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def ending_of(name: str) -> str:
    """Return the ending of a file's name, with the dot and in lower case; empty if it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - PurePath takes three times as long


def _noted(names: Iterable[str | os.PathLike[str]], asked: list[str]) -> Iterator[str]:
    """Pass names on; note in `asked` that there was one for standard input."""
    for name in names:
        if os.fspath(name) == STANDARD_INPUT:
            asked.append(STANDARD_INPUT)
        yield os.fspath(name)


def _expand(names: Iterable[str], stdin: BinaryIO | None) -> Iterator[str]:
    for name in names:
        if name == STANDARD_INPUT:
            if stdin is None and sys.stdin is None:
                raise InputError("standard input is closed; name image files or folders")
            yield from read_list(sys.stdin.buffer if stdin is None else stdin)
        else:
            yield as_meant(name)


def _walk(folder: str, endings: Collection[str], ignore: Ignore, passed_over: PassedOver) -> Iterator[str]:
    """Yield the images under a folder; a stack of sorted listings in place of recursion, so depth is unlimited."""
    entered = {_identity(folder)}
    stack = [iter(_listing(folder, folder, ignore) or ())]
    while stack:
        path, is_folder = next(stack[-1], ("", False))
        if not path:
            stack.pop()
        elif not is_folder:
            if ending_of(path) in endings:
                yield path
            else:
                passed_over.add(path)
        elif (identity := _identity(path)) not in entered:
            entered.add(identity)
            listing = _listing(path, folder, ignore)
            # A folder that can't be listed, and an empty one called photo.jpg, would be missed by the user.
            if listing is None or (not listing and ending_of(path) in endings):
                yield path
            else:
                stack.append(iter(listing))


def _listing(folder: str, root: str, ignore: Ignore) -> list[tuple[str, bool]] | None:
    """Return (path, is a folder) of a folder's entries under a root, sorted by name; None if it can't be listed."""
    try:
        with os.scandir(folder) as scan:
            entries = [e for e in scan if not ignore(e.name, e.path[len(root) :].lstrip(os.sep))]
            if {entry.name for entry in entries} >= _OF_RUNS:  # files of ours, which nobody misses
                entries = [entry for entry in entries if entry.name not in _OF_RUNS | _TABLES]
            return sorted((entry.path, _is_folder(entry)) for entry in entries)
    except OSError:
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int] | str:
    try:
        status = Path(folder).stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino
