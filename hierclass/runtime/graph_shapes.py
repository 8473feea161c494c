"""The shapes of all that a graph computes, found without computing it: the rule of each operator that is allowed.

Every size must follow from the sizes of the inputs and from weights. Sources: the operators' definitions in ONNX,
version 20.
"""

from __future__ import annotations

import math

from hierclass.runtime.graph_reader import GraphNode
from hierclass.runtime.graph_values import (
    REARRANGING,
    Inputs,
    Rule,
    Shaped,
    Sizes,
    axis_of,
    broadcast,
    count,
    known,
    same_shape,
    sizes_of,
)

_UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
)
"""What a rule meets in a node that no exporter writes."""
MOST_PADDING = 4096
"""Pixels that are added beside an image; what is added to fill a window is less than the window."""


MOST_UNFOLDED = 16
"""Numbers that an enlarging convolution holds per number that it gives; a kernel of 4 with a stride of 2 holds 4."""
WORK_OF_NUMBER = 32
"""Multiply-accumulates in whose time a processor compares or maps one number."""


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
    except _UNFIT as error:
        raise ValueError(f"the size of what {node.operator} gives can't be known") from error
    if len(node.outputs) > len(found):
        raise ValueError(f"{node.operator} gives more than hierclass reads of it")
    return found, macs


def _pad(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    pads, shape = sizes_of(inputs[1]), list(first.shape)
    axes = range(len(shape)) if len(inputs) < 4 or inputs[3] is None else sizes_of(inputs[3])
    for index, axis in enumerate(axes):
        shape[axis_of(axis, len(shape))] += pads[index] + pads[index + len(pads) // 2]
    return [Shaped(tuple(shape))], 0


def _resize(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    first = inputs[0]
    assert first is not None
    if (
        node.attributes.get("axes")
        or node.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    ):
        raise ValueError("it resizes in a way that hierclass does not write")
    if len(inputs) > 3 and inputs[3] is not None:
        shape = tuple(sizes_of(inputs[3]))
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
    shape.insert(axis_of(axis, len(shape) + 1), *sizes_of(inputs[1]))
    return [Shaped(tuple(shape))], 0


def _conv(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    image, weight = inputs[0], inputs[1]
    assert image is not None
    assert weight is not None
    if len(weight.shape) > 4:  # for which ONNX Runtime unfolds the whole image
        raise ValueError("it has windows of more than two axes")
    spatial = _windows(node, image.shape, weight.shape[2:])
    shape = (image.shape[0], weight.shape[0], *spatial)
    return [Shaped(shape)], count(shape) * count(weight.shape[1:])


def _conv_transpose(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    image, weight = inputs[0], inputs[1]
    assert image is not None
    assert weight is not None
    attributes = node.attributes
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
    unfolded = count(weight.shape[1:]) * count(image.shape[2:])  # what ONNX Runtime holds for a group
    if unfolded > MOST_UNFOLDED * count(shape):
        raise ValueError("it enlarges by windows that overlap too often")
    return [Shaped(shape)], count(image.shape) * count(weight.shape[1:])


def _pool(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    window = node.attributes["kernel_shape"]
    shape = (*inputs[0].shape[:2], *_windows(node, inputs[0].shape, tuple(window)))
    return [Shaped(shape)], count(shape) * count(tuple(window)) * WORK_OF_NUMBER


def _windows(node: GraphNode, shape: Sizes, window: Sizes) -> Sizes:
    """Return how many windows there are along each side of an image (B, C, …)."""
    attributes = node.attributes
    axes = len(window)
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    pads, mode = attributes.get("pads", [0] * 2 * axes), attributes.get("auto_pad", b"NOTSET")
    if not len(strides) == len(dilations) == len(shape) - 2 == axes or min(*strides, *dilations, *window) < 1:
        raise ValueError("it has windows that no image has")
    found = []
    for axis, (size, each, stride, apart) in enumerate(
        zip(shape[2:], window, strides, dilations, strict=True)
    ):
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
    if len(inputs) > 2:
        raise ValueError("it multiplies more than two tensors at once")
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
    listed = attributes.get("axes", [])  # of ReduceL2 … an attribute before version 18
    listed = sizes_of(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else listed
    if node.operator in ("ArgMax", "ArgMin"):
        listed = [attributes.get("axis", 0)]
    elif not listed and attributes.get("noop_with_empty_axes"):
        return [Shaped(first.shape)], 0
    axes = {axis_of(axis, rank) for axis in listed} or set(range(rank))
    kept = attributes.get("keepdims", 1)
    shape = tuple(
        1 if axis in axes else size for axis, size in enumerate(first.shape) if kept or axis not in axes
    )
    return [Shaped(shape)], count(first.shape)


def _top_k(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    shape = list(inputs[0].shape)
    (shape[axis_of(node.attributes.get("axis", -1), len(shape))],) = sizes_of(inputs[1])
    return [Shaped(tuple(shape))] * 2, 16 * count(inputs[0].shape)


def _blocks(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    images, channels, height, width = inputs[0].shape
    block = node.attributes["blocksize"]
    if node.operator == "DepthToSpace":
        return [Shaped((images, channels // block**2, height * block, width * block))], 0
    return [Shaped((images, channels * block**2, height // block, width // block))], 0


def _recurrent(node: GraphNode, inputs: Inputs) -> tuple[list[Shaped], int]:
    assert inputs[0] is not None
    length, batch, features = inputs[0].shape
    hidden = node.attributes["hidden_size"]
    ways = 2 if node.attributes.get("direction", b"forward") == b"bidirectional" else 1
    if node.attributes.get("layout", 0):
        raise ValueError("it orders axes in a way that hierclass does not write")
    last = Shaped((ways, batch, hidden))
    macs = length * ways * batch * 4 * hidden * (features + hidden)
    return [Shaped((length, ways, batch, hidden)), last, last], macs


_UNARY = """Relu Sigmoid Tanh Gelu HardSwish HardSigmoid LeakyRelu Elu Selu Celu Softplus Softsign Mish Erf Exp Log Sqrt
Reciprocal Round Sign Sin Cos IsNaN IsInf Clip Softmax LogSoftmax LayerNormalization
BatchNormalization InstanceNormalization GroupNormalization LpNormalization QuantizeLinear DequantizeLinear CumSum Trilu
ScatterND ScatterElements ThresholdedRelu Shrink Dropout PRelu"""
_REDUCING = "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp"
RULES: dict[str, Rule] = {
    **REARRANGING,
    **dict.fromkeys(_UNARY.split(), same_shape),
    **dict.fromkeys((f"Reduce{each}" for each in _REDUCING.split()), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduce),
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
