"""One level of a network as an ONNX model: pixels and what the level below kept → logits, features, kept."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hierclass.errors import ExportError, require
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import NestedNetwork
from hierclass.nested.level_graph import Kept, resize_by_products

if TYPE_CHECKING:
    import onnx_ir

OPSET = 20
"""Version of ONNX's operators; ONNX Runtime has it since 1.17."""
SMALL = 256
"""Constants of no more elements are computed in advance (shapes, above all); weights stay as they are stored."""
BATCHES = (3, 2)
"""Numbers of images that a level is tried with; the first is the one it is traced with."""
_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|quantized)(?:::|\.)\w+")


@dataclass(frozen=True)
class LevelSignature:
    """What a level takes and gives."""

    given: tuple[tuple[Tensor, bool], ...]
    """What the level below keeps of `BATCHES[0]` images, and whether it has a row per image."""
    num_kept: int

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return ["images", *(f"given{index}" for index in range(len(self.given)))]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return ["logits", "features", *(f"kept{index}" for index in range(self.num_kept))]


class ExportedLevel(nn.Module):
    """A level with its head and what comes before it: images uint8 (B, S, S, 3) → logits, features and kept."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: NestedNetwork, level: int, preprocessing: Preprocessing):
        """Take level `level` of `network`; it sees images normalised as `preprocessing` says, at its own size."""
        super().__init__()
        self.level, self.head = network.level_module(level), network.heads[level]
        self.side = shrunk_side(network, level)
        for name, values in (("pixel_mean", preprocessing.mean), ("pixel_std", preprocessing.std)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None])
        self.eval()

    def forward(self, images: Tensor, given: Kept) -> tuple[Tensor, ...]:
        """Return logits (B, C), features (B, F) and what the level keeps."""
        pixels = images.float()
        image = pixels.permute(0, 3, 1, 2) if self.side is None else resize_by_products(pixels, self.side)
        image = image.contiguous()  # else pooling keeps the order of memory, by gathering
        features, kept = self.level((image - self.pixel_mean) / self.pixel_std, given)
        return self.head(features), features, *kept


def shrunk_side(network: NestedNetwork, level: int) -> int | None:
    """Return the side in pixels to which a level shrinks images of any size; None: it takes one size as it is."""
    side = network.input_size[1] if network.sizes is None else network.sizes[level]
    return None if side == network.input_size[1] else side


@torch.no_grad()
def signature(network: NestedNetwork, level: int) -> LevelSignature:
    """Return what a level is given and keeps, found by running the levels up to it on images of zeros."""
    runs = [_keep(network, level, batch) for batch in BATCHES]
    given = tuple(
        (first.clone(), first.shape[0] == BATCHES[0] and second.shape[0] == BATCHES[1])
        for first, second in zip(*(given for given, _ in runs), strict=True)
    )
    return LevelSignature(given, len(runs[0][1]))


def _keep(network: NestedNetwork, level: int, batch: int) -> tuple[Kept, Kept]:
    """Return what the level below keeps, and what this level keeps."""
    image = torch.zeros(batch, *network.input_size)
    given: Kept = ()
    kept: Kept = ()
    for run in network.level_functions(network.num_levels - 1)[0 if network.reuses else level : level + 1]:
        given = kept
        _, kept = run(image, given)
    return given, kept


def export_level(network: NestedNetwork, level: int, preprocessing: Preprocessing) -> onnx_ir.Model:
    """Return a level in evaluation mode as an ONNX model with its weights as float32 initializers.

    The number of images is free, and so is their side where the level shrinks them.

    Raises:
        ExportError: the level can't be exported; the message names the operator.
        MissingExtraError: the packages that export are not installed.
    """
    require("torch", "onnx", "onnxscript", what="writing graphs for ONNX Runtime")
    level_alone, found = ExportedLevel(network, level, preprocessing), signature(network, level)
    batch, side = torch.export.Dim("batch"), torch.export.Dim("side")
    sides = {} if level_alone.side is None else {1: side, 2: side}
    images = torch.zeros(BATCHES[0], *network.input_size[1:], 3, dtype=torch.uint8)
    shapes = {
        "images": {0: batch, **sides},
        "given": tuple({0: batch} if rows else {} for _, rows in found.given),
    }
    try:
        with _silence(), torch.no_grad():
            program = torch.export.export(
                level_alone,
                (images, tuple(value for value, _ in found.given)),
                dynamic_shapes=shapes,
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
            )
            assert exported is not None
            simplify(exported.model)
        _name_values(exported.model, found)
        _name_sizes(exported.model)
        return exported.model
    except Exception as error:  # torch's exporter raises whatever the traced code meets
        raise ExportError(f"level {level} can't be exported to ONNX: {reason_for(error)}") from error


def simplify(model: onnx_ir.Model) -> None:
    """Compute small constants in advance, and drop what is not used and all that describes where a node is from."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    optimizer.fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
    _drop_zero_biases(model)
    for each in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=False),
        passes.ClearMetadataAndDocStringPass(),
    ):
        each(model)


def _drop_zero_biases(model: onnx_ir.Model) -> None:
    """Drop the zeros that the exporter gives convolutions without bias, one tensor for each."""
    from onnx_ir.convenience import get_const_tensor

    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) == 3 else None
        made = None if bias is None else bias.producer()
        if made is not None and made.op_type == "Expand":
            bias = made.inputs[0]
        zeros = None if bias is None else get_const_tensor(bias)
        if zeros is not None and not zeros.numpy().any():
            node.resize_inputs(2)


def _name_values(model: onnx_ir.Model, found: LevelSignature) -> None:
    """Name inputs and outputs; what is an input as well, or an output twice (features that are kept), is copied."""
    import onnx_ir

    for value, name in zip(model.graph.inputs, found.inputs, strict=True):
        value.name = name
    outputs = model.graph.outputs
    for index, name in enumerate(found.outputs):
        value = outputs[index]
        if value.is_graph_input() or any(value is other for other in outputs[:index]):
            copy = onnx_ir.node("Identity", [value])
            model.graph.append(copy)
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            outputs[index] = value = copy.outputs[0]
        value.name = name


def _name_sizes(model: onnx_ir.Model) -> None:
    """Name the free sizes as what they are, everywhere."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    names = {str(size): name for size, name in zip(shape, ("batch", "side"), strict=False)}
    for value in (*model.graph.inputs, *(each for node in model.graph for each in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and str(size) in names:
                value.shape[axis] = names[str(size)]  # type: ignore[index]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep torch's exporter from printing and warning."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def reason_for(error: BaseException) -> str:
    """Say in one line what stands in the way: the operator, if an error of the chain names one."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    if any("Constraints violated" in str(each) for each in chain):
        return "its code computes with the number of images as a fixed one (len of a tensor, for example)"
    operators = [found[0] for each in chain if (found := _OPERATOR.search(str(each)))]
    lines = [line for line in str(chain[-1]).strip().splitlines() if line.strip()]
    said = f"{type(chain[-1]).__name__}: {' '.join(lines[:1])[:200]}"
    return f"operator {operators[-1]}: {said}" if operators else said
