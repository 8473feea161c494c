"""Untrained timm classifiers of ImageNet-1k, and their files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

CAT = Path(__file__).parent.parent / "examples" / "cat.jpg"
NAME = "test_resnet"


def make_model(name: str = NAME, seed: int = 0) -> nn.Module:
    """An untrained model whose answers differ from image to image."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.3)  # type: ignore[operator,arg-type,union-attr]
    return model


def sure_of(index: int, folder: Path, name: str = NAME) -> Path:
    """Weights of a model that gives output `index` to every image."""
    model = make_model(name)
    head: Any = model.get_classifier()  # type: ignore[operator]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias).data[index] = 20
    file = folder / f"{index}.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file
