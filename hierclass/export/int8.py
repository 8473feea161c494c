"""Quantise the graph of a level: convolutions and matrix products in 8 bits, with ranges measured on images.

Static, per channel, QDQ: weights int8, activations uint8 (the pair that processors with AVX-512 VNNI and its relatives
multiply fastest). What was tried and what it cost: docs/export.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import ExportError, MissingExtraError
from hierclass.runtime.onnx_runtime import import_onnxruntime

if TYPE_CHECKING:
    import onnx

Inputs = Mapping[str, NDArray[Any]]
"""Values of a graph's inputs, for one image."""
Images = Callable[[], Iterable[Inputs]]
"""Yields the inputs for each image anew, every time it is called."""
Ranges = dict[str, tuple[float, float]]
"""Lowest and highest number that each tensor is to hold; what lies outside is clipped."""

BINS = 2048
SAMPLE = 32768
"""Numbers that enter the histogram of a tensor, per image, at most."""
_OPERATORS = ("Conv", "Relu", "Clip", "MatMul", "Gemm")
_INT32_OPERATORS = ("MatMul", "Gemm")
"""Operators whose outputs stay float32, since no product of 8 bits follows at once."""


def quantise(graph: Path, images: Images) -> onnx.ModelProto:
    """Return the graph of a level in 8 bits, with all its weights inside; its inputs and outputs stay as they are.

    Float32 stay what comes before the first convolution, that convolution and a depth-wise one right after it (few
    channels and many pixels: no faster in 8 bits, and half of the error), and what follows the features but for one
    product. Needs as much memory as the activations of one image.

    Raises:
        ExportError: the graph holds nothing that can be quantised, or an operator that fails.
        MissingExtraError: onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("writing graphs in 8 bits needs onnx: pip install onnx")
    from onnx import shape_inference

    model = shape_inference.infer_shapes(_folded(graph))
    kept_float = _kept_float(model)
    quantised = [
        node for node in model.graph.node if node.op_type in _OPERATORS and node.name not in kept_float
    ]
    if not any(node.op_type in ("Conv", *_INT32_OPERATORS) for node in quantised):
        raise ExportError(f"{graph.name} has no convolution or matrix product that can be run in 8 bits")
    ranges = measure_ranges(model, _activations(model, quantised), images)
    return _alone(_with_scales(model, ranges, kept_float))


def measure_ranges(model: onnx.ModelProto, names: list[str], images: Images) -> Ranges:
    """Return the range of each tensor that rounds to 8 bits with the least mean square error over the images."""
    session = _with_outputs(model, names)
    low, high = np.zeros(len(names)), np.zeros(len(names))
    for inputs in images():
        for index, values in enumerate(session.run(names, inputs)):
            low[index], high[index] = min(low[index], values.min()), max(high[index], values.max())
    high = np.maximum(high, low + 1e-6)
    counts = np.zeros((len(names), BINS))
    for number, inputs in enumerate(images()):
        for index, values in enumerate(session.run(names, inputs)):
            sample = _sample(values.reshape(-1), number)
            bins = (sample - low[index]) * (BINS / (high[index] - low[index]))
            counts[index] += np.bincount(bins.astype(np.int64).clip(0, BINS - 1), minlength=BINS)
    return {name: best_range(counts[index], low[index], high[index]) for index, name in enumerate(names)}


def best_range(counts: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the range that rounds numbers to 8 bits with the least mean square error, clipped ones counted.

    `counts` (BINS,) say how many numbers lie in each of as many equal parts of `low` … `high`, which hold 0 between
    them. Ranges from the whole down to a fifth of it are tried.
    """
    centres = low + (np.arange(BINS) + 0.5) * ((high - low) / BINS)
    best, least = (low, high), np.inf
    for part in np.linspace(1, 0.2, 41):
        for other in np.linspace(1, 0.2, 21) if low < -1e-9 else (1.0,):
            scale = (part * high - other * low) / 255
            zero = np.round(-other * low / scale)
            rounded = (np.clip(np.round(centres / scale) + zero, 0, 255) - zero) * scale
            error = float(counts @ (centres - rounded) ** 2)
            if error < least:
                best, least = (other * low, part * high), error
    return best


def _sample(values: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    """Every n-th of the values, for image `number` other ones than for the image before; n is odd."""
    step = max(1, len(values) // SAMPLE) | 1
    return values[number % step :: step]


def _folded(graph: Path) -> onnx.ModelProto:
    """The graph with norms and low-rank parts folded into its weights, as ONNX Runtime's basic optimisations do."""
    import onnx

    onnxruntime = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = _options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        whole = onnx.load(
            graph
        ).SerializeToString()  # with the weights of other files, which stay there otherwise
        onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
        folded: onnx.ModelProto = onnx.load(options.optimized_model_filepath)
        return folded


def _options() -> Any:
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> Any:
    """A session of the model that gives these tensors."""
    import onnx

    onnxruntime = import_onnxruntime()
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _kept_float(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that stay in float32."""
    nodes = list(model.graph.node)
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    kept = set[str]()
    if convolutions:
        first = convolutions[0]
        kept |= {node.name for node in _sources(model, first.input)} | {first.name}
        kept |= {node.name for node in _next_depthwise(model, first)}
    outputs = [each.name for each in model.graph.output if each.name != "logits"]
    body = {node.name for node in _sources(model, outputs)}
    after = (node for node in nodes if node.name not in body)
    return kept | {
        node.name for node in after if not (node.op_type == "Gemm" and node.input[0] == "features")
    }


def _sources(model: onnx.ModelProto, names: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """The nodes that tensors are computed from."""
    makers = {output: node for node in model.graph.node for output in node.output}
    todo, seen = list(names), set[str]()
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            yield node
            todo += node.input


def _next_depthwise(model: onnx.ModelProto, first: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The depth-wise convolutions that read a convolution's output, activated or not."""
    names = {first.output[0]}
    for node in model.graph.node:
        if node.input and node.input[0] in names:
            if node.op_type in ("Relu", "Clip"):
                names.add(node.output[0])
            elif node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute):
                yield node


def _activations(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The float32 tensors that nodes read and give, weights left out."""
    import onnx

    kinds = {
        each.name: each.type.tensor_type.elem_type
        for each in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    weights = {each.name for each in model.graph.initializer}
    found = (name for node in nodes for name in (*node.input[:2], node.output[0]))
    floats = (name for name in found if kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT)
    return [name for name in dict.fromkeys(floats) if name and name not in weights]


def _with_scales(model: onnx.ModelProto, ranges: Ranges, kept_float: set[str]) -> onnx.ModelProto:
    """The model with 8-bit weights, and every tensor of `ranges` rounded to 8 bits where it is read."""
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    found = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    options = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(_INT32_OPERATORS)}
    with _silence():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, found),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(kept_float),
            op_types_to_quantize=list(_OPERATORS),
            extra_options=options,
        )
        quantizer.quantize_model()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantiser from warning on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what says where it is from."""
    from onnx import helper

    del model.graph.value_info[:], model.metadata_props[:]
    model.producer_name = model.producer_version = model.doc_string = model.graph.doc_string = ""
    used = {node.domain for node in model.graph.node}
    versions = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(each.domain, each.version) for each in versions)
    return model
