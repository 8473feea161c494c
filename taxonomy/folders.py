"""Trees of class folders, like animal/dog/chihuahua/*.jpg: which folders are leaves. Opens no image."""

import os
from pathlib import Path

from taxonomy.check import listed
from taxonomy.errors import TaxonomyError

MAX_DEPTH = 64
# What counts as an image in a folder, for trees, labelling and training alike; a file that is named is judged by
# its content. HEIC is listed although it is not read: a row that says so is better than a silently missing one.
# fmt: off
IMAGE_ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm",
))
# fmt: on


def spaced(part: str) -> str:
    """The display name of a folder: spaces for underscores."""
    return " ".join(part.replace("_", " ").split()) or part


def leaf_folders(folder: Path, parts: tuple[str, ...], chain: tuple[Path, ...]) -> list[tuple[str, ...]]:
    """Find the leaf folders at and below a folder.

    Args:
        folder: where to look.
        parts: the way from the top folder to this one.
        chain: the resolved folders from the top folder to this one.

    Returns:
        The ways from the top folder to each leaf folder, sorted; only the empty way where the top folder
        has no folders in it.

    Raises:
        TaxonomyError: a folder cannot be read, or holds images beside folders.
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
    if parts and any(
        Path(entry.name).suffix.lower() in IMAGE_ENDINGS and entry.is_file() for entry in entries
    ):
        text = f"{folder}: holds images and also folders ({listed(folders)})"
        raise TaxonomyError(f"{text}; move the images into a folder of their own, or the folders elsewhere")
    found = []
    for name in folders:
        below = folder / name
        found += leaf_folders(below, (*parts, name), (*chain, below.resolve()))
    return found


def _is_class_folder(entry: os.DirEntry[str], chain: tuple[Path, ...]) -> bool:
    """Whether an entry is a visible folder, and no link to a folder on the way down here or above it."""
    try:
        if entry.name.startswith(".") or not entry.is_dir():
            return False
        return not (entry.is_symlink() and chain[-1].is_relative_to(Path(entry.path).resolve()))
    except (OSError, RuntimeError):  # a link to itself
        return False
