"""Write the graphs of a model in 8 bits: choose and read images, quantise level after level, compare, store."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hierclass.checkpoints.description import (
    INT8,
    LevelGraphs,
    ModelDescription,
    read_config,
    read_description,
    store_graphs,
)
from hierclass.errors import CheckpointError, ImageError, InputError
from hierclass.export.deployed_folder import CARD_FILE, SourceModel
from hierclass.export.int8 import Inputs, quantise
from hierclass.files import int8_file
from hierclass.images.preprocessing import Preprocessing
from hierclass.labelling.inputs import Input, ParquetRows, list_inputs
from hierclass.labelling.read_input import InputReader, ReadSource
from hierclass.runtime.graph_bounds import check_file
from hierclass.runtime.onnx_runtime import OnnxRuntime

MIN_IMAGES = 16
"""Fewer images say too little of the range of a tensor."""
Progress = Callable[[str, int, int], object]
"""Is told what is done, and how many of how many images are."""
PASSES, BATCH = 2, 16
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Int8Graphs:
    """The graphs of a model in 8 bits, not yet written.

    `contents`: the file of each level; `same`: share of the images (0 … 1) to which each level gives the class that it
    gives in float32; `unreadable`: images that could not be read.
    """

    contents: tuple[bytes, ...]
    same: tuple[float, ...]
    num_images: int
    unreadable: int


def make_int8(folder: Path, images: Iterable[str | Path], limit: int, progress: Progress) -> Int8Graphs:
    """Quantise the graphs of all levels of a model folder, with ranges measured on at most `limit` images.

    Raises:
        CheckpointError: there is no model, or it has no graphs.
        ExportError: a level can't be quantised.
        InputError: there are too few images.
        MissingExtraError: the packages that this needs are not installed.
    """
    description, graphs = read_graphs(folder)
    pixels, unreadable = read_some(images, description.preprocessing, limit, progress)
    exact = OnnxRuntime(folder, description, graphs)
    files = tuple(map(int8_file, range(len(graphs.files))))
    with tempfile.TemporaryDirectory() as place:
        for level, file in enumerate(graphs.files):
            inputs = _Inputs(exact, pixels, level, progress)
            check_file(folder / file, description.preprocessing.size, description.taxonomy.num_classes[level])
            content = quantise(folder / file, inputs).SerializeToString()
            (Path(place) / files[level]).write_bytes(content)
        rounded = OnnxRuntime(Path(place), description, dataclasses.replace(graphs, files=files, sums=()))
        same = tuple(_share_of_same(exact, rounded, pixels, level) for level in range(len(files)))
        contents = tuple((Path(place) / file).read_bytes() for file in files)
    return Int8Graphs(contents, same, len(pixels), unreadable)


def write_int8(folder: Path, made: Int8Graphs) -> None:
    """Write graphs in 8 bits into the folder of their model, with the decision of the float32 graphs.

    If that fails or is interrupted, the folder stays as it is; a kill while files are renamed may leave it without
    graphs in 8 bits.
    """
    config = read_config(folder)
    files = dict(zip(map(int8_file, range(len(made.contents))), made.contents, strict=True))
    entry = {
        "files": list(files),
        "sums": [hashlib.sha256(content).hexdigest() for content in made.contents],
        "decision": config["decision"],
        "results": {"images": made.num_images, "same": list(made.same)},
    }
    store_graphs(folder, config, INT8, entry, files)


@contextlib.contextmanager
def temporary_int8(folder: Path, made: Int8Graphs) -> Iterator[SourceModel]:
    """Hold graphs in 8 bits in a temporary folder, to be exported from there."""
    description, graphs = read_graphs(folder)
    files = tuple(map(int8_file, range(len(made.contents))))
    with tempfile.TemporaryDirectory() as place:
        for file, content in zip(files, made.contents, strict=True):
            (Path(place) / file).write_bytes(content)
        if (folder / CARD_FILE).is_file():
            shutil.copyfile(folder / CARD_FILE, Path(place) / CARD_FILE)
        yield SourceModel(
            Path(place), description, dataclasses.replace(graphs, files=files, sums=(), int8=True)
        )


def read_graphs(folder: Path) -> tuple[ModelDescription, LevelGraphs]:
    """Read a model folder that has graphs; raise CheckpointError for others."""
    description, graphs = read_description(folder)
    if graphs is None:
        raise CheckpointError(
            f"{folder} has no graphs for ONNX Runtime; add them first: hierclass export --in-place --model {folder}"
        )
    return description, graphs


def read_some(
    images: Iterable[str | Path], preprocessing: Preprocessing, limit: int, progress: Progress
) -> tuple[Pixels, int]:
    """Read at most `limit` of the images that names lead to, drawn at random but always the same.

    Returns the images (N, S, S, 3) and how many of those drawn could not be read.

    Raises:
        InputError: fewer than `MIN_IMAGES` can be read.
    """
    drawn = _draw(list_inputs(images), limit)
    reader, rows = InputReader(preprocessing, previews=False), ParquetRows()
    pixels = list[Pixels]()
    for number, item in enumerate(drawn):
        try:
            data: bytes | ImageError | None = rows.data(item)
        except ImageError as error:
            data = error
        found = reader.read(ReadSource(item, data))
        if not isinstance(found.pixels, str):
            pixels.append(found.pixels)
        progress("reading images", number + 1, len(drawn))
    if len(pixels) < MIN_IMAGES:
        raise InputError(
            f"{len(pixels)} readable images are too few to measure the ranges of 8 bits on; give {MIN_IMAGES} or more, "
            "better some hundred"
        )
    return np.stack(pixels), len(drawn) - len(pixels)


def _draw(items: Iterable[Input], limit: int) -> list[Input]:
    """Draw `limit` items, each with the same chance, in their order (Vitter 1985, algorithm R)."""
    chance = random.Random(0)
    drawn = list[tuple[int, Input]]()
    for number, item in enumerate(items):
        if len(drawn) < limit:
            drawn.append((number, item))
        elif (place := chance.randrange(number + 1)) < limit:
            drawn[place] = (number, item)
    return [item for _, item in sorted(drawn, key=lambda each: each[0])]


@dataclass
class _Inputs:
    """The inputs of a level for each image: pixels, and what the level below keeps of them in float32."""

    runtime: OnnxRuntime
    pixels: Pixels
    level: int
    progress: Progress
    done: int = 0

    def __call__(self) -> Iterator[Inputs]:
        lower = range(self.level) if self.runtime.reuses else range(0)
        for number in range(len(self.pixels)):
            image = self.pixels[number : number + 1]
            kept: tuple[NDArray[Any], ...] = ()
            for each in lower:
                _, kept = self.runtime.run_level(each, image, kept)
            yield {"images": image, **{f"given{index}": value for index, value in enumerate(kept)}}
            self.done += 1
            self.progress(f"level {self.level} in 8 bits", self.done, PASSES * len(self.pixels))


def _share_of_same(exact: OnnxRuntime, rounded: OnnxRuntime, pixels: Pixels, level: int) -> float:
    """Share of the images (0 … 1) to which a level gives one class in both runtimes."""
    same = 0
    for start in range(0, len(pixels), BATCH):
        images = pixels[start : start + BATCH]
        classes = [each.run(images, level).argmax(axis=1) for each in (exact, rounded)]
        same += int((classes[0] == classes[1]).sum())
    return same / len(pixels)
