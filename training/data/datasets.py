"""List labelled images of tables, class folders and named data sets, with labels as found.

photos/            class folders, at any depth; with train/ and val/ inside, val/ is held out
labels.csv         columns path, label and, optionally, split (`training.data.tables`); likewise .tsv and .parquet
images.parquet     columns image, label (or wnid) and, optionally, name and split
imagefolder:DIR    class folders of one level, as torchvision's ImageFolder reads them; train/ and val/ likewise
imagenet:DIR       train/ and val/, each with a folder per synset id
cifar100:DIR       the files of CIFAR-100 for Python, read by torchvision
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hierclass.errors import InputError
from hierclass.images.discovery import display_name, find_inputs
from hierclass.images.kinds import scanned_endings
from taxonomy import TaxonomyError
from taxonomy.folders import from_folder, usually_ignored

LabelPath = tuple[str, ...]
"""Folder names on the path to an image, outermost first; of table rows the parts of the label, split at "/"."""
Source = Path | bytes | npt.NDArray[np.uint8]
NAMES = ("cifar100", "imagefolder", "imagenet")
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
"""Folder names, and words in tables, of a data set that comes split."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageListing:
    """Labelled images from one place.

    ``sources`` hold a path, the bytes of a file, or a decoded (H, W, 3) uint8 array; ``names`` are for messages and
    splits; ``ways`` are the labels; ``held_out`` images must not be trained on, and labels that a model ``guessed`` are
    there to be trained on alone. ``rows`` and ``column`` say where in a table the labels stand; they are empty for
    folders. ``notes`` say what was left out.
    """

    where: str
    sources: Sequence[Source]
    names: Sequence[str]
    ways: Sequence[LabelPath]
    held_out: bool = False
    guessed: bool = False
    rows: Sequence[int] = ()
    column: str = ""
    notes: Sequence[str] = ()

    def place(self, way: LabelPath) -> str:
        """Where a label stands first: in which folder, or in which row and column of a table."""
        if not self.column:
            return self.where
        return cell(self.where, self.rows[self.ways.index(way)], self.column)


def cell(where: str, row: int, column: str) -> str:
    """Name a cell of a table: "labels.csv row 7, column label"."""
    return f"{where} row {row}, column {column}"


def split_name(data: str) -> tuple[str, Path]:
    """Split ``"cifar100:/data"`` into name and path; a plain path has an empty name."""
    name, colon, path = data.partition(":")
    return (name, Path(path)) if colon and name in NAMES else ("", Path(data))


def absolute(data: str) -> str:
    """The data with an absolute path."""
    name, path = split_name(data)
    return f"{name}:{path.absolute()}" if name else str(path.absolute())


def list_images(data: str, *, part: str = "all", pseudo_labels: bool = False) -> Iterator[ImageListing]:
    """List the labelled images of a path or a named data set, sorted by name, or in the order of a table.

    ``part`` "all" lists training and validation images; "val" and "test" skip the training part of a data set that
    comes split (val/ alone, CIFAR-100's test images, or that part of a table). ``pseudo_labels`` takes the guesses in
    tables of ``hierclass label``. Images in Parquet files are read into memory. Raises `InputError` for what is missing
    or can't be read.
    """
    name, path = split_name(data)
    if not path.exists():
        raise InputError(f"{display_name(path)} does not exist")
    if name == "cifar100":
        from training.data.cifar import read_cifar100

        yield read_cifar100(path, train=part == "all")
        return
    tables = sorted(path.glob("**/*.parquet")) if path.is_dir() and not name else [path]
    if tables and not name:
        from training.data.tables import list_table

        for table in tables:
            yield from list_table(table, part=part, pseudo_labels=pseudo_labels)
        return
    parts = divided(path)
    if parts is None and name == "imagenet":
        raise InputError(
            f"{path}: imagenet expects the folders train and val in it, each with a folder per synset id like "
            "n02084071; for other folders give the path alone"
        )
    train, val = parts or (path, None)
    if val is None or part == "all":
        yield _list_folder(train, one_level=bool(name))
    if val is not None:
        yield _list_folder(val, one_level=bool(name), held_out=True)


def divided(path: Path) -> tuple[Path, Path] | None:
    """The folders train and val of a folder that holds these and at most a folder test beside them, else None."""
    if not path.is_dir():
        return None
    ignored = usually_ignored()
    folders = {
        entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir() and not ignored(entry.name)
    }
    train = [folders[name] for name in TRAIN if name in folders]
    val = [folders[name] for name in VAL if name in folders]
    if len(train) == len(val) == 1 and folders.keys() <= {*TRAIN, *VAL, *TEST}:
        return train[0], val[0]
    return None


def _list_folder(path: Path, *, one_level: bool, held_out: bool = False) -> ImageListing:
    try:
        endings = scanned_endings()
        files = sorted(Path(file) for file in find_inputs([path]) if _is_image(file, endings))
    except InputError as error:  # nothing there, which the reader of all parts says better; or not readable
        if not str(error).startswith("nothing to do"):
            raise
        files = []
    ways = [file.relative_to(path).parts[:-1] for file in files]
    loose = [file.name for file, way in zip(files, ways, strict=True) if not way]
    if loose and (len(loose) < len(files) or held_out or one_level):
        some = ", ".join(map(display_name, loose[:3])) + (", …" if len(loose) > 3 else "")
        number, them = ("1 image", "it") if len(loose) == 1 else (f"{len(loose)} images", "them")
        raise InputError(
            f"{display_name(path)} holds {number} beside its class folders ({some}); move {them} into one"
            if len(loose) < len(files)
            else f"{display_name(path)} holds images ({some}), but no class folders; make a folder for each class"
        )
    if one_level:
        ways = [way[:1] for way in ways]
    elif loose:
        ways = [(path.resolve().name,)] * len(files)
    names = [display_name(file.relative_to(path)) for file in files]
    empty = [] if loose or not files else _empty_folders(path, ways, one_level=one_level)
    return ImageListing(display_name(path), files, names, ways, held_out, notes=empty)


def _empty_folders(path: Path, ways: Sequence[LabelPath], *, one_level: bool) -> list[str]:
    """A note that names the class folders without an image."""
    if one_level:
        folders = [
            entry.name for entry in path.iterdir() if entry.is_dir() and not usually_ignored()(entry.name)
        ]
    else:
        folders = []
        with contextlib.suppress(TaxonomyError):  # of names that make no tree, said elsewhere
            folders = list(from_folder(path).leaves)
    used = {"/".join(way) for way in ways}
    empty = [display_name(folder) for folder in sorted(folders) if folder not in used]
    if not empty:
        return []
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    what = "a class folder holds no image" if len(empty) == 1 else f"{len(empty)} class folders hold no image"
    return [f"{display_name(path)}: {what}: {', '.join(empty[:5])}{more}"]


def _is_image(file: str, endings: Collection[str]) -> bool:
    """Whether a path is an image by its name; raises `InputError` for a folder that can't be listed."""
    if Path(file).suffix.lower() in endings and not os.path.isdir(file):  # noqa: PTH112
        return True
    if os.path.isdir(file) and not os.access(file, os.R_OK | os.X_OK):  # noqa: PTH112
        raise InputError(f"{display_name(file)}: this folder can't be listed; change its permissions")
    return False
