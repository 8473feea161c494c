"""Labelled images from folders and Parquet files, and the split that is held out.

A sample is an image and its leaf; the classes of coarser tiers are projected from the leaf, never stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_image
from hierclass.images.discovery import display_name
from taxonomy import Taxonomy
from taxonomy.labels import LeafNames
from training.data.datasets import ImageListing, LabelPath, Source, list_images

LeafArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their leaves.

    ``sources`` hold a path or the bytes of a file, or an already decoded (H, W, 3) uint8 array; ``names`` are
    file names for people and for splits; ``leaves`` (N,) are leaf indices of the taxonomy; ``held_out`` (N,) says
    which images the data itself keeps from training, None: it does not say.
    """

    sources: Sequence[Source]
    names: Sequence[str]
    leaves: LeafArray
    held_out: npt.NDArray[np.bool_] | None = None

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
        held_out = None if self.held_out is None else self.held_out[indices]
        return ImageSet(
            [self.sources[i] for i in picked], [self.names[i] for i in picked], self.leaves[indices], held_out
        )


def read_images(paths: Iterable[str | Path], taxonomy: Taxonomy, *, held_out_only: bool = False) -> ImageSet:
    """List the labelled images of Parquet files, class folders and data sets by name (`training.data.datasets`).

    A label is a leaf's id or name, however it is written (`taxonomy.labels`); in class folders the deepest folder on
    an image's path that names a leaf is its label. ``held_out_only`` leaves out what a data set that comes divided
    has for training. Raises `InputError` for a missing path, a missing column, a label that the taxonomy lacks, or
    no image at all.
    """
    labels = LeafNames(taxonomy)
    listings = [part for path in paths for part in list_images(str(path), held_out_only=held_out_only)]
    if not any(part.ways for part in listings):
        raise InputError("no images found; `data` takes Parquet files, or folders of class folders")
    held_out = [np.full(len(part.ways), part.held_out) for part in listings]
    return ImageSet(
        [source for part in listings for source in part.sources],
        [name for part in listings for name in part.names],
        np.concatenate([_leaves(part, labels) for part in listings]),
        np.concatenate(held_out) if any(part.held_out for part in listings) else None,
    )


def _leaves(listing: ImageListing, labels: LeafNames) -> LeafArray:
    found: dict[LabelPath, int] = {}
    for way in sorted(set(listing.ways)):
        leaf = labels.find_folder(way)
        if leaf is None:
            raise InputError(f"{listing.where}: {labels.missing(display_name('/'.join(way)))}")
        found[way] = leaf
    return np.array([found[way] for way in listing.ways], dtype=np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that cannot be read: its name, and why in a few words."""

    name: str
    error: str

    def __str__(self) -> str:
        """Name and reason in one line."""
        return f"{self.name}: {self.error}"


def decode_small(
    images: ImageSet, *, max_side: int, max_bytes: int = 8 << 30
) -> tuple[ImageSet, list[Unreadable]]:
    """Decode the small images once, so that no epoch pays for it; drop what cannot be read.

    Images with both sides up to ``max_side`` pixels become arrays, until they fill ``max_bytes``; larger ones
    stay as they are and are decoded whenever they are used. Returns the readable images and the unreadable ones.
    """

    def decode(index: int) -> Source | Unreadable:
        source = images.sources[index]
        if isinstance(source, np.ndarray):
            return source
        try:
            if isinstance(source, Path):
                source = source.read_bytes() if source.stat().st_size <= max_side * max_side * 3 else source
                if isinstance(source, Path):
                    return source
            image = read_image(source)
            return np.asarray(image, dtype=np.uint8) if max(image.size) <= max_side else images.sources[index]
        except (ImageError, OSError) as error:
            return Unreadable(images.names[index], getattr(error, "strerror", None) or str(error))

    sources: list[Source] = []
    kept: list[int] = []
    errors: list[Unreadable] = []
    used = 0
    with ThreadPoolExecutor() as pool:
        for index, decoded in enumerate(pool.map(decode, range(len(images)))):
            if isinstance(decoded, Unreadable):
                errors.append(decoded)
                continue
            if isinstance(decoded, np.ndarray):
                used += decoded.nbytes
            kept.append(index)
            sources.append(images.sources[index] if used > max_bytes else decoded)
    readable = images.subset(np.array(kept, dtype=np.int64))
    return dataclasses.replace(readable, sources=sources), errors


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
                f"image {name!r} has no number in its name; use `dev_share` instead of `dev_from`"
            )
        numbers[index] = int(found.group(1))
    return np.flatnonzero(numbers < dev_from), np.flatnonzero(numbers >= dev_from)


def split_by_share(leaves: LeafArray, share: float, seed: int) -> tuple[LeafArray, LeafArray]:
    """Indices of the training and of the dev samples: a share of each leaf, drawn deterministically.

    Where a stratified split would leave out a leaf, the share of each is rounded, at least one image of those that
    have two; the only image of a leaf is trained on. Raises `InputError` when none can be held out, or for a share
    that is none.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise InputError(f"`dev_share` {share}: give more than 0, less than 1")
    places, known = np.arange(len(leaves)), np.unique(leaves)
    dev = places[:0]
    with contextlib.suppress(ValueError):  # a leaf with one image, or fewer held-out images than leaves
        _, dev = train_test_split(places, test_size=share, stratify=leaves, random_state=seed)
    if len(np.unique(leaves[dev])) < len(known):
        dev = np.concatenate([_draw(np.flatnonzero(leaves == leaf), share, (seed, leaf)) for leaf in known])
    if not len(dev):
        raise InputError(
            f"`dev_share` {share} cannot be held out: every class has a single image; add images"
        )
    return np.setdiff1d(places, dev), np.sort(dev)


def _draw(own: LeafArray, share: float, seed: tuple[int, int]) -> LeafArray:
    count = min(max(round(share * len(own)), 1), len(own) - 1)
    return np.random.default_rng(seed).permutation(own)[:count]


def split(
    images: ImageSet, *, dev_from: int | None, dev_share: float, seed: int
) -> tuple[LeafArray, LeafArray]:
    """Training and dev indices; neither may be empty.

    What the data itself holds out is the dev split; else it is made by number where ``dev_from`` is given, else by
    share. Raises `InputError` where that leaves nothing on a side, or ``dev_from`` is given for divided data.
    """
    if images.held_out is not None:
        if dev_from is not None:
            raise InputError("the data has a folder of held-out images (val); leave `dev_from` out")
        train, dev = np.flatnonzero(~images.held_out), np.flatnonzero(images.held_out)
    elif dev_from is not None:
        train, dev = split_by_number(images.names, dev_from)
    else:
        train, dev = split_by_share(images.leaves, dev_share, seed)
    if not len(train) or not len(dev):
        what, advice = "the split", "add images"
        if dev_from is not None:
            what, advice = f"`dev_from` {dev_from}", "give a number between those of the file names"
        elif images.held_out is not None:
            what = "the data's own split"
        raise InputError(f"{what} leaves {len(train)} images to train on and {len(dev)} held out; {advice}")
    return train, dev
