"""Weights of graphs that lie in files of safetensors: a graph names file, offset and length instead of holding them.

Weights are found by their bytes, so that it does not matter what a graph calls them. float32 weights that half
precision holds exactly are stored in half precision and cast by a node, which ONNX Runtime runs once per session.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir

INLINE = 64
"""Weights of no more bytes stay in the graph: naming their place takes more."""
LARGE = 4096
"""Weights of more bytes are stored once for all graphs."""
HEADER = 8
"""Bytes at the beginning of a file of safetensors that hold the length of the JSON that follows."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a weight lie."""

    file: str
    offset: int
    length: int


class StoredWeights:
    """The tensors in files of safetensors, found by their contents."""

    def __init__(self) -> None:
        """Begin without any."""
        self._places: dict[bytes, Place] = {}

    def add(self, name: str, content: bytes) -> None:
        """Add the tensors of a file, which graphs beside it will know by `name`."""
        begin = HEADER + int.from_bytes(content[:HEADER], "little")
        view = memoryview(content)
        for key, row in json.loads(content[HEADER:begin]).items():
            if key != "__metadata__":
                start, end = row["data_offsets"]
                found = _key(_KINDS.get(row["dtype"], row["dtype"]), view[begin + start : begin + end])
                self._places.setdefault(found, Place(name, begin + start, end - start))

    def find(self, array: NDArray[np.generic]) -> Place | None:
        """Return where an array of this type with these numbers lies."""
        return self._places.get(_key(array.dtype.name, array.data))

    def __contains__(self, array: NDArray[np.generic]) -> bool:
        return self.find(array) is not None


_KINDS = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


def _key(kind: str, data: memoryview) -> bytes:
    return hashlib.sha256(kind.encode() + b" " + data).digest()


def share_weights(model: onnx_ir.Model, stored: StoredWeights) -> None:
    """Replace the weights of a graph that are stored by the places where they lie, in place."""
    import onnx_ir as ir

    begin = model.graph[0]
    for value, array in list(_weights(model)):
        as_stored = next((each for each in _forms(array) if each in stored), None)
        if as_stored is None:
            continue
        place = stored.find(as_stored)
        assert place is not None
        name = str(value.name)
        tensor = ir.ExternalTensor(
            place.file,
            place.offset,
            place.length,
            ir.DataType.from_numpy(as_stored.dtype),
            shape=ir.Shape(as_stored.shape),
            name=name,
        )
        if as_stored.dtype == array.dtype:
            value.const_value = tensor
            continue
        del model.graph.initializers[name]
        tensor.name = f"{name}.stored"
        half = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(half)
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        model.graph.insert_before(begin, cast)
        (result,) = cast.outputs
        value.replace_all_uses_with(result, replace_graph_outputs=True)
        value.name, result.name = None, name
        result.shape, result.type = value.shape, value.type


def large_weights(models: Iterable[onnx_ir.Model], stored: StoredWeights) -> dict[str, NDArray[np.generic]]:
    """Return the large weights of graphs that are not stored, each once, by a name that its contents give."""
    found: dict[str, NDArray[np.generic]] = {}
    for model in models:
        for _, array in _weights(model):
            if array.nbytes > LARGE and not any(each in stored for each in _forms(array)):
                smallest = list(_forms(array))[-1]
                found[_key(smallest.dtype.name, smallest.data).hex()] = smallest
    return found


def as_safetensors(weights: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return the contents of a file that holds the weights; equal weights give equal files."""
    import safetensors.numpy

    return safetensors.numpy.save(dict(sorted(weights.items())))


def _weights(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Value, NDArray[np.generic]]]:
    """Yield the weights of a graph that are worth a place elsewhere."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > INLINE:
            yield value, np.ascontiguousarray(tensor.numpy())


def _forms(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Yield an array as it is and, if that loses nothing, in half precision."""
    yield array
    if array.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            yield half
