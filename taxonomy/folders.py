"""Trees of class folders, like animal/dog/chihuahua/*.jpg, read as taxonomies. Opens no image."""

import fnmatch
import functools
import itertools
import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from taxonomy.errors import TaxonomyError
from taxonomy.rows import from_folder_paths
from taxonomy.tree import Taxonomy

MAX_DEPTH = 64
_LONGEST_PATH = 4096
"""Characters of a path in an archive whose folders are compared with patterns of paths; no system has longer ones."""
# fmt: off
IGNORED = (
    ".*", "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@__thumb", "@tmp", "$RECYCLE.BIN",
    "RECYCLER", "System Volume Information", "Thumbs.db", "ehthumbs*.db", "desktop.ini", "__MACOSX", "Icon\r",
    "lost+found",
)
# fmt: on
"""Patterns of files and folders that no search takes unless they are named: hidden ones (a dot first, as of
`.thumbnails`, `.DS_Store` and `._a.jpg`), and what Synology, QNAP, Windows, macOS and Linux leave behind."""


class Ignore:
    """Tells by their names what a search of folders leaves out."""

    def __init__(self, patterns: Iterable[str] = IGNORED, folder: str = "") -> None:
        """Take patterns of names as in a shell (`fnmatch`), in any case; with / inside, of paths (`*` matches /).

        Paths are those under the folder that is searched; patterns may begin with it.
        """
        tidied = [each.replace(os.sep, "/").rstrip("/").removeprefix("./") for each in patterns]
        for start in (os.path.normpath(folder), os.path.abspath(folder)) if folder else ():  # noqa: PTH100
            prefix = start.replace(os.sep, "/").rstrip("/") + "/"
            tidied = [each.replace(prefix, "/", 1) if each.startswith(prefix) else each for each in tidied]
        self._name = _any_of(each for each in tidied if "/" not in each)
        self._path = _any_of(each.removeprefix("/") for each in tidied if "/" in each)

    def __call__(self, name: str, path: str = "") -> bool:
        """Return whether a file or folder of this name, and of this path, is left out."""
        if self._name is not None and self._name.match(name):
            return True
        return self._path is not None and self._path.match(path.replace(os.sep, "/")) is not None

    def any_part(self, path: str) -> bool:
        """Return whether a path in an archive, with / between its parts, or a folder on its way is left out."""
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if self._path is None or len(path) > _LONGEST_PATH:  # the square of a path's length is a time
            return any(map(self, parts))
        return any(map(self, parts, itertools.accumulate(parts, "{}/{}".format)))


def _any_of(patterns: Iterable[str]) -> re.Pattern[str] | None:
    parts = [fnmatch.translate(pattern) for pattern in patterns if pattern]
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None


@functools.cache
def usually_ignored() -> Ignore:
    """What is left out where nobody says otherwise: `IGNORED`."""
    return Ignore()


def from_folder(path: str | PathLike[str]) -> Taxonomy:
    """Read a tree of class folders like animal/dog/chihuahua/*.jpg.

    A leaf is a folder without folders in it; images beside folders show an inner node. Its class in tier k is the k-th
    folder of its path; a leaf of a shorter path is its own class in the finer tiers. Ids are the folders' relative
    paths with "/", so that a leaf's images are found by its id; names are the folders' names with spaces for
    underscores. Hidden folders, those of NAS and desktops (`IGNORED`) and links that lead back up are ignored.

    Raises:
        TaxonomyError: the folder cannot be read or has no class folders.
    """
    path = Path(path)
    if not path.is_dir():
        raise TaxonomyError(f"{path}: no such folder; give the folder that holds the class folders")
    leaves = _leaf_folders(path, (), (path.resolve(),))
    if leaves == [()]:
        raise TaxonomyError(
            f"{path}: no class folders in it; expected folders like {path / 'animal' / 'dog'}/*.jpg"
        )
    return from_folder_paths(leaves, name=path.resolve().name)


def _leaf_folders(folder: Path, parts: tuple[str, ...], chain: tuple[Path, ...]) -> list[tuple[str, ...]]:
    """Find the leaf folders at and below a folder.

    Args:
        folder: where to look.
        parts: names of the folders from the top folder (without it) to this one.
        chain: the resolved folders from the top folder to this one.

    Returns:
        For each leaf folder the names of the folders that lead to it, sorted; only () where the top folder has no
        folders in it.

    Raises:
        TaxonomyError: a folder cannot be read.
    """
    if len(parts) > MAX_DEPTH:
        raise TaxonomyError(
            f"{folder}: more than {MAX_DEPTH} folders deep; give the folder of the class folders"
        )
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise TaxonomyError(f"{folder}: cannot be read ({error.strerror})") from None
    folders = [entry.name for entry in entries if _is_class_folder(entry, chain)]
    if not folders:
        return [parts]
    found = []
    for name in folders:
        below = folder / name
        found += _leaf_folders(below, (*parts, name), (*chain, below.resolve()))
    return found


def _is_class_folder(entry: os.DirEntry[str], chain: tuple[Path, ...]) -> bool:
    """Whether an entry is a folder that counts, and no link to a folder on the way down here or above it."""
    try:
        if usually_ignored()(entry.name) or not entry.is_dir():
            return False
        return not (entry.is_symlink() and chain[-1].is_relative_to(Path(entry.path).resolve()))
    except (OSError, RuntimeError):  # a link to itself
        return False
