"""Read the graph of a level as data, without running it: nodes, weights and where these lie, inputs and outputs.

A reader of the few parts of ONNX (protocol buffers) that hierclass writes; everything else is refused: operators with
graphs inside them, functions, sparse or segmented tensors, fields that stand twice. Needs neither onnx nor torch.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

MOST_NODES = 100_000
"""Nodes, and tensors, of a graph; the largest of the bundled model has 682 nodes."""
MOST_DIMENSIONS = 16
"""Axes of a tensor."""
KINDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("float32"),
    2: np.dtype("uint8"),
    3: np.dtype("int8"),
    6: np.dtype("int32"),
    7: np.dtype("int64"),
    9: np.dtype("bool"),
    10: np.dtype("float16"),
    11: np.dtype("float64"),
}
"""ONNX's numbers of the types that tensors of a graph may have."""
_LISTS = {4: ("f", np.float32), 5: ("v", np.int32), 7: ("v", np.int64), 10: ("d", np.float64)}
"""Fields of a tensor that hold its numbers one by one: kind of their coding, and type."""

Shape: TypeAlias = "tuple[int | str, ...]"
"""Sizes; one that is free has a name."""
_Value: TypeAlias = "int | bytes"
_Field: TypeAlias = "tuple[int, int, _Value]"


@dataclass(frozen=True)
class GraphTensor:
    """A weight or constant: its numbers, or the place where they lie."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    data: NDArray[Any] | None
    """None: they lie in another file."""
    place: tuple[str, int, int] = ("", 0, 0)
    """Name of that file, offset and length in bytes."""

    @property
    def elements(self) -> int:
        """Number of numbers."""
        return math.prod(self.shape)


@dataclass(slots=True)
class GraphNode:
    """An operation: names of what it reads and gives, and its attributes."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    raw: list[bytes] = field(default_factory=list)
    """Its attributes, coded; reading all of them takes long, and few are asked for."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes by name: numbers, bytes, lists of numbers, or tensors; raises ValueError for others."""
        found = list(map(_attribute, self.raw))
        if len(dict(found)) < len(found):
            raise ValueError("an attribute stands twice")
        return dict(found)


@dataclass(frozen=True)
class LevelGraph:
    """A graph."""

    nodes: list[GraphNode]
    weights: dict[str, GraphTensor]
    inputs: dict[str, tuple[int, Shape]]
    """Name → number of its type, and its shape."""
    outputs: dict[str, tuple[int, Shape]]


def read_graph(content: bytes) -> LevelGraph:
    """Read the contents of a file of ONNX.

    Raises:
        ValueError: it is damaged, or holds anything that hierclass does not write.
    """
    try:
        return _model(content)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("it is no graph, or ends too early") from error


def _fields(data: bytes) -> list[_Field]:
    """Return number, kind of coding and value of the fields of a message."""
    at, end = 0, len(data)
    found: list[_Field] = []
    while at < end:
        key = data[at]
        at += 1
        if key >= 128:
            key, at = _varint(data, at - 1)
        wire = key & 7
        if wire == 2:
            length = data[at]
            at += 1
            if length >= 128:
                length, at = _varint(data, at - 1)
            start = at
            at += length
            found.append((key >> 3, 2, data[start:at]))
        elif wire == 0:
            value = data[at]
            at += 1
            if value >= 128:
                value, at = _varint(data, at - 1)
            found.append((key >> 3, 0, value))
        elif wire in (1, 5):
            start = at
            at += 8 if wire == 1 else 4
            found.append((key >> 3, wire, data[start:at]))
        else:
            raise ValueError("it is no graph")
    if at != end:
        raise ValueError("it ends too early")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("it is no graph")


def _signed(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is missing")
    return value - 2**64 if value >= 2**63 else value


def _message(value: _Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("it is no graph")
    return value


def _text(value: _Value) -> str:
    return str(_message(value), "utf-8")


class _Once:
    """Refuses fields that stand twice: other readers join them, or take the last."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, number: int) -> None:
        if self._seen >> number & 1:
            raise ValueError("a part of it stands twice")
        self._seen |= 1 << number


def _model(data: bytes) -> LevelGraph:
    graph: LevelGraph | None = None
    versions: list[tuple[str, int]] = []
    once = _Once()
    for number, _, value in _fields(data):
        if number == 7:
            once(number)
            graph = _graph(_message(value))
        elif number == 8:
            versions.append(_version(_message(value)))
        elif number in (20, 25):
            raise ValueError("it has functions of its own")
    if graph is None or versions not in ([("", OPSET)], [("ai.onnx", OPSET)]):
        raise ValueError(f"it has no graph of ONNX's own operators in version {OPSET}")
    return graph


OPSET = 20
"""Version of ONNX's operators of all graphs that hierclass has written."""


def _version(data: bytes) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, value in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _signed(value)
    return domain, version


def _graph(data: bytes) -> LevelGraph:
    graph = LevelGraph([], {}, {}, {})
    for number, _, value in _fields(data):
        if number == 1:
            graph.nodes.append(_node(_message(value)))
        elif number == 5:
            name, tensor = _tensor(_message(value))
            if name in graph.weights:
                raise ValueError("a weight stands twice")
            graph.weights[name] = tensor
        elif number in (11, 12):
            listed = graph.inputs if number == 11 else graph.outputs
            name, kind, shape = _declared(_message(value))
            if name in listed:
                raise ValueError("an input or output stands twice")
            listed[name] = kind, shape
        elif number == 15:
            raise ValueError("it has sparse weights")
        if len(graph.nodes) > MOST_NODES or len(graph.weights) > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} nodes or weights")
    return graph


def _node(data: bytes) -> GraphNode:
    node = GraphNode("", [], [])
    for number, _, value in _fields(data):
        if isinstance(value, int):
            continue
        if number == 1:
            node.inputs.append(str(value, "utf-8"))
        elif number == 2:
            node.outputs.append(str(value, "utf-8"))
        elif number == 5:
            node.raw.append(value)
        elif number == 4:
            if node.operator:
                raise ValueError("a part of it stands twice")
            node.operator = str(value, "utf-8")
        elif (number == 7 and value not in (b"", b"ai.onnx")) or (number == 8 and value):
            raise ValueError("it has an operator that is not ONNX's own")
    return node


def _attribute(data: bytes) -> tuple[str, Any]:
    """Return name and value: a number, bytes, a list of numbers, or a tensor."""
    name = ""
    found: Any = None
    integers: list[int] = []
    floats: list[float] = []
    kind, once = 0, _Once()
    for number, wire, value in _fields(data):
        if number == 1:
            once(number)
            name = _text(value)
        elif number == 20:
            once(number)
            kind = _signed(value)
        elif number == 3:
            once(number)
            found = _signed(value)
        elif number == 2:
            once(number)
            (found,) = struct.unpack("<f", _message(value))
        elif number == 4:
            once(number)
            found = _message(value)
        elif number == 5:
            once(number)
            found = _tensor(_message(value))[1]
        elif number == 8:
            integers += _integers(wire, value)
        elif number == 7:
            floats += np.frombuffer(_message(value), np.float32).tolist()
        elif number != 13:  # what people read
            raise ValueError("it has an attribute of a kind that hierclass does not write")
    return name, {6: floats, 7: integers}.get(kind, found)


def _integers(wire: int, value: _Value) -> list[int]:
    """Read numbers of a list: one, or many packed into one field."""
    if wire == 0:
        return [_signed(value)]
    data, at = _message(value), 0
    if data.isascii():  # each number is one byte
        return list(data)
    found = []
    while at < len(data):
        number, at = _varint(data, at)
        found.append(_signed(number))
    return found


def _tensor(data: bytes) -> tuple[str, GraphTensor]:
    name, kind, raw, external = "", 0, None, False
    shape: list[int] = []
    place: dict[str, str] = {}
    numbers: list[NDArray[Any]] = []
    once = _Once()
    for number, wire, value in _fields(data):
        if number == 1:
            shape += _integers(wire, value)
        elif number in _LISTS:
            numbers.append(_numbers(number, wire, value))
        elif number == 13:
            key, said = _pair(_message(value))
            if key in place:
                raise ValueError("the place of a weight stands twice")
            place[key] = said
        else:
            once(number)
            if number == 2:
                kind = _signed(value)
            elif number == 8:
                name = _text(value)
            elif number == 9:
                raw = _message(value)
            elif number == 14:
                external = value != 0
            elif number != 12:
                raise ValueError("it has a tensor of a kind that hierclass does not write")
    if kind not in KINDS or len(shape) > MOST_DIMENSIONS or not all(0 <= size < 2**40 for size in shape):
        raise ValueError("it has a tensor of a type or shape that hierclass does not write")
    if external or place:
        return name, GraphTensor(KINDS[kind], tuple(shape), None, _place(place))
    if raw is not None:
        array = np.frombuffer(raw, KINDS[kind])
    else:
        array = np.concatenate(numbers) if numbers else np.zeros(0)
        array = array.astype(np.uint16).view(np.float16) if kind == 10 else array.astype(KINDS[kind])
    tensor = GraphTensor(KINDS[kind], tuple(shape), array)
    if tensor.elements != array.size:
        raise ValueError("it has a tensor with other numbers than its shape says")
    return name, GraphTensor(tensor.kind, tensor.shape, array.reshape(shape))


def _numbers(number: int, wire: int, value: _Value) -> NDArray[Any]:
    coding, kind = _LISTS[number]
    if coding == "v":
        return np.array(_integers(wire, value), np.int64)
    return np.frombuffer(_message(value), kind)


def _pair(data: bytes) -> tuple[str, str]:
    found = {number: _text(value) for number, _, value in _fields(data)}
    return found.get(1, ""), found.get(2, "")


def _place(said: dict[str, str]) -> tuple[str, int, int]:
    """Return file, offset and length of a weight."""
    offset, length = said.get("offset", ""), said.get("length", "")
    if not (_is_count(offset) and _is_count(length)) or said.keys() - {"location", "offset", "length"}:
        raise ValueError("it does not say where a weight lies")
    return said.get("location", ""), int(offset), int(length)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _declared(data: bytes) -> tuple[str, int, Shape]:
    """Return name, number of the type and shape of an input or output."""
    name, kind = "", 0
    shape: list[int | str] = []
    once, inner = _Once(), _Once()
    for number, _, value in _fields(data):
        if number == 1:
            once(number)
            name = _text(value)
        elif number == 2:
            once(number)
            for tensor_type, _, described in _fields(_message(value)):
                if tensor_type != 1:
                    raise ValueError("an input or output is no tensor")
                inner(0)
                for part, _, found in _fields(_message(described)):
                    if part == 1:
                        inner(1)
                        kind = _signed(found)
                    elif part == 2:
                        inner(2)
                        shape += [_size(_message(size)) for _, _, size in _fields(_message(found))]
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name} has more than {MOST_DIMENSIONS} axes")
    return name, kind, tuple(shape)


def _size(data: bytes) -> int | str:
    found: int | str = ""
    for number, _, value in _fields(data):
        if number == 1:
            found = _signed(value)
        elif number == 2:
            found = _text(value)
    return found
