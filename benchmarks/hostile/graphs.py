"""Graphs that ask ONNX Runtime for hours, or for memory that none of their tensors has."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from hostile import HostileFile
from hostile.models import Graph, changed_graph, into_logits


def _from_image(model: Graph, shape: list[int]) -> str:
    """Add a tensor of a shape that depends on the image, so that it can't be computed once; return its name."""
    sizes = numpy_helper.from_array(np.array(shape, np.int64), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.append(helper.make_node("Cast", ["images"], ["floats"], "floats", to=1))
    model.graph.node.append(helper.make_node("ReduceMax", ["floats"], ["most"], "most", keepdims=0))
    model.graph.node.append(helper.make_node("Expand", ["most", "sizes"], ["wide"], "wide"))
    return "wide"


def _add(model: Graph, operator: str, inputs: list[str], **attributes: Any) -> None:
    """Add a node whose output gets into the logits."""
    model.graph.node.append(helper.make_node(operator, inputs, ["added"], "added", **attributes))
    into_logits(model, "added")


def _pool(model: Graph) -> None:
    _add(model, "MaxPool", [_from_image(model, [1, 1, 1000, 1000])], kernel_shape=[200, 200])


def _enlarge(model: Graph) -> None:
    image = _from_image(model, [1, 1, 500, 500])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 90, 90), np.float32), "kernel"))
    _add(model, "ConvTranspose", [image, "kernel"])


def _four_axes(model: Graph) -> None:
    image = _from_image(model, [1, 1, 30, 30, 30, 30])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, *[10] * 4), np.float32), "kernel"))
    _add(model, "Conv", [image, "kernel"])


def _normalise(model: Graph) -> None:
    _add(model, "LRN", [_from_image(model, [1, 1, 1, 1])], size=2**30 + 1)


def _sums(model: Graph) -> None:
    matrix = _from_image(model, [190, 190])
    _add(model, "Einsum", [matrix] * 4, equation="ac,bd,ad,bc->")


def _many_nodes(model: Graph) -> None:
    before = _from_image(model, [16])
    for step in range(30_000):
        model.graph.node.append(helper.make_node("Abs", [before], [f"a{step}"], f"a{step}"))
        before = f"a{step}"
    into_logits(model, before)


def _slow_maps(model: Graph) -> None:
    before = _from_image(model, [5000, 5000])
    for step in range(1000):
        model.graph.node.append(helper.make_node("Sin", [before], [f"s{step}"], f"s{step}"))
        before = f"s{step}"
    into_logits(model, before)


GRAPHS = [
    HostileFile("a window of 40,000 pixels at each place", changed_graph(_pool), "more memory or time"),
    HostileFile("an enlargement by windows of 8,100", changed_graph(_enlarge), "overlap too often"),
    HostileFile("windows of four axes", changed_graph(_four_axes), "more than two axes"),
    HostileFile("a sum over 10^9 channels", changed_graph(_normalise), "'LRN'"),
    HostileFile("a product of four matrices at once", changed_graph(_sums), "more than two tensors"),
    HostileFile("30,000 nodes", changed_graph(_many_nodes), "operators"),
    HostileFile("a thousand sines of 25 million numbers", changed_graph(_slow_maps), "more memory or time"),
]
