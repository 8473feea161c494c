"""Labelled images, and the split into training and held-out images.

A sample is an image and its label: a leaf, or an inner node, which says nothing of the tiers below it. The classes of
all tiers are looked up in `truth_table`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_image
from taxonomy import Taxonomy
from training.data.datasets import ImageListing, Source, list_images
from training.data.label_names import LabelNames
from training.data.tables import CORRECTED

LabelArray = npt.NDArray[np.int64]
UNKNOWN = -1
"""The class on a tier of which a label says nothing."""


def inner_nodes(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Ids of the nodes that an image may be labelled with although they are no leaves, in the order of the nodes.

    They are classes of a tier; the root is none of them.
    """
    classes = set(itertools.chain.from_iterable(taxonomy.tiers)) - set(taxonomy.leaves)
    return tuple(node.id for node in taxonomy.nodes[1:] if node.id in classes)


def truth_table(taxonomy: Taxonomy) -> LabelArray:
    """The class of every label on every tier, (num_labels, num_tiers), `UNKNOWN` where it says nothing.

    Labels are the leaves, then the `inner_nodes`.
    """
    inner = inner_nodes(taxonomy)
    table = np.full((len(taxonomy.leaves) + len(inner), taxonomy.num_tiers), UNKNOWN, dtype=np.int64)
    lines = [{node, *(above.id for above in taxonomy.ancestors(node))} for node in inner]
    for tier, classes in enumerate(taxonomy.tiers):
        table[: len(taxonomy.leaves), tier] = taxonomy.projection(tier)
        index = {node: place for place, node in enumerate(classes)}
        for row, line in enumerate(lines, start=len(taxonomy.leaves)):
            table[row, tier] = next((index[node] for node in line if node in index), UNKNOWN)
    return table


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their labels.

    ``sources`` hold a path, the bytes of a file, or a decoded (H, W, 3) uint8 array; ``names`` are for messages and
    splits; ``labels`` (N,) are rows of `truth_table`: below the number of leaves that leaf of the taxonomy, above it
    one of the `inner_nodes`; ``held_out`` (N,) marks images that a split data set holds out, None if the data is not
    split; ``guessed`` (N,) those whose label a model guessed, None if none is; ``notes`` say what was left out.
    """

    sources: Sequence[Source]
    names: Sequence[str]
    labels: LabelArray
    held_out: npt.NDArray[np.bool_] | None = None
    guessed: npt.NDArray[np.bool_] | None = None
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, min_side: int | None = None) -> Image.Image:
        """The RGB image at an index; raises `ImageError` with its name."""
        source = self.sources[index]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source)
        try:
            return read_image(source, min_side=min_side)
        except ImageError as error:
            raise ImageError(f"{self.names[index]}: {error}") from error

    def truth(self, taxonomy: Taxonomy) -> LabelArray:
        """The class of every image on every tier, (N, num_tiers), `UNKNOWN` where its label says nothing."""
        return truth_table(taxonomy)[self.labels]

    def subset(self, indices: LabelArray) -> ImageSet:
        """The samples at the given indices, in that order."""
        picked = indices.tolist()
        return ImageSet(
            [self.sources[i] for i in picked],
            [self.names[i] for i in picked],
            self.labels[indices],
            None if self.held_out is None else self.held_out[indices],
            None if self.guessed is None else self.guessed[indices],
            self.notes,
        )


def read_images(
    paths: Iterable[str | Path], taxonomy: Taxonomy, *, part: str = "all", pseudo_labels: bool = False
) -> ImageSet:
    """List the labelled images of paths and named data sets (`training.data.datasets`).

    A label is the id or name of a leaf or an inner node in any spelling (`training.data.label_names`); in class folders
    it is the deepest folder that names a leaf, else the last one. ``part`` and ``pseudo_labels`` as in `list_images`;
    a file that is given more than once counts once: a correction wins over another label, and that over a guess. Raises
    `InputError` for a missing path or column, a label that the taxonomy lacks, a file with two labels, no image at all,
    or ``pseudo_labels`` where nothing is guessed.
    """
    finder = LabelNames(taxonomy, inner_nodes(taxonomy))
    listings = [
        listing
        for path in paths
        for listing in list_images(str(path), part=part, pseudo_labels=pseudo_labels)
    ]
    if not any(listing.ways for listing in listings):
        raise InputError("no images found; `data` takes tables, or folders of class folders")
    if pseudo_labels and not any(listing.guessed for listing in listings):
        raise InputError("`pseudo_labels` has no effect: no table of `data` holds guesses; leave it out")
    images = ImageSet(
        [source for listing in listings for source in listing.sources],
        [name for listing in listings for name in listing.names],
        np.concatenate([_labels(listing, finder) for listing in listings]),
        _flags(listings, "held_out"),
        _flags(listings, "guessed"),
        [note for listing in listings for note in listing.notes],
    )
    ranks = [
        2 if listing.column == CORRECTED else 0 if listing.guessed else 1
        for listing in listings
        for _ in listing.ways
    ]
    return _each_file_once(images, ranks)


def _flags(listings: Sequence[ImageListing], name: str) -> npt.NDArray[np.bool_] | None:
    """A flag of listings for each of their images, None if it is nowhere set."""
    flags = [np.full(len(listing.ways), getattr(listing, name)) for listing in listings]
    return np.concatenate(flags) if any(each.any() for each in flags) else None


def _each_file_once(images: ImageSet, ranks: Sequence[int]) -> ImageSet:
    """The images without those of a file that has a label of a higher rank, or the same one, elsewhere.

    Counted twice, an image would be trained on and measured. Raises `InputError` for two labels of one rank.
    """
    kept: dict[str, int] = {}
    dropped, twice = set[int](), 0
    for index, source in enumerate(images.sources):
        if not isinstance(source, Path):
            continue
        file = os.path.abspath(source)  # noqa: PTH100 - Path.absolute keeps ".."
        other = kept.setdefault(file, index)
        if other == index:
            continue
        if ranks[index] == ranks[other] and images.labels[index] != images.labels[other]:
            raise InputError(
                f"{images.names[other]} and {images.names[index]} are one file with two labels; keep the right one"
            )
        twice += ranks[index] == ranks[other]
        kept[file] = max(other, index, key=lambda each: ranks[each])
        dropped.add(other + index - kept[file])
    if not dropped:
        return images
    rest = images.subset(np.setdiff1d(np.arange(len(images)), list(dropped)))
    many = "image is given twice and counts" if twice == 1 else "images are given twice and count"
    notes = [f"{twice} {many} once"] if twice else []
    return dataclasses.replace(rest, notes=[*images.notes, *notes])


def _labels(listing: ImageListing, finder: LabelNames) -> LabelArray:
    found = finder.find_texts(listing.ways) if listing.column else finder.find_folders(listing.ways)
    for way, label in found.items():
        if label is None:
            raise InputError(f"{listing.place(way)}: {finder.missing(way)}")
    return np.array([found[way] for way in listing.ways], dtype=np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that can't be read: its name and the reason."""

    name: str
    error: str

    def __str__(self) -> str:
        """Name and reason in one line."""
        return f"{self.name}: {self.error}"


def decode_small(
    images: ImageSet, *, max_side: int, max_bytes: int = 8 << 30
) -> tuple[ImageSet, list[Unreadable]]:
    """Decode small images once and drop what can't be read.

    Images with both sides up to ``max_side`` pixels become arrays, up to ``max_bytes`` in total; others stay encoded.
    Returns the readable images and the unreadable ones.
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


def split_by_number(names: Sequence[str], dev_from: int) -> tuple[LabelArray, LabelArray]:
    """Indices of training and dev samples: dev are those numbered ``dev_from`` and up by file name.

    The number is the last run of digits before the ending: ``n01443537_450.JPEG`` has 450. Raises `InputError` for a
    name without one.
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


def split_by_share(labels: LabelArray, share: float, seed: int) -> tuple[LabelArray, LabelArray]:
    """Indices of training and dev samples: a share of each label, drawn deterministically.

    Where a stratified split would leave out a label, the share of each label is rounded, with at least one image of
    labels that have two; a single image is trained on. Raises `InputError` where none can be held out, or unless 0 <
    share < 1.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise InputError(f"`dev_share` {share}: give more than 0, less than 1")
    places, known = np.arange(len(labels)), np.unique(labels)
    dev = places[:0]
    with contextlib.suppress(ValueError):  # a label with one image, or fewer held-out images than labels
        _, dev = train_test_split(places, test_size=share, stratify=labels, random_state=seed)
    if len(np.unique(labels[dev])) < len(known):
        dev = np.concatenate(
            [_draw(np.flatnonzero(labels == label), share, (seed, label)) for label in known]
        )
    if not len(dev):
        raise InputError(
            f"`dev_share` {share} cannot be held out: every class has a single image; add images"
        )
    return np.setdiff1d(places, dev), np.sort(dev)


def _draw(own: LabelArray, share: float, seed: tuple[int, int]) -> LabelArray:
    count = min(max(round(share * len(own)), 1), len(own) - 1)
    return np.random.default_rng(seed).permutation(own)[:count]


def split(
    images: ImageSet, *, dev_from: int | None, dev_share: float, seed: int
) -> tuple[LabelArray, LabelArray]:
    """Indices of training and dev samples; neither is empty.

    The data's own split is used if there is one; else ``dev_from`` if given, else ``dev_share``. What a model guessed
    is trained on, and held out only where there is nothing else. Raises `InputError` where a side would be empty, or
    for ``dev_from`` with data that comes split.
    """
    if images.guessed is not None and not images.guessed.all():
        known, guessed = np.flatnonzero(~images.guessed), np.flatnonzero(images.guessed)
        own = dataclasses.replace(images.subset(known), guessed=None)
        train, dev = split(own, dev_from=dev_from, dev_share=dev_share, seed=seed)
        return np.sort(np.concatenate([known[train], guessed])), known[dev]
    if images.held_out is not None:
        if dev_from is not None:
            raise InputError("the data says which images are held out (val); leave `dev_from` out")
        train, dev = np.flatnonzero(~images.held_out), np.flatnonzero(images.held_out)
    elif dev_from is not None:
        train, dev = split_by_number(images.names, dev_from)
    else:
        train, dev = split_by_share(images.labels, dev_share, seed)
    if not len(train) or not len(dev):
        what, advice = "the split", "add images"
        if dev_from is not None:
            what, advice = f"`dev_from` {dev_from}", "give a number between those of the file names"
        elif images.held_out is not None:
            what = "the data's own split"
        raise InputError(f"{what} leaves {len(train)} images to train on and {len(dev)} held out; {advice}")
    return train, dev
