"""Check the graph of a level before it is opened: a model folder may be a stranger's.

A graph may take no more memory and time than networks of its image size do, reads weights only inside the two files
beside it, and has inputs and outputs of a level. Otherwise ONNX Runtime would take whatever a graph asks for.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hierclass.errors import CheckpointError
from hierclass.files import GRAPH_WEIGHTS_FILE, WEIGHTS_FILE, check_regular, read_graph_file
from hierclass.runtime.graph_reader import GraphNode, LevelGraph, read_graph
from hierclass.runtime.graph_shapes import WORK_OF_NUMBER, infer
from hierclass.runtime.graph_values import Shaped, count, shaped

PER_PIXEL = 512
"""Numbers per pixel of the image that one tensor may have. A vision transformer with patches of 8 pixels has 150 at 224
pixels, and 430 at 384; convolutional networks have at most 64."""
ALWAYS = 2**22
"""Numbers that a tensor may always have, however small the image and the weights are."""
MOST = 2**27
"""Numbers of a tensor whatever the size of the image: that transformer has 2^26 at 384 pixels."""
AT_ONCE = 4
"""Tensors of that size that may be held at once."""
ALWAYS_MACS, MAX_MACS = 2**33, 2**42
"""Multiply-accumulates for one image: so many always, and in all; the largest networks of timm take 2 * 10^12. Between
them, as many as all weights take at a quarter of the image's sides, twice."""
MAX_NODES = 20_000
"""Operators of a graph; deep transformers have some thousand."""
FLOAT32, UINT8 = 1, 2
"""ONNX's numbers of the types of inputs and outputs."""


def check_graph(content: bytes, folder: Path, size: int, num_classes: int) -> None:
    """Refuse the contents of a graph that is not that of a level; its weights lie in `folder`.

    `size` is the side in pixels of the images of the model, and the level has `num_classes` classes.

    Raises:
        ValueError: in one line, what is wrong.
        OSError: a file of weights can't be read.
    """
    graph = read_graph(content)
    _check_places(graph, folder)
    given = _check_signature(graph, size)
    values = {name: shaped(tensor) for name, tensor in graph.weights.items()}
    if values.keys() & given.keys():
        raise ValueError("an input is a weight as well")
    if len(graph.nodes) > MAX_NODES:
        raise ValueError(f"it has {len(graph.nodes):,} operators; up to {MAX_NODES:,} are run")
    weights = sum(tensor.elements for tensor in graph.weights.values())
    most = max(min(ALWAYS + PER_PIXEL * size**2, MOST), 2 * weights)
    macs = min(ALWAYS_MACS + 2 * weights * (size // 4) ** 2, MAX_MACS)
    values.update(given)
    _check_sizes(graph, values, most, macs)
    _check_outputs(graph, values, num_classes)


def check_file(file: Path, size: int, num_classes: int) -> None:
    """Refuse a file that is not the graph of a level, before other readers of graphs are given it.

    Raises:
        CheckpointError: it is none, or can't be read.
    """
    try:
        check_graph(read_graph_file(file), file.parent, size, num_classes)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be used: {error}") from error


def _check_places(graph: LevelGraph, folder: Path) -> None:
    """Refuse weights in other files than a model has, beyond their ends, or of other lengths."""
    sizes: dict[str, int] = {}
    for name, tensor in graph.weights.items():
        if tensor.data is not None:
            continue
        file, offset, length = tensor.place
        if file not in (WEIGHTS_FILE, GRAPH_WEIGHTS_FILE):
            raise ValueError(
                f"its weight {name[:80]!r} lies in another file than {WEIGHTS_FILE}: {file[:80]!r}"
            )
        if file not in sizes:
            sizes[file] = check_regular(folder / file)
        if offset + length > sizes[file] or length != tensor.elements * tensor.kind.itemsize:
            raise ValueError(f"its weight {name[:80]!r} is not in {file}, which has {sizes[file]:,} bytes")


def _check_signature(graph: LevelGraph, size: int) -> dict[str, Shaped]:
    """Return the inputs of a level for one image."""
    found: dict[str, Shaped] = {}
    for name, (kind, shape) in graph.inputs.items():
        known = tuple(_size_of(axis, each, size) for axis, each in enumerate(shape))
        if name == "images":
            if kind != UINT8 or known != (1, size, size, 3):
                raise ValueError(f"it does not take images uint8 (batch, {size}, {size}, 3)")
        elif name != f"given{len(found) - 1}" or kind != FLOAT32:
            raise ValueError(f"it takes {name[:80]!r}, which no level gives")
        found[name] = Shaped(known)
    if next(iter(found), "") != "images":
        raise ValueError("it takes no images")
    return found


def _size_of(axis: int, size: int | str, side: int) -> int:
    """Return a size of an input for one image."""
    if isinstance(size, int) and size >= 0:
        return size
    if axis == 0 and size == "batch":
        return 1
    if size == "side":
        return side
    raise ValueError("it takes an input of any size")


def _check_sizes(graph: LevelGraph, values: dict[str, Shaped], most: int, most_macs: int) -> None:
    """Find the shape of every value; refuse what is too large, or too much at once.

    Values are forgotten after their last use, as ONNX Runtime frees their memory.
    """
    nodes = _ordered(graph.nodes, values)
    last = {name: number for number, node in enumerate(nodes) for name in node.inputs}
    held = sum(count(value.shape) for value in values.values())
    allowed, macs, made = held + AT_ONCE * most, 0, set(values)
    outputs = graph.outputs.keys()
    for number, node in enumerate(nodes):
        found, more = infer(node, [_value(name, values) for name in node.inputs])
        for name, value in zip(node.outputs, found, strict=False):
            if not name:
                continue  # an output that is left out
            size = count(value.shape)
            if any(each < 0 for each in value.shape) or size > most:
                raise ValueError(
                    f"{node.operator} gives {size:,} numbers for one image; {most:,} are allowed"
                )
            if name in made:
                raise ValueError(f"{name[:80]!r} is made twice")
            made.add(name)
            held, macs = held + size, macs + size * WORK_OF_NUMBER
            values[name] = value
        macs += more
        held -= _forget(node, number, last, values, outputs)
        if held > allowed or macs > most_macs:
            raise ValueError("it takes much more memory or time than networks for such images do")


def _ordered(nodes: list[GraphNode], known: Collection[str]) -> list[GraphNode]:
    """Return nodes in an order in which each reads what is made before; ONNX Runtime, too, takes any order.

    Raises:
        ValueError: there is none.
    """
    waits: dict[str, list[GraphNode]] = {}
    missing: dict[int, int] = {}
    made = set(known)
    found: list[GraphNode] = []
    for first in nodes:
        absent = {name for name in first.inputs if name and name not in made}
        missing[id(first)] = len(absent)
        for name in absent:
            waits.setdefault(name, []).append(first)
        ready = [] if absent else [first]
        while ready:
            node = ready.pop()
            found.append(node)
            for name in node.outputs:
                made.add(name)
                for reader in waits.pop(name, ()):
                    missing[id(reader)] -= 1
                    if not missing[id(reader)]:
                        ready.append(reader)
    if waits:
        raise ValueError(f"{next(iter(waits))[:80]!r} is read and never made")
    return found


def _value(name: str, values: dict[str, Shaped]) -> Shaped | None:
    return values[name] if name else None  # an input that is left out


def _forget(
    node: GraphNode, number: int, last: dict[str, int], values: dict[str, Shaped], kept: object
) -> int:
    """Forget what no later node reads, and return how many numbers that were."""
    freed = 0
    for name in {*node.inputs, *node.outputs}:
        if name and last.get(name, number) == number and name in values and name not in kept:  # type: ignore[operator]
            freed += count(values[name].shape)
            del values[name]
    return freed


def _check_outputs(graph: LevelGraph, values: dict[str, Shaped], num_classes: int) -> None:
    """Refuse other outputs than those of a level."""
    names = ["logits", "features", *(f"kept{index}" for index in range(len(graph.outputs) - 2))]
    if list(graph.outputs) != names or any(kind != FLOAT32 for kind, _ in graph.outputs.values()):
        raise ValueError("it does not give logits, features and what the next level reads")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"it does not give {missing[0]}")
    logits, features = values["logits"].shape, values["features"].shape
    if logits != (1, num_classes) or len(features) != 2 or features[0] != 1:
        raise ValueError(f"it gives logits {logits}, not (1, {num_classes})")
