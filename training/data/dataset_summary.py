"""Summarise the data of a run before training: classes, number and size of images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_header
from hierclass.images.discovery import display_name
from training.data.datasets import ImageListing, LabelPath, Source, list_images, split_name

SAMPLE = 200
"""Number of images whose header is read for the typical size."""
PER_LABEL, IN_ALL = 20, 500
"""Most images of a label, and of all labels, that are kept to be looked at."""


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Number of images per label, and the median shorter side in pixels of a ``sample`` of them (None if unreadable).

    ``drawn`` are some images of each label, evenly drawn; of more than `IN_ALL` labels there are none.
    """

    ways: Mapping[LabelPath, int]
    side: int | None
    sample: Sequence[Source] = ()
    drawn: Mapping[LabelPath, Sequence[Source]] = dataclasses.field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of images, held-out ones included."""
        return sum(self.ways.values())


def summarise_dataset(data: Iterable[str], *, pseudo_labels: bool = False) -> DatasetSummary:
    """Summarise data (`training.data.datasets` lists the kinds; ``pseudo_labels`` as there).

    Raises `InputError` where something is missing, can't be read, or holds no image.
    """
    ways: Counter[LabelPath] = Counter()
    sample: list[Source] = []
    drawn: dict[LabelPath, list[Source]] = {}
    paths = list(data)
    for path in paths:
        for listing in list_images(path, pseudo_labels=pseudo_labels):
            ways.update(listing.ways)
            sample += _spread(listing.sources)
            _draw(drawn, listing)
    if not ways:
        names = ", ".join(display_name(split_name(path)[1]) for path in paths)
        raise InputError(
            f"no images in {names}; give a folder with a folder of images for each class, such as "
            "photos/dog/1.jpg, or a table"
        )
    sample = _spread(sample)
    sides = [side for side in map(_side, sample) if side]
    side = round(float(np.median(sides))) if sides else None
    return DatasetSummary(dict(sorted(ways.items())), side, sample, dict(sorted(drawn.items())))


def _draw(drawn: dict[LabelPath, list[Source]], listing: ImageListing) -> None:
    """Add images of a listing to those drawn of each label, and keep as many of each as all labels may have."""
    places: dict[LabelPath, list[int]] = {}
    for place, way in enumerate(listing.ways):
        places.setdefault(way, []).append(place)
    for way, found in places.items():
        drawn.setdefault(way, []).extend(listing.sources[place] for place in _evenly(found, PER_LABEL))
    most = min(PER_LABEL, IN_ALL // len(drawn)) if drawn else 0
    for way, sources in drawn.items():
        drawn[way] = _evenly(sources, most)


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(most, len(items)))]


def _spread(sources: Sequence[Source]) -> list[Source]:
    """About `SAMPLE` of the sources, evenly spaced."""
    return list(sources[:: max(1, len(sources) // SAMPLE)])


def _side(source: Source) -> int:
    if isinstance(source, np.ndarray):
        return int(min(source.shape[:2]))
    try:
        return min(read_header(source).size)
    except ImageError:  # reported by the check that looks at every image
        return 0


def default_out(data: Sequence[str]) -> Path:
    """Default output folder of a run: runs/ and the name of the data."""
    name, path = split_name(data[0])
    path = path.absolute()
    return Path("runs") / (name or (path.stem if path.is_file() else path.name) or "run")
