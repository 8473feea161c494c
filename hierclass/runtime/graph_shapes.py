"""The shapes of all that a graph computes, found without computing it: the rule of each operator that is allowed.

Every size must follow from the sizes of the inputs and from weights. Small tensors are computed, since they may be the
sizes of others (`Shape`, `Range`, `Reshape` …). Sources: the operators' definitions in ONNX, version 20.
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
MOST_PADDING = 4096
"""Pixels that are added beside an image; what is added to fill a window is less than the window."""
Sizes: TypeAlias = "tuple[int, ...]"


class Shaped(NamedTuple):
    """A tensor: its shape, and its numbers if they are known."""

    shape: Sizes
    data: NDArray[Any] | None = None


Inputs: TypeAlias = "Sequence[Shaped | None]"
Rule: TypeAlias = "Callable[[GraphNode, Inputs], tuple[list[Shaped], int]]"
"""Returns what a node gives, and how many multiply-accumulates (or comparisons) it takes beside one per number."""


def infer(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    """Return the shapes that a node gives, and how many multiply-accumulates that takes.

    Raises:
        ValueError: the operator is not allowed, or a size can't be known before it runs.
    """
    rule = RULES.get(node.operator)
    if rule is None:
        raise ValueError(f"it has the operator {node.operator[:40]!r}, which hierclass does not write")
    try:
        found, macs = rule(node, inputs)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the size of what {node.operator} gives can't be known") from error
    if len(node.outputs) > len(found):
        raise ValueError(f"{node.operator} gives more than hierclass reads of it")
    return found, macs


def known(value: Shaped | None) -> NDArray[Any]:
    """Return the numbers of a tensor that says sizes."""
    if value is None or value.data is None:
        raise ValueError("a size depends on the image")
    return value.data


def _sizes(value: Shaped | None) -> list[int]:
    return [int(size) for size in known(value).reshape(-1)]


def count(shape: Sizes) -> int:
    """Return the number of numbers of a shape."""
    return math.prod(shape)


def _axis(axis: Any, rank: int) -> int:
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


def _same(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
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
        return left / right
    if not right.all():
        raise ZeroDivisionError
    found: NDArray[Any] = np.abs(left) // np.abs(right) * np.sign(left) * np.sign(right)
    return found


def _cast(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    if first.data is None or not (np.abs(first.data.astype(np.float64)) < 2**53).all():
        return [Shaped(first.shape)], 0
    to = KINDS[node.attributes["to"]] if node.operator == "Cast" else known(inputs[1]).dtype  # type: ignore[index]
    return [Shaped(first.shape, first.data.astype(to))], 0


def _cast_like(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    second = inputs[1]
    return _same(node, inputs) if second is None or second.data is None else _cast(node, inputs)


def _identity(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    return [inputs[0]], 0


def _constant(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    ((name, value),) = node.attributes.items()
    if isinstance(value, GraphTensor):
        assert value.data is not None
        return [shaped(value)], 0
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    data = np.array(value, kinds[name])
    return [Shaped(data.shape, data if data.size <= SMALL else None)], 0


def shaped(tensor: GraphTensor) -> Shaped:
    """Return a weight as what rules read."""
    return Shaped(tensor.shape, tensor.data if tensor.elements <= SMALL else None)


def _shape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    attributes = node.attributes
    data = np.array(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")], np.int64)  # type: ignore[misc]
    return [Shaped(data.shape, data)], 0


def _constant_of_shape(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    shape, value = tuple(_sizes(inputs[0])), node.attributes.get("value")
    if isinstance(value, GraphTensor) and value.data is not None and count(shape) <= SMALL:
        return [Shaped(shape, np.full(shape, value.data.reshape(-1)[0]))], 0
    return [Shaped(shape)], 0


def _expand(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape = broadcast(inputs[0].shape, tuple(_sizes(inputs[1])))
    data = inputs[0].data
    return [Shaped(shape, None if data is None or count(shape) > SMALL else np.broadcast_to(data, shape))], 0


def _tile(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    pairs = zip(inputs[0].shape, _sizes(inputs[1]), strict=True)
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
    wanted = _sizes(inputs[1])
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
    axis = axis + len(shape) if axis < 0 else axis  # type: ignore[operator]
    return [Shaped((count(shape[:axis]), count(shape[axis:])))], 0


def _squeeze(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    rank = len(first.shape)
    given = len(inputs) > 1 and inputs[1] is not None
    axes = {_axis(axis, rank) for axis in _sizes(inputs[1])} if given else set(range(rank))
    left = [axis for axis in range(rank) if not (axis in axes and (given or first.shape[axis] == 1))]
    shape = tuple(first.shape[axis] for axis in left)
    if count(shape) != count(first.shape):
        raise ValueError("it drops an axis of more than one row")
    return [Shaped(shape, None if first.data is None else first.data.reshape(shape))], 0


def _unsqueeze(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    added = _sizes(inputs[1])
    rank = len(first.shape) + len(added)
    axes, sizes = {_axis(axis, rank) for axis in added}, list(first.shape)
    if len(axes) < len(added):
        raise ValueError("it adds an axis twice")
    shape = tuple(1 if axis in axes else sizes.pop(0) for axis in range(rank))
    return [Shaped(shape, None if first.data is None else first.data.reshape(shape))], 0


def _transpose(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    order = node.attributes.get("perm", tuple(reversed(range(len(first.shape)))))
    if sorted(order) != list(range(len(first.shape))):  # type: ignore[call-overload]
        raise ValueError("it orders axes that a tensor does not have")
    data = None if first.data is None else first.data.transpose(order)
    return [Shaped(tuple(first.shape[axis] for axis in order), data)], 0  # type: ignore[attr-defined]


def _concat(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    parts = [value for value in inputs if value is not None]
    axis = _axis(node.attributes["axis"], len(parts[0].shape))
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
    axis, parts = _axis(node.attributes.get("axis", 0), len(first.shape)), len(node.outputs)
    size = first.shape[axis]
    each = -(-size // parts)
    sizes = [min(each, max(0, size - each * part)) for part in range(parts)]
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = _sizes(inputs[1])
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
    starts, ends = _sizes(inputs[1]), _sizes(inputs[2])
    rank, more = len(first.shape), [*inputs[3:], None, None]
    axes = list(range(len(starts))) if more[0] is None else _sizes(more[0])
    steps = [1] * len(starts) if more[1] is None else _sizes(more[1])
    cut = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # from behind, an end before the beginning means the beginning is included
        stop = None if step < 0 and end < -first.shape[_axis(axis, rank)] else end
        cut[_axis(axis, rank)] = slice(start, stop, step)
    shape = tuple(len(range(*each.indices(size))) for each, size in zip(cut, first.shape, strict=True))
    return [Shaped(shape, None if first.data is None else first.data[tuple(cut)])], 0


def _gather(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    data, rows = inputs[0], inputs[1]
    assert data is not None
    assert rows is not None
    axis = _axis(node.attributes.get("axis", 0), len(data.shape))
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
    skipped: Any = node.attributes.get("batch_dims", 0)
    return [Shaped((*rows.shape[:-1], *data.shape[skipped + rows.shape[-1] :]))], 0


def _pad(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    pads, shape = _sizes(inputs[1]), list(first.shape)
    axes = range(len(shape)) if len(inputs) < 4 or inputs[3] is None else _sizes(inputs[3])
    for index, axis in enumerate(axes):
        shape[_axis(axis, len(shape))] += pads[index] + pads[index + len(pads) // 2]
    return [Shaped(tuple(shape))], 0


def _resize(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    if node.attributes.get("axes") or node.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("it resizes in a way that hierclass does not write")
    if len(inputs) > 3 and inputs[3] is not None:
        shape = tuple(_sizes(inputs[3]))
    else:
        scales = known(inputs[2]).reshape(-1)
        shape = tuple(math.floor(size * scale) for size, scale in zip(first.shape, scales, strict=True))
    if len(shape) != len(first.shape):
        raise ValueError("it resizes to other axes")
    taps = max(1, count(first.shape) // max(1, count(shape)))  # of a filter that shrinks
    return [Shaped(shape)], count(shape) * 16 * taps


def _one_hot(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape, axis = list(inputs[0].shape), node.attributes.get("axis", -1)
    shape.insert(_axis(axis, len(shape) + 1), *_sizes(inputs[1]))
    return [Shaped(tuple(shape))], 0


def _conv(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    image, weight = inputs[0], inputs[1]
    assert image is not None
    assert weight is not None
    spatial = _windows(node, image.shape, weight.shape[2:])
    shape = (image.shape[0], weight.shape[0], *spatial)
    return [Shaped(shape)], count(shape) * count(weight.shape[1:])


def _conv_transpose(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    image, weight = inputs[0], inputs[1]
    assert image is not None
    assert weight is not None
    attributes: dict[str, Any] = dict(node.attributes)
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
        raise ValueError("it enlarges in a way that hierclass does not write")
    axes = len(weight.shape) - 2
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    pads, more = attributes.get("pads", [0] * 2 * axes), attributes.get("output_padding", [0] * axes)
    spatial = tuple(
        strides[i] * (image.shape[2 + i] - 1)
        + more[i]
        + (weight.shape[2 + i] - 1) * dilations[i]
        + 1
        - pads[i]
        - pads[i + axes]
        for i in range(axes)
    )
    shape = (image.shape[0], weight.shape[1] * attributes.get("group", 1), *spatial)
    return [Shaped(shape)], count(image.shape) * count(weight.shape[1:])


def _pool(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    window: Any = node.attributes["kernel_shape"]
    shape = (*inputs[0].shape[:2], *_windows(node, inputs[0].shape, tuple(window)))
    return [Shaped(shape)], count(shape) * count(tuple(window))


def _windows(node: GraphNode, shape: Sizes, window: Sizes) -> Sizes:
    """Return how many windows there are along each side of an image (B, C, …)."""
    attributes: dict[str, Any] = dict(node.attributes)
    axes = len(window)
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    pads, mode = attributes.get("pads", [0] * 2 * axes), attributes.get("auto_pad", b"NOTSET")
    if not len(strides) == len(dilations) == len(shape) - 2 == axes or min(*strides, *dilations, *window) < 1:
        raise ValueError("it has windows that no image has")
    found = []
    for axis, (size, each, stride, apart) in enumerate(zip(shape[2:], window, strides, dilations, strict=True)):
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            found.append(-(-size // stride))
            continue
        padded = size if mode == b"VALID" else size + pads[axis] + pads[axis + axes]
        reach = padded - (each - 1) * apart - 1
        found.append((-(-reach // stride) if attributes.get("ceil_mode") else reach // stride) + 1)
    if min(found) < 1 or max(map(abs, pads)) > MOST_PADDING:
        raise ValueError("it has windows that no image has")
    return tuple(found)


def _global_pool(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    return [Shaped((*inputs[0].shape[:2], *[1] * (len(inputs[0].shape) - 2)))], count(inputs[0].shape)


def _matmul(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    left, right = inputs[0], inputs[1]
    assert left is not None
    assert right is not None
    rows = left.shape if len(left.shape) > 1 else (1, *left.shape)
    columns = right.shape if len(right.shape) > 1 else (*right.shape, 1)
    if rows[-1] != columns[-2]:
        raise ValueError("it multiplies matrices that do not fit")
    whole = (*broadcast(rows[:-2], columns[:-2]), rows[-2], columns[-1])
    shape = whole[: len(whole) - (len(right.shape) == 1)]
    shape = shape if len(left.shape) > 1 else (*shape[:-2], *shape[-1:])
    return [Shaped(shape)], count(whole) * rows[-1]


def _gemm(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    assert inputs[1] is not None
    (rows, inner), (other, columns) = inputs[0].shape, inputs[1].shape
    rows, inner = (inner, rows) if node.attributes.get("transA") else (rows, inner)
    other, columns = (columns, other) if node.attributes.get("transB") else (other, columns)
    if inner != other:
        raise ValueError("it multiplies matrices that do not fit")
    return [Shaped((rows, columns))], rows * inner * columns


def _einsum(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    equation = node.attributes["equation"]
    assert isinstance(equation, bytes)
    given, _, wanted = equation.decode("ascii").replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for letters, value in zip(given.split(","), inputs, strict=True):
        assert value is not None
        if len(letters) != len(value.shape) or not letters.isalpha():
            raise ValueError("it sums up in a way that hierclass does not write")
        for letter, size in zip(letters, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError("it multiplies tensors that do not fit")
    return [Shaped(tuple(sizes[letter] for letter in wanted))], math.prod(sizes.values())


def _reduce(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first, attributes = inputs[0], node.attributes
    assert first is not None
    rank = len(first.shape)
    listed: Any = attributes.get("axes", [])  # of ReduceL2 … an attribute before version 18
    listed = _sizes(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else listed
    if node.operator in ("ArgMax", "ArgMin"):
        listed = [attributes.get("axis", 0)]
    elif not listed and attributes.get("noop_with_empty_axes"):
        return [Shaped(first.shape)], 0
    axes = {_axis(axis, rank) for axis in listed} or set(range(rank))
    kept = attributes.get("keepdims", 1)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(first.shape) if kept or axis not in axes)
    return [Shaped(shape)], count(first.shape)


def _top_k(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape = list(inputs[0].shape)
    (shape[_axis(node.attributes.get("axis", -1), len(shape))],) = _sizes(inputs[1])
    return [Shaped(tuple(shape))] * 2, 16 * count(inputs[0].shape)


def _blocks(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    images, channels, height, width = inputs[0].shape
    block: Any = node.attributes["blocksize"]
    if node.operator == "DepthToSpace":
        return [Shaped((images, channels // block**2, height * block, width * block))], 0
    return [Shaped((images, channels * block**2, height // block, width // block))], 0


def _recurrent(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    length, batch, features = inputs[0].shape
    hidden: Any = node.attributes["hidden_size"]
    ways = 2 if node.attributes.get("direction", b"forward") == b"bidirectional" else 1
    if node.attributes.get("layout", 0):
        raise ValueError("it orders axes in a way that hierclass does not write")
    last = Shaped((ways, batch, hidden))
    macs = length * ways * batch * 4 * hidden * (features + hidden)
    return [Shaped((length, ways, batch, hidden)), last, last], macs


_UNARY = """Relu Sigmoid Tanh Gelu HardSwish HardSigmoid LeakyRelu Elu Selu Celu Softplus Softsign Mish Erf Exp Log Sqrt
Reciprocal Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh IsNaN IsInf Clip Softmax LogSoftmax LayerNormalization
BatchNormalization InstanceNormalization GroupNormalization LpNormalization QuantizeLinear DequantizeLinear CumSum Trilu
ScatterND ScatterElements ThresholdedRelu Shrink Dropout LRN MeanVarianceNormalization PRelu"""
_REDUCING = "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp"
RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY.split(), _same),
    **dict.fromkeys((f"Reduce{each}" for each in _REDUCING.split()), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduce),
    **dict.fromkeys(("Pow", "Sum", "Mean", "Xor"), _combined()),
    **{
        name: _combined(compute)
        for name, compute in {
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
        }.items()
    },
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
    "Pad": _pad,
    "Resize": _resize,
    "OneHot": _one_hot,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "TopK": _top_k,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    "LSTM": _recurrent,
    "GRU": _recurrent,
}
"""Operator → its rule. None runs code, reads files, or repeats a graph."""
