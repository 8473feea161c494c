"""Untrained timm classifiers of ImageNet-1k, and their files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from hierclass.images.preprocessing import Preprocessing, normalise

CAT = Path(__file__).parent.parent / "examples" / "cat.jpg"
NAME = "test_resnet"


def make_model(name: str = NAME, seed: int = 0) -> nn.Module:
    """An untrained model whose answers differ from image to image."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.3)  # type: ignore[operator,arg-type,union-attr]
    return model


def random_inputs(preprocessing: Preprocessing, count: int = 1) -> torch.Tensor:
    """Normalised images of random pixels, as `hierclass.images.preprocessing.preprocess` returns them."""
    size, generator = preprocessing.size, torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator).float()
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    return normalise(pixels, mean, std)


def sure_of(index: int, folder: Path, name: str = NAME) -> Path:
    """Weights of a model that gives output `index` to every image."""
    model = make_model(name)
    head: Any = model.get_classifier()  # type: ignore[operator]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias).data[index] = 20
    file = folder / f"{index}.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file
