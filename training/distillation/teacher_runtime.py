"""Run the teacher on uint8 crops: by ONNX Runtime if installed (four times as fast on a processor), else by torch."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hierclass.images.preprocessing import Preprocessing
from hierclass.runtime.onnx_runtime import import_onnxruntime
from training.distillation.teacher import Teacher

WORTH = 4096
"""Number of crops from which exporting the teacher pays; it takes some seconds."""
CLOSE = 0.05
"""Largest relative difference between the logits of the two runtimes; beyond it torch is used."""
_log = logging.getLogger(__name__)

TeacherFunction = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Crops uint8 (B, S, S, 3) → logits of the leaves, float32 (B, leaves)."""


class PixelClassifier(nn.Module):
    """A classifier that normalises its images itself: uint8 (B, S, S, 3) → logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module, preprocessing: Preprocessing) -> None:
        """Wrap a classifier of normalised images."""
        super().__init__()
        self.classifier = classifier
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1) * 255
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, leaves)."""
        logits: Tensor = self.classifier((images.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return logits


def make_teacher_function(
    teacher: Teacher, device: torch.device, num_crops: int, *, threads: int | None = None
) -> tuple[TeacherFunction, str]:
    """Return the function that answers crops, and the name of its runtime, for ``num_crops`` crops."""
    network = PixelClassifier(teacher.classifier, teacher.preprocessing).eval()
    if device.type == "cpu" and num_crops >= WORTH:
        exported = _by_onnxruntime(network, teacher.preprocessing.size, threads)
        if exported is not None:
            return exported, "ONNX Runtime"
    return run_by_torch(network, device), "torch"


def run_by_torch(network: nn.Module, device: torch.device) -> TeacherFunction:
    """Answer with a network (`PixelClassifier`) on a device."""
    network = network.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def answer(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        logits = network(torch.from_numpy(images).to(device))
        found: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    return answer


def _by_onnxruntime(network: nn.Module, side: int, threads: int | None) -> TeacherFunction | None:
    """Answer by ONNX Runtime; None if it is missing or can't run this network."""
    try:
        onnxruntime = import_onnxruntime()
        model = export_classifier(network, side)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        theirs = session.run(None, {"images": images})[0]
        ours = run_by_torch(network, torch.device("cpu"))(images)
    except Exception as error:  # not installed, or an operator that is not exported
        _log.debug("ONNX Runtime is not used: %s", error, exc_info=True)
        return None
    if not np.abs(theirs - ours).max() <= CLOSE * max(1.0, float(np.abs(ours).max())):
        return None

    def answer(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = session.run(None, {"images": images})[0]
        return found

    return answer


def export_classifier(network: nn.Module, side: int) -> bytes:
    """Return a `PixelClassifier` as the bytes of an ONNX file: `images` uint8 (B, side, side, 3) → `logits`, any B."""
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    silent = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    found: bytes = program.model_proto.SerializeToString()
    return found
