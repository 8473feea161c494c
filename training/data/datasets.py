"""List labelled images of Parquet files, class folders and named data sets, with labels as found.

photos/            class folders, at any depth; with train/ and val/ inside, val/ is held out
images.parquet     columns image, wnid and, optionally, name
imagefolder:DIR    class folders of one level, as torchvision's ImageFolder reads them; train/ and val/ likewise
imagenet:DIR       train/ and val/, each with a folder per synset id
cifar100:DIR       the files of CIFAR-100 for Python, read by torchvision
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hierclass.errors import InputError
from hierclass.images.discovery import display_name, find_inputs
from taxonomy.folders import IMAGE_ENDINGS

LabelPath = tuple[str, ...]
"""Folder names on the path to an image, outermost first; for table rows the label alone."""
Source = Path | bytes | npt.NDArray[np.uint8]
NAMES = ("cifar100", "imagefolder", "imagenet")
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
"""Folder names of a data set that comes split."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageListing:
    """Labelled images from one place.

    ``sources`` hold a path, the bytes of a file, or a decoded (H, W, 3) uint8 array; ``names`` are for messages and
    splits; ``ways`` are the labels; ``held_out`` images must not be trained on.
    """

    where: str
    sources: Sequence[Source]
    names: Sequence[str]
    ways: Sequence[LabelPath]
    held_out: bool = False


def split_name(data: str) -> tuple[str, Path]:
    """Split ``"cifar100:/data"`` into name and path; a plain path has an empty name."""
    name, colon, path = data.partition(":")
    return (name, Path(path)) if colon and name in NAMES else ("", Path(data))


def absolute(data: str) -> str:
    """The data with an absolute path."""
    name, path = split_name(data)
    return f"{name}:{path.absolute()}" if name else str(path.absolute())


def list_images(data: str, *, held_out_only: bool = False) -> Iterator[ImageListing]:
    """List the labelled images of a path or a named data set, sorted by name.

    ``held_out_only`` skips the training part of a data set that comes split (val/ alone, or CIFAR-100's test images).
    Parquet files are read into memory. Raises `InputError` for what is missing or can't be read.
    """
    name, path = split_name(data)
    if not path.exists():
        raise InputError(f"{display_name(path)} does not exist")
    if name == "cifar100":
        from training.data.cifar import read_cifar100

        yield read_cifar100(path, train=not held_out_only)
        return
    tables = sorted(path.glob("**/*.parquet")) if path.is_dir() and not name else [path]
    if tables and not name:
        for table in tables:
            yield _read_parquet(table)
        return
    parts = divided(path)
    if parts is None and name == "imagenet":
        raise InputError(
            f"{path}: imagenet expects the folders train and val in it, each with a folder per synset id like "
            "n02084071; for other folders give the path alone"
        )
    train, val = parts or (path, None)
    if val is None or not held_out_only:
        yield _list_folder(train, one_level=bool(name))
    if val is not None:
        yield _list_folder(val, one_level=bool(name), held_out=True)


def divided(path: Path) -> tuple[Path, Path] | None:
    """The folders train and val of a folder that holds these and at most a folder test beside them, else None."""
    if not path.is_dir():
        return None
    folders = {
        entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."
    }
    train = [folders[name] for name in TRAIN if name in folders]
    val = [folders[name] for name in VAL if name in folders]
    if len(train) == len(val) == 1 and folders.keys() <= {*TRAIN, *VAL, *TEST}:
        return train[0], val[0]
    return None


def _list_folder(path: Path, *, one_level: bool, held_out: bool = False) -> ImageListing:
    try:
        files = sorted(Path(file) for file in find_inputs([path]) if _is_image(file))
    except InputError as error:  # nothing there, which the reader of all parts says better; or not readable
        if not str(error).startswith("nothing to do"):
            raise
        files = []
    ways = [file.relative_to(path).parts[:-1] for file in files]
    loose = [file.name for file, way in zip(files, ways, strict=True) if not way]
    if loose and (len(loose) < len(files) or held_out or one_level):
        some = ", ".join(map(display_name, loose[:3])) + (", …" if len(loose) > 3 else "")
        raise InputError(
            f"{display_name(path)} holds {len(loose)} images beside its class folders ({some}); move them into one"
            if len(loose) < len(files)
            else f"{display_name(path)} holds images ({some}), but no class folders; make a folder for each class"
        )
    if one_level:
        ways = [way[:1] for way in ways]
    elif loose:
        ways = [(path.resolve().name,)] * len(files)
    names = [display_name(file.relative_to(path)) for file in files]
    return ImageListing(display_name(path), files, names, ways, held_out)


def _is_image(file: str) -> bool:
    """Whether a path is an image by its name; raises `InputError` for a folder that can't be listed."""
    if Path(file).suffix.lower() in IMAGE_ENDINGS and not os.path.isdir(file):  # noqa: PTH112
        return True
    if os.path.isdir(file) and not os.access(file, os.R_OK | os.X_OK):  # noqa: PTH112
        raise InputError(f"{display_name(file)}: this folder can't be listed; change its permissions")
    return False


def _read_parquet(path: Path) -> ImageListing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        missing = [column for column in ("image", "wnid") if column not in columns]
        if missing:
            raise InputError(f"{path}: no column {' and '.join(missing)}; there are {', '.join(columns)}")
        table = pq.read_table(path, columns=[c for c in ("image", "wnid", "name") if c in columns])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}".splitlines()[0]) from error
    images = table.column("image")
    if pa.types.is_struct(images.type):
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
    sources: list[bytes] = [value or b"" for value in images.to_pylist()]
    ways = [(str(value),) for value in table.column("wnid").to_pylist()]
    names = (
        [str(value) for value in table.column("name").to_pylist()]
        if "name" in columns
        else [f"{path.name} row {row}" for row in range(len(sources))]
    )
    return ImageListing(path.name, sources, names, ways)
