"""Features of every level of a model for labelled images: computed in one pass over the images, and kept on disk.

A row of the cache belongs to a network and to the contents of an image, so that a second start, another tree or more
images compute only what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from hierclass.checkpoints.description import read_config
from hierclass.checkpoints.weights_header import open_weights
from hierclass.errors import ImageError
from hierclass.files import WEIGHTS_FILE, make_folder, remove_temporaries, replacing
from hierclass.images.preprocessing import Preprocessing, read_square
from hierclass.processors import num_cores
from hierclass.runtime.choice import open_model
from hierclass.runtime.interface import Runtime
from training.data.datasets import Source
from training.data.samples import ImageSet, Unreadable
from training.evaluation.console import Reporter

Values = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
PART_ROWS, PART_SECONDS = 256, 5.0
"""A part is written after so many images or seconds; bounds what a kill can lose."""
BATCH, BATCH_PIXELS = 64, 2**19
"""Most images, and most pixels, of a call of the network."""
HIGHEST = float(np.finfo(np.float16).max)
_KEY = 16


def network_key(model: Path) -> str:
    """Name the network of a model folder, heads left out: the same one gives the same features."""
    config = read_config(model)
    architecture = {k: v for k, v in config["architecture"].items() if k not in ("heads", "leaves")}
    found = hashlib.sha256(json.dumps([architecture, config["preprocessing"]], sort_keys=True).encode())
    with open_weights(model / WEIGHTS_FILE) as stream:
        for name in sorted(stream.keys()):
            if not name.startswith("heads."):
                value = np.ascontiguousarray(stream.get_tensor(name))
                found.update(f"{name} {value.dtype} {value.shape}".encode())
                found.update(value.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def image_key(network: str, source: Source) -> bytes:
    """Name an image under a network: by the path, size and time of a file, or by the bytes in memory."""
    found = hashlib.blake2b(network.encode(), digest_size=_KEY)
    if isinstance(source, Path):
        with contextlib.suppress(OSError):  # reading it says what is wrong
            status = source.stat()
            found.update(
                f"{source.absolute()}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="replace")
            )
    elif isinstance(source, bytes):
        found.update(source)
    else:
        found.update(str(source.shape).encode() + np.ascontiguousarray(source).tobytes())
    return found.digest()


def as_half(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Features in half precision, unless one of them exceeds its range; accuracies do not tell the difference."""
    fits = bool((np.abs(values) < HIGHEST).all()) if values.size else True
    return np.ascontiguousarray(values, dtype=np.float16 if fits else np.float32)


class FeatureCache:
    """Features on disk, in parts that are written whole: a row per image under its key, for every level."""

    def __init__(self, folder: Path) -> None:
        """Read which images the parts in a folder hold; a part that can't be read is removed."""
        self._folder, self._places = folder, dict[bytes, tuple[str, int]]()
        self._next = 0
        if not folder.is_dir():
            return
        remove_temporaries(folder, *(f"{_part(n)}" for n in range(_last(folder) + 2)))
        for file in sorted(folder.glob("part-*.safetensors")):
            self._next = int(file.stem.removeprefix("part-")) + 1
            try:
                with open_weights(file) as stream:
                    keys = stream.get_tensor("keys")
            except (OSError, ValueError):
                file.unlink(missing_ok=True)
                continue
            self._places.update({row.tobytes(): (file.name, place) for place, row in enumerate(keys)})

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], levels: Sequence[Values]) -> None:
        """Write a part: ``levels[k]`` (n, F_k) are the features of n images at level k. Raises OSError."""
        make_folder(self._folder)
        name = _part(self._next)
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), _KEY)
        tensors = {"keys": rows, **{f"level{k}": as_half(values) for k, values in enumerate(levels)}}
        with replacing(self._folder / name) as file:
            file.write_bytes(safetensors.numpy.save(tensors))
        self._next += 1
        self._places.update({key: (name, place) for place, key in enumerate(keys)})

    def level(self, keys: Sequence[bytes], level: int) -> Values:
        """The features (N, F) of the images of N keys at a level, in their order."""
        wanted: dict[str, list[tuple[int, int]]] = {}
        for index, key in enumerate(keys):
            name, place = self._places[key]
            wanted.setdefault(name, []).append((index, place))
        found: Values | None = None
        for name, pairs in wanted.items():
            with open_weights(self._folder / name) as stream:
                values = stream.get_tensor(f"level{level}")
            if found is None:
                found = np.empty((len(keys), values.shape[1]), np.float32)
            into, places = map(list, zip(*pairs, strict=True))
            found[into] = values[places]
        assert found is not None
        return found


def _part(number: int) -> str:
    return f"part-{number:06d}.safetensors"


def _last(folder: Path) -> int:
    return max(
        (int(file.stem.removeprefix("part-")) for file in folder.glob("part-*.safetensors")), default=-1
    )


def compute_features(
    images: ImageSet,
    keys: Sequence[bytes],
    model: Path,
    cache: FeatureCache,
    reporter: Reporter,
    *,
    threads: int | None = None,
    workers: int | None = None,
) -> dict[int, Unreadable]:
    """Add to a cache what it lacks of the features of images under ``keys``; return the unreadable ones by index.

    What was computed before an error or Ctrl-C is kept. ONNX Runtime runs the model on a processor, torch elsewhere.
    """
    waiting = [index for index, key in enumerate(keys) if key not in cache]
    if not waiting:
        return {}
    description, runtime = open_model(model, threads=threads)
    runtime.enter_thread()
    size = description.preprocessing.size
    unreadable, part = dict[int, Unreadable](), _Part(cache)
    reporter.start(len(keys), len(keys) - len(waiting))
    done, started = len(keys) - len(waiting), time.monotonic()
    squares = read_squares(images, waiting, description.preprocessing, workers=workers)
    try:
        with contextlib.closing(squares):
            while batch := list(itertools.islice(squares, max(1, min(BATCH, BATCH_PIXELS // size**2)))):
                good = [(index, pixels) for index, pixels in batch if isinstance(pixels, np.ndarray)]
                unreadable.update(
                    {index: Unreadable(images.names[index], p) for index, p in batch if isinstance(p, str)}
                )
                if good:
                    found = level_features(runtime, np.stack([pixels for _, pixels in good]))
                    part.extend([keys[index] for index, _ in good], found)
                done += len(batch)
                rate = (done - len(keys) + len(waiting)) / (time.monotonic() - started)
                reporter.advance(f"features of image {done} of {len(keys)}", rate=rate, work=len(batch))
    finally:
        reporter.close()
        part.flush()
    return unreadable


class _Part:
    """Rows that wait to be written as a part of a cache."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache, self._since = cache, time.monotonic()
        self._rows: list[tuple[list[bytes], list[Values]]] = []

    def extend(self, keys: list[bytes], levels: list[Values]) -> None:
        """Add rows; write them when they are many or have waited."""
        self._rows.append((keys, levels))
        many = sum(len(keys) for keys, _ in self._rows) >= PART_ROWS
        if many or time.monotonic() - self._since >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, self._rows, self._since = self._rows, [], time.monotonic()  # a full disk must not be met twice
        if rows:
            levels = zip(*(levels for _, levels in rows), strict=True)
            self._cache.add(
                [key for keys, _ in rows for key in keys], [np.concatenate(each) for each in levels]
            )


def level_features(runtime: Runtime, pixels: Pixels) -> list[Values]:
    """The features (B, F_k) of every level k for pixels (B, S, S, 3); what levels reuse is computed once."""
    if runtime.reuses:
        state = runtime.start(pixels)
        return [runtime.refine(state, output="features") for _ in range(runtime.num_levels)]
    batch = runtime.to_batch(pixels)
    return [runtime.run(batch, level, "features") for level in range(runtime.num_levels)]


def read_squares(
    images: ImageSet, indices: Sequence[int], preprocessing: Preprocessing, *, workers: int | None = None
) -> Generator[tuple[int, Pixels | str]]:
    """Read images ahead in threads; yield index and pixels (S, S, 3), or why it can't be read, in order."""

    def read(index: int) -> Pixels | str:
        source = images.sources[index]
        try:
            return read_square(source, preprocessing)
        except ImageError as error:
            return str(error)

    workers = max(1, num_cores() if workers is None else workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hierclass-read")
    pending: deque[tuple[int, Future[Pixels | str]]] = deque()
    try:
        for index in indices:
            pending.append((index, pool.submit(read, index)))
            if len(pending) > BATCH + workers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
