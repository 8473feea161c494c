"""Whether this processor multiplies 8 bits exactly: x86 without VNNI adds products up in 16 bits and clips the sums."""

from __future__ import annotations

import base64
import functools
from types import ModuleType

import numpy as np

_GRAPH = base64.b64decode(
    "CAgSADp/ChEKAXYKAXMSAWIiBkV4cGFuZAoYCgF4CgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFnKggQA0IBdkoBfyoZCAIQB0IBc0oQ"
    "QAAAAAAAAAAQAAAAAAAAAFoTCgF4Eg4KDAgCEggKAggECgIIQGITCgF5Eg4KDAgGEggKAggECgIIEEIECgAQDQ=="
)
"""ONNX: `y` int32 (4, 16) = `x` uint8 (4, 64) times int8 (64, 16), all 127; opset 13."""


@functools.cache
def clips_sums(onnxruntime: ModuleType) -> bool:
    """Return whether products of uint8 and int8 come out wrong, tried with the largest ones; starts no thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_GRAPH, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})
    return bool((found != 64 * 255 * 127).any())
