"""What is known of the tensors of a graph before it runs, and the rules of operators that compute or rearrange numbers.

Small tensors are computed, since they may be the sizes of others (`Shape`, `Range`, `Reshape` …). Sources: the
operators' definitions in ONNX, version 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.runtime.graph_reader import KINDS, GraphNode, GraphTensor

SMALL = 4096
"""Tensors of up to so many numbers are computed, if they are made of such."""
Sizes: TypeAlias = "tuple[int, ...]"


class Shaped(NamedTuple):
    """A tensor: its shape, and its numbers if they are known."""

    shape: Sizes
    data: NDArray[Any] | None = None


Inputs: TypeAlias = "Sequence[Shaped | None]"
Rule: TypeAlias = "Callable[[GraphNode, Inputs], tuple[list[Shaped], int]]"
"""Returns what a node gives, and how many multiply-accumulates (or comparisons) it takes beside one per number."""


def known(value: Shaped | None) -> NDArray[Any]:
    """Return the numbers of a tensor that says sizes."""
    if value is None or value.data is None:
        raise ValueError("a size depends on the image")
    return value.data


def sizes_of(value: Shaped | None) -> list[int]:
    """Return the numbers of a tensor that says sizes, as a list."""
    return [int(size) for size in known(value).reshape(-1)]


def count(shape: Sizes) -> int:
    """Return the number of numbers of a shape."""
    return math.prod(shape)


def axis_of(axis: Any, rank: int) -> int:
    """Return the number of an axis, which may be counted from behind."""
    if not -rank <= axis < max(rank, 1):
        raise ValueError("it names an axis that a tensor does not have")
    return int(axis) % rank if rank else 0


def broadcast(*shapes: Sizes) -> Sizes:
    """Return the common shape of tensors that are combined number by number."""
    rank = max(map(len, shapes))
    found = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            raise ValueError("it combines tensors of different sizes")
        found.append(others.pop() if others else 1)
    return tuple(found)


def same_shape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    """The rule of an operator that gives a number for each of its first input."""
    first = inputs[0]
    assert first is not None
    return [Shaped(first.shape)], 0


def _combined(compute: Callable[..., NDArray[Any]] | None = None) -> Rule:
    """The rule of an operator that combines tensors number by number."""

    def rule(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
        given = [value for value in inputs if value is not None]
        shape = broadcast(*(value.shape for value in given))
        if compute is None or count(shape) > SMALL or any(value.data is None for value in given):
            return [Shaped(shape)], 0
        with np.errstate(all="ignore"):
            return [Shaped(shape, np.asarray(compute(*(value.data for value in given))))], 0

    return rule


def _divided(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Divide; whole numbers are cut off towards zero."""
    if left.dtype.kind == "f":
        return np.asarray(left / right)
    if not right.all():
        raise ZeroDivisionError
    found: NDArray[Any] = np.abs(left) // np.abs(right) * np.sign(left) * np.sign(right)
    return found


def _cast(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    if first.data is None or not (np.abs(first.data.astype(np.float64)) < 2**53).all():
        return [Shaped(first.shape)], 0
    to = KINDS[node.attributes["to"]] if node.operator == "Cast" else known(inputs[1]).dtype
    return [Shaped(first.shape, first.data.astype(to))], 0


def _cast_like(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    second = inputs[1]
    return same_shape(node, inputs) if second is None or second.data is None else _cast(node, inputs)


def _identity(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    return [inputs[0]], 0


def _constant(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    ((name, value),) = node.attributes.items()
    if isinstance(value, GraphTensor):
        assert value.data is not None
        return [shaped(value)], 0
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    data = np.array(value, kinds[name])
    return [Shaped(data.shape, data if data.size <= SMALL else None)], 0


def shaped(tensor: GraphTensor) -> Shaped:
    """Return a weight as what rules read."""
    return Shaped(tensor.shape, tensor.data if tensor.elements <= SMALL else None)


def _shape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    attributes = node.attributes
    data = np.array(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
    return [Shaped(data.shape, data)], 0


def _constant_of_shape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    shape, value = tuple(sizes_of(inputs[0])), node.attributes.get("value")
    if isinstance(value, GraphTensor) and value.data is not None and count(shape) <= SMALL:
        return [Shaped(shape, np.full(shape, value.data.reshape(-1)[0]))], 0
    return [Shaped(shape)], 0


def _expand(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape = broadcast(inputs[0].shape, tuple(sizes_of(inputs[1])))
    data = inputs[0].data
    return [Shaped(shape, None if data is None or count(shape) > SMALL else np.broadcast_to(data, shape))], 0


def _tile(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    pairs = zip(inputs[0].shape, sizes_of(inputs[1]), strict=True)
    return [Shaped(tuple(size * times for size, times in pairs))], 0


def _range(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    start, limit, step = (known(value).reshape(-1)[0].item() for value in inputs)
    length = max(0, math.ceil((limit - start) / step))
    if length > SMALL:
        return [Shaped((length,))], 0
    return [Shaped((length,), (start + step * np.arange(length)).astype(known(inputs[0]).dtype))], 0


def _reshape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    wanted = sizes_of(inputs[1])
    if not node.attributes.get("allowzero", 0):
        wanted = [first.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    rest = math.prod(size for size in wanted if size != -1)
    shape = tuple(count(first.shape) // rest if size == -1 else size for size in wanted)
    if count(shape) != count(first.shape):
        raise ValueError("it gives a tensor another number of numbers")
    return [Shaped(shape, None if first.data is None else first.data.reshape(shape))], 0


def _flatten(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape, axis = inputs[0].shape, node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [Shaped((count(shape[:axis]), count(shape[axis:])))], 0


def _squeeze(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    rank = len(first.shape)
    given = len(inputs) > 1 and inputs[1] is not None
    axes = {axis_of(axis, rank) for axis in sizes_of(inputs[1])} if given else set(range(rank))
    left = [axis for axis in range(rank) if not (axis in axes and (given or first.shape[axis] == 1))]
    shape = tuple(first.shape[axis] for axis in left)
    if count(shape) != count(first.shape):
        raise ValueError("it drops an axis of more than one row")
    return [Shaped(shape, None if first.data is None else first.data.reshape(shape))], 0


def _unsqueeze(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    added = sizes_of(inputs[1])
    rank = len(first.shape) + len(added)
    axes, sizes = {axis_of(axis, rank) for axis in added}, list(first.shape)
    if len(axes) < len(added):
        raise ValueError("it adds an axis twice")
    shape = tuple(1 if axis in axes else sizes.pop(0) for axis in range(rank))
    return [Shaped(shape, None if first.data is None else first.data.reshape(shape))], 0


def _transpose(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    order = node.attributes.get("perm", tuple(reversed(range(len(first.shape)))))
    if sorted(order) != list(range(len(first.shape))):
        raise ValueError("it orders axes that a tensor does not have")
    data = None if first.data is None else first.data.transpose(order)
    return [Shaped(tuple(first.shape[axis] for axis in order), data)], 0


def _concat(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    parts = [value for value in inputs if value is not None]
    axis = axis_of(node.attributes["axis"], len(parts[0].shape))
    first = parts[0].shape
    if any(part.shape[:axis] + part.shape[axis + 1 :] != first[:axis] + first[axis + 1 :] for part in parts):
        raise ValueError("it joins tensors of different sizes")
    shape = (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1 :])
    data = [part.data for part in parts if part.data is not None]
    whole = len(data) == len(parts) and count(shape) <= SMALL
    return [Shaped(shape, np.concatenate(data, axis) if whole else None)], 0


def _split(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    axis, parts = axis_of(node.attributes.get("axis", 0), len(first.shape)), len(node.outputs)
    size = first.shape[axis]
    each = -(-size // parts)
    sizes = [min(each, max(0, size - each * part)) for part in range(parts)]
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = sizes_of(inputs[1])
    if sum(sizes) != size or len(sizes) != parts or min(sizes) < 0:
        raise ValueError("it splits a tensor into other parts than it has")
    shapes = [(*first.shape[:axis], part, *first.shape[axis + 1 :]) for part in sizes]
    if first.data is None:
        return [Shaped(shape) for shape in shapes], 0
    pieces = np.split(first.data, np.cumsum(sizes)[:-1], axis)
    return [Shaped(piece.shape, piece) for piece in pieces], 0


def _slice(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    starts, ends = sizes_of(inputs[1]), sizes_of(inputs[2])
    rank, more = len(first.shape), [*inputs[3:], None, None]
    axes = list(range(len(starts))) if more[0] is None else sizes_of(more[0])
    steps = [1] * len(starts) if more[1] is None else sizes_of(more[1])
    cut = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # from behind, an end before the beginning means the beginning is included
        stop = None if step < 0 and end < -first.shape[axis_of(axis, rank)] else end
        cut[axis_of(axis, rank)] = slice(start, stop, step)
    shape = tuple(len(range(*each.indices(size))) for each, size in zip(cut, first.shape, strict=True))
    return [Shaped(shape, None if first.data is None else first.data[tuple(cut)])], 0


def _gather(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    data, rows = inputs[0], inputs[1]
    assert data is not None
    assert rows is not None
    axis = axis_of(node.attributes.get("axis", 0), len(data.shape))
    shape = (*data.shape[:axis], *rows.shape, *data.shape[axis + 1 :])
    if data.data is None or rows.data is None or count(shape) > SMALL:
        return [Shaped(shape)], 0
    return [Shaped(shape, np.take(data.data, rows.data, axis))], 0


def _gather_elements(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[1] is not None
    return [Shaped(inputs[1].shape)], 0


def _gather_nd(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    data, rows = inputs[0], inputs[1]
    assert data is not None
    assert rows is not None
    skipped = node.attributes.get("batch_dims", 0)
    return [Shaped((*rows.shape[:-1], *data.shape[skipped + rows.shape[-1] :]))], 0


_COMPUTED: dict[str, Callable[..., NDArray[Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divided,
    "Mod": np.mod,
    "Max": lambda *each: np.maximum.reduce(np.broadcast_arrays(*each)),
    "Min": lambda *each: np.minimum.reduce(np.broadcast_arrays(*each)),
    "Abs": np.abs,
    "Neg": np.negative,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Where": np.where,
}
REARRANGING: dict[str, Rule] = {
    **{name: _combined(compute) for name, compute in _COMPUTED.items()},
    **dict.fromkeys(("Pow", "Sum", "Mean", "Xor"), _combined()),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": _identity,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
}
"""Operator → its rule."""
