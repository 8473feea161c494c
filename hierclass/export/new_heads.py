"""Graphs of a model from those of the model whose network it runs: everything up to the features stays, heads are new.

Tracing a network takes many seconds per level; replacing the nodes behind its features takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.checkpoints.description import read_description
from hierclass.errors import ExportError, require
from hierclass.export.graphs import write_graphs
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import NestedNetwork
from hierclass.nested.heads import SummedLinear
from hierclass.runtime.graph_bounds import check_file

if TYPE_CHECKING:
    import onnx_ir


def write_graphs_like(folder: Path, source: Path, levels: Sequence[int]) -> None:
    """Write the graphs of a model folder whose level k is level `levels[k]` of the model in `source` but for its head.

    Raises:
        ExportError: that model has no graphs, or a graph gives other numbers than PyTorch.
        MissingExtraError: the packages that export are not installed.
    """
    require("onnx", "onnxscript", what="writing graphs for ONNX Runtime")
    import onnx_ir

    description, graphs = read_description(source)
    if graphs is None:
        raise ExportError(f"{source} has no graphs")
    files, size, num_classes = graphs.files, description.preprocessing.size, description.taxonomy.num_classes

    def export(network: NestedNetwork, level: int, _: Preprocessing) -> onnx_ir.Model:
        file = source / files[levels[level]]
        check_file(file, size, num_classes[levels[level]])
        model = onnx_ir.external_data.load_to_model(onnx_ir.load(file))
        replace_head(model, network.heads[level])
        return model

    write_graphs(folder, load_checkpoint(folder), export=export)


def replace_head(model: onnx_ir.Model, head: nn.Module) -> None:
    """Let the logits of a level's graph be what `head` makes of its features, in place.

    Raises:
        ExportError: it is another graph than `export_level` makes, or another kind of head.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    graph = model.graph
    names = [value.name for value in graph.outputs]
    if names[:2] != ["logits", "features"] or not isinstance(head, nn.Linear):
        raise ExportError("the graph has no features that a head could read")
    former, features = graph.outputs[:2]
    former.name = "former_logits"
    for value in [each for each in graph.initializers.values() if str(each.name).startswith("head.")]:
        value.name = f"former_{value.name}"

    def constant(name: str, values: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(values), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
        return value

    def add(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        graph.append(node)
        (output,) = node.outputs
        output.name = f"head.{operator}"
        return output

    weight, bias = (each.detach().float().numpy() for each in (head.weight, head.bias))
    found = add("Gemm", features, constant("head.weight", weight), constant("head.bias", bias), transB=1)
    if isinstance(head, SummedLinear):
        groups, depth = head.groups.numpy(), np.array([head.num_classes], np.int64)
        member = add(
            "OneHot",
            constant("head.groups", groups),
            constant("head.num_classes", depth),
            constant("head.values", np.array([0, 1], np.float32)),
        )
        summed = add("MatMul", add("Softmax", found, axis=1), member)
        lowest = np.array(torch.finfo(torch.float32).tiny, np.float32)
        found = add("Log", add("Clip", summed, constant("head.lowest", lowest)))
    num_classes = head.num_classes if isinstance(head, SummedLinear) else head.out_features
    batch = graph.inputs[0].shape
    found.name, found.type = "logits", former.type
    found.shape = ir.Shape([batch[0] if batch is not None else "batch", num_classes])
    graph.outputs[0] = found
    passes.RemoveUnusedNodesPass()(model)
