"""Trees of class folders, like animal/dog/chihuahua/*.jpg, read as taxonomies. Opens no image."""

import os
from os import PathLike
from pathlib import Path

from taxonomy.errors import TaxonomyError
from taxonomy.rows import from_folder_paths
from taxonomy.tree import Taxonomy

MAX_DEPTH = 64


def from_folder(path: str | PathLike[str]) -> Taxonomy:
    """Read a tree of class folders like animal/dog/chihuahua/*.jpg.

    A leaf is a folder without folders in it; images beside folders show an inner node. Its class in tier k is the k-th
    folder of its path; a leaf of a shorter path is its own class in the finer tiers. Ids are the folders' relative
    paths with "/", so that a leaf's images are found by its id; names are the folders' names with spaces for
    underscores. Hidden folders and links that lead back up are ignored.

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
    """Whether an entry is a visible folder, and no link to a folder on the way down here or above it."""
    try:
        if entry.name.startswith(".") or not entry.is_dir():
            return False
        return not (entry.is_symlink() and chain[-1].is_relative_to(Path(entry.path).resolve()))
    except (OSError, RuntimeError):  # a link to itself
        return False
