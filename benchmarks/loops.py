"""What others would write to label photographs: timm's loop, and one around ONNX Runtime, over the dense network."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from dense import dense_network, export_dense
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import create_dataset, create_loader

from hierclass.checkpoints.checkpoint import Checkpoint
from hierclass.images.preprocessing import resize_side
from hierclass.processors import num_cores
from hierclass.runtime.onnx_runtime import import_onnxruntime

Loop = Callable[[], int]
"""Answers all photographs of a folder; returns their number."""


def timm_loop(checkpoint: Checkpoint, folder: Path, batch_size: int) -> Loop:
    """What timm's inference.py does: a DataLoader with its evaluation transforms, the dense model, the best class."""
    dense = dense_network(checkpoint).eval().to(memory_format=torch.channels_last)
    about = checkpoint.preprocessing
    dataset = create_dataset(root=str(folder.parent), name="", split=folder.name)

    @torch.inference_mode()
    def call() -> int:
        torch.set_num_threads(num_cores())
        loader = create_loader(
            dataset,
            input_size=checkpoint.network.input_size,
            batch_size=batch_size,
            use_prefetcher=False,
            num_workers=num_cores(),
            crop_pct=about.crop,
            interpolation=about.interpolation,
            mean=about.mean,
            std=about.std,
        )
        count = 0
        for images, _ in loader:
            dense(images.contiguous(memory_format=torch.channels_last)).softmax(-1).topk(1)
            count += len(images)
        return count

    return call


def onnx_loop(checkpoint: Checkpoint, folder: Path, batch_size: int, exported: Path) -> Loop:
    """What a good engineer writes in an hour: a decoding process per core, batches of uint8, one session on all cores.

    The network is exported by torch to the file `exported`, its normalisation of pixels included.
    """
    if not exported.exists():
        export_dense(checkpoint, exported)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    about = checkpoint.preprocessing
    prepare = functools.partial(read_centre, side=about.size, resized=resize_side(about))
    files = sorted(folder.iterdir())
    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")

    def call() -> int:
        count = 0
        with ProcessPoolExecutor(num_cores(), context) as pool:
            images = pool.map(prepare, files, chunksize=8)
            while batch := list(itertools.islice(images, batch_size)):
                logits = session.run(["logits"], {"images": np.stack(batch)})[0]
                count += len(logits.argmax(1))
        return count

    return call


def read_centre(file: Path, side: int, resized: int) -> NDArray[np.uint8]:
    """Return the centre square (side, side, 3) of a photograph whose shorter side is resized to `resized`."""
    with Image.open(file) as image:
        image.draft("RGB", (resized, resized))
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = resized / min(upright.size)
    small = upright.resize(
        (round(upright.width * scale), round(upright.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (small.width - side) // 2, (small.height - side) // 2
    return np.asarray(small.crop((left, top, left + side, top + side)))
