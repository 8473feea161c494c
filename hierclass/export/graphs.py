"""Write the graphs of a model folder: every level for ONNX Runtime, beside the weights that they share with it."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hierclass.checkpoints.checkpoint import (
    Checkpoint,
    as_stored,
    contents_digest,
    describe,
    load_checkpoint,
    stored_dtype,
)
from hierclass.checkpoints.description import DIGEST, GRAPHS, read_config, store_graphs
from hierclass.errors import ExportError, MissingExtraError
from hierclass.export.level_export import BATCHES, export_level, reason_for, shrunk_side
from hierclass.export.weight_sharing import StoredWeights, as_safetensors, large_weights, share_weights
from hierclass.files import (
    GRAPH_WEIGHTS_FILE,
    WEIGHTS_FILE,
    graph_file,
)
from hierclass.images.preprocessing import Preprocessing, normalise
from hierclass.nested import NestedNetwork
from hierclass.nested.level_graph import Kept
from hierclass.nested.verify import keeps_rows
from hierclass.runtime.onnx_runtime import open_session

if TYPE_CHECKING:
    import onnx_ir

CLOSE = 1e-4
"""Largest difference between ONNX Runtime and PyTorch, as a share of the largest number, or of 1 if that is less."""
Progress = Callable[[int], object]
"""Is told the number of each level before it is exported."""
Export = Callable[[NestedNetwork, int, Preprocessing], "onnx_ir.Model"]
"""Makes the graph of a level, with its weights in it, as `export_level` does."""


@dataclass(frozen=True)
class GraphFiles:
    """The graphs of a model, not yet written."""

    entry: dict[str, Any]
    """What config.json says of them under `GRAPHS`, but for the digest."""
    contents: dict[str, bytes]
    """Name of a file → its contents."""


def write_graphs(
    folder: Path, checkpoint: Checkpoint, progress: Progress | None = None, export: Export = export_level
) -> None:
    """Write the graphs of all levels into the folder of a checkpoint, as its stored, rounded weights give them.

    `export` makes each of them. If that fails or is interrupted, the folder stays as it is; a kill while files are
    renamed may leave it without graphs.

    Raises:
        ExportError: a level can't be exported; the message names it and the operator.
        MissingExtraError: the packages that export are not installed.
    """
    config = read_config(folder)
    if not config.get(DIGEST):  # written by an early version
        config[DIGEST] = contents_digest(describe(checkpoint), checkpoint.network.stored())
    network = as_stored(checkpoint.network, stored_dtype(folder)).to("cpu")
    weights = {WEIGHTS_FILE: (folder / WEIGHTS_FILE).read_bytes()}
    made = make_graphs(network, checkpoint.preprocessing, weights, progress, export)
    store_graphs(folder, config, GRAPHS, made.entry, made.contents)
    if GRAPH_WEIGHTS_FILE not in made.contents:
        (folder / GRAPH_WEIGHTS_FILE).unlink(missing_ok=True)


def try_to_write_graphs(folder: Path, progress: Progress | None = None) -> str | None:
    """Write the graphs of a model folder if that is possible; return else in one line why not."""
    try:
        write_graphs(folder, load_checkpoint(folder), progress)
    except (ExportError, MissingExtraError) as error:
        return f"{folder} runs by PyTorch alone: {error}"
    return None


def make_graphs(
    network: NestedNetwork,
    preprocessing: Preprocessing,
    weights: Mapping[str, bytes],
    progress: Progress | None = None,
    export: Export = export_level,
) -> GraphFiles:
    """Export every level of a network in evaluation mode by `export`, and compare each with PyTorch.

    `weights` are the contents of files of safetensors, by the names that they will have beside the graphs; weights
    that they do not hold are put into another such file.

    Raises:
        ExportError, MissingExtraError: as `write_graphs` does.
    """
    import onnx_ir

    models = []
    for level in range(network.num_levels):
        if progress is not None:
            progress(level)
        models.append(export(network, level, preprocessing))
    stored = StoredWeights()
    for name, content in weights.items():
        stored.add(name, content)
    others = dict[str, bytes]()
    if more := large_weights(models, stored):
        others[GRAPH_WEIGHTS_FILE] = as_safetensors(more)
        stored.add(GRAPH_WEIGHTS_FILE, others[GRAPH_WEIGHTS_FILE])
    graphs = dict[str, bytes]()
    for level, model in enumerate(models):
        share_weights(model, stored)
        graphs[graph_file(level)] = onnx_ir.to_proto(model).SerializeToString()
    check_graphs(network, preprocessing, {**weights, **others, **graphs})
    costs = [dataclasses.asdict(network.cost(level)) for level in range(network.num_levels)]
    entry = {
        "files": list(graphs),
        "sums": [hashlib.sha256(content).hexdigest() for content in graphs.values()],
        "reuses": network.reuses,
        "keeps_rows": keeps_rows(network),
        "sizes": None if network.sizes is None else list(network.sizes),
        "costs": costs,
    }
    return GraphFiles(entry, {**others, **graphs})


def check_graphs(network: NestedNetwork, preprocessing: Preprocessing, contents: Mapping[str, bytes]) -> None:
    """Compare the graphs' numbers with PyTorch's on random images; what a level keeps is given to the next one.

    `contents` are the files of the graphs and of their weights, by name.

    Raises:
        ExportError: ONNX Runtime can't run a graph, or its numbers differ.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        theirs: dict[int, list[NDArray[Any]]] = {batch: [] for batch in BATCHES}
        ours: dict[int, Kept] = dict.fromkeys(BATCHES, ())
        for level in range(network.num_levels):
            sides = preprocessing.size, shrunk_side(network, level) or preprocessing.size
            try:
                file, classes = Path(folder) / graph_file(level), network.num_classes[level]
                session = open_session(file, 1, preprocessing.size, classes)
                for batch, side in zip(BATCHES, sides, strict=True):
                    images = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), np.uint8)
                    given = {f"given{index}": value for index, value in enumerate(theirs[batch])}
                    found = session.run(None, {"images": images, **given})
                    expected = _by_torch(network, level, preprocessing, images, ours[batch])
                    for values in zip(found, expected, strict=True):
                        _check_close(*values, level)
                    if network.reuses:
                        theirs[batch], ours[batch] = found[2:], tuple(map(torch.from_numpy, expected[2:]))
            except ExportError:
                raise
            except Exception as error:  # whatever ONNX Runtime finds in a graph
                raise ExportError(f"level {level} fails in ONNX Runtime: {reason_for(error)}") from error


@torch.no_grad()
def _by_torch(
    network: NestedNetwork, level: int, preprocessing: Preprocessing, images: NDArray[np.uint8], kept: Kept
) -> list[NDArray[Any]]:
    """Return what a graph gives: logits, features, and what the level keeps."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    image = normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float(), mean, std)
    features, kept = network.level_functions(network.num_levels - 1)[level](image, kept)
    return [value.numpy() for value in (network.classify(features, level), features, *kept)]


def _check_close(found: NDArray[Any], expected: NDArray[Any], level: int) -> None:
    if found.shape != expected.shape:
        raise ExportError(f"level {level} has the shape {found.shape} in ONNX Runtime, not {expected.shape}")
    if not expected.size:
        return
    off = float(np.abs(found.astype(np.float64) - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not off <= CLOSE:  # nor if it is not a number
        raise ExportError(f"level {level} differs by {off:.1g} between ONNX Runtime and PyTorch")
