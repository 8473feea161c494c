"""Labelled images from folders and Parquet files, and the split that is held out.

A sample is an image and its leaf; the classes of coarser tiers are projected from the leaf, never stored.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images import read_image
from taxonomy import Taxonomy
from taxonomy.folders import IMAGE_ENDINGS

logger = logging.getLogger(__name__)

LeafArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their leaves.

    ``sources`` hold a path or the bytes of a file, or an already decoded (H, W, 3) uint8 array; ``names`` are
    file names for people and for splits; ``leaves`` (N,) are leaf indices of the taxonomy.
    """

    sources: Sequence[Path | bytes | npt.NDArray[np.uint8]]
    names: Sequence[str]
    leaves: LeafArray

    def __len__(self) -> int:
        return len(self.leaves)

    def image(self, index: int, min_side: int | None = None) -> Image.Image:
        """The RGB image at an index; an unreadable one raises `ImageError` with its name."""
        source = self.sources[index]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source)
        try:
            return read_image(source, min_side=min_side)
        except ImageError as error:
            raise ImageError(f"{self.names[index]}: {error}") from error

    def subset(self, indices: LeafArray) -> ImageSet:
        """The samples at the given indices, in that order."""
        picked = indices.tolist()
        return ImageSet(
            [self.sources[i] for i in picked], [self.names[i] for i in picked], self.leaves[indices]
        )


class LeafNames:
    """Finds the leaf that a label names: by id, by display name, or by display name with underscores."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Index the leaves of a taxonomy."""
        self.taxonomy = taxonomy
        self._index: dict[str, int] = {}
        for index, leaf in enumerate(taxonomy.leaves):
            name = taxonomy.node(leaf).name
            for key in (name.replace(" ", "_"), name):
                self._index.setdefault(key, index)
        self._index.update({leaf: index for index, leaf in enumerate(taxonomy.leaves)})

    def find(self, label: str) -> int | None:
        """Leaf index of a label, or None."""
        return self._index.get(label)

    def require(self, label: str, where: str) -> int:
        """Leaf index of a label; one that the taxonomy lacks raises `InputError` naming it."""
        index = self.find(label)
        if index is None:
            raise InputError(
                f"{where}: label {label!r} is no leaf of taxonomy {self.taxonomy.name!r}; "
                f"its leaves are {', '.join(self.taxonomy.leaves[:3])}, …"
            )
        return index


def read_images(paths: Iterable[str | Path], taxonomy: Taxonomy) -> ImageSet:
    """List the labelled images of Parquet files and of folders (of Parquet files or of class folders).

    A Parquet file has columns ``image`` (bytes, or a struct with ``bytes``), ``wnid`` and optionally
    ``name``. In class folders the deepest folder on an image's path that names a leaf is its label. Parquet
    files are read into memory. Raises `InputError` for a missing path, a missing column, a label that the
    taxonomy lacks, or no image at all.
    """
    labels = LeafNames(taxonomy)
    parts: list[ImageSet] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} does not exist")
        tables = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
        if tables:
            parts += [_read_parquet(table, labels) for table in tables]
        else:
            parts.append(_read_folder(path, labels))
    if not sum(map(len, parts)):
        raise InputError("no images found; --data takes Parquet files, or folders of class folders")
    return ImageSet(
        [source for part in parts for source in part.sources],
        [name for part in parts for name in part.names],
        np.concatenate([part.leaves for part in parts]),
    )


def _read_parquet(path: Path, labels: LeafNames) -> ImageSet:
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
    wnids = [str(value) for value in table.column("wnid").to_pylist()]
    found = {wnid: labels.require(wnid, path.name) for wnid in sorted(set(wnids))}
    names = (
        [str(value) for value in table.column("name").to_pylist()]
        if "name" in columns
        else [f"{path.name} row {row}" for row in range(len(sources))]
    )
    return ImageSet(sources, names, np.array([found[wnid] for wnid in wnids], dtype=np.int64))


def _read_folder(path: Path, labels: LeafNames) -> ImageSet:
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_ENDINGS and f.is_file())
    found: dict[Path, int] = {}
    for folder in sorted({file.parent for file in files}):
        relative = folder.relative_to(path)
        candidates = [relative.as_posix(), *reversed(relative.parts)]
        matches = [index for index in map(labels.find, candidates) if index is not None]
        found[folder] = matches[0] if matches else labels.require(relative.name or path.name, str(path))
    return ImageSet(
        list(files),
        [str(f.relative_to(path)) for f in files],
        np.array([found[f.parent] for f in files], dtype=np.int64),
    )


def decode_small(images: ImageSet, *, max_side: int, max_bytes: int = 8 << 30) -> tuple[ImageSet, list[str]]:
    """Decode the small images once, so that no epoch pays for it; drop what cannot be read.

    Images with both sides up to ``max_side`` pixels become arrays, until they fill ``max_bytes``; larger ones
    stay as they are and are decoded whenever they are used. Returns the readable images and one message per
    unreadable one.
    """

    def decode(index: int) -> Path | bytes | npt.NDArray[np.uint8] | ImageError:
        source = images.sources[index]
        try:
            if isinstance(source, Path):
                source = source.read_bytes() if source.stat().st_size <= max_side * max_side * 3 else source
                if isinstance(source, Path):
                    return source
            image = images.image(index)
            return np.asarray(image, dtype=np.uint8) if max(image.size) <= max_side else images.sources[index]
        except (ImageError, OSError) as error:
            return error if isinstance(error, ImageError) else ImageError(f"{images.names[index]}: {error}")

    sources: list[Path | bytes | npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    errors: list[str] = []
    used = 0
    with ThreadPoolExecutor() as pool:
        for index, decoded in enumerate(pool.map(decode, range(len(images)))):
            if isinstance(decoded, ImageError):
                errors.append(str(decoded))
                continue
            if isinstance(decoded, np.ndarray):
                used += decoded.nbytes
            kept.append(index)
            sources.append(images.sources[index] if used > max_bytes else decoded)
    indices = np.array(kept, dtype=np.int64)
    return ImageSet(sources, [images.names[i] for i in kept], images.leaves[indices]), errors


def split_by_number(names: Sequence[str], dev_from: int) -> tuple[LeafArray, LeafArray]:
    """Indices of the training and of the dev samples; dev is numbered ``dev_from`` and up by file name.

    ``n01443537_450.JPEG`` has number 450, the last run of digits before the ending. A name without a number
    raises `InputError`.
    """
    numbers = np.empty(len(names), dtype=np.int64)
    for index, name in enumerate(names):
        found = re.search(r"(\d+)(?:\.\w+)?$", name)
        if found is None:
            raise InputError(
                f"image {name!r} has no number in its name; use --dev-share instead of --dev-from"
            )
        numbers[index] = int(found.group(1))
    return np.flatnonzero(numbers < dev_from), np.flatnonzero(numbers >= dev_from)


def split_by_share(leaves: LeafArray, share: float, seed: int) -> tuple[LeafArray, LeafArray]:
    """Indices of the training and of the dev samples: a share of each leaf, drawn deterministically.

    Raises `InputError` when a leaf has too few images for a stratified split.
    """
    from sklearn.model_selection import train_test_split

    try:
        train, dev = train_test_split(
            np.arange(len(leaves)), test_size=share, stratify=leaves, random_state=seed
        )
    except ValueError as error:
        raise InputError(f"--dev-share {share} cannot be held out: {error}".splitlines()[0]) from error
    return np.sort(train), np.sort(dev)


def split(
    images: ImageSet, *, dev_from: int | None, dev_share: float, seed: int
) -> tuple[LeafArray, LeafArray]:
    """Training and dev indices by number where ``dev_from`` is given, else by share; neither may be empty."""
    if dev_from is not None:
        train, dev = split_by_number(images.names, dev_from)
    else:
        train, dev = split_by_share(images.leaves, dev_share, seed)
    if not len(train) or not len(dev):
        raise InputError(
            f"the split leaves {len(train)} images to train on and {len(dev)} held out; change it"
        )
    return train, dev
