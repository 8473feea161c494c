"""What a file of safetensors says that it holds, checked against its size before a tensor of it is read."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from hierclass.files import check_regular, open_regular

MAX_HEADER_BYTES = 16 * 2**20
"""Bytes of the JSON at the beginning. The bundled model's 744 tensors take 74,304, so this is enough for 160,000."""


@dataclass(frozen=True)
class WeightsHeader:
    """Names, types and shapes of the tensors of a file, whose bytes it holds, and its metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name → type as safetensors calls it ("F16", "I64" …), and shape."""
    metadata: dict[str, str]

    @property
    def elements(self) -> int:
        """Number of numbers in all tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


@contextlib.contextmanager
def open_weights(file: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a file of safetensors of bounded header, as `safetensors.safe_open` does.

    Raises:
        OSError: there is no such file, it can't be read, or it is no regular one.
        ValueError: it is damaged, or its header is too long.
    """
    with open_regular(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
    try:
        with safetensors.safe_open(file, framework=framework) as opened:
            yield opened
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def check_archive(file: Path) -> None:
    """Refuse a file of PyTorch (.pth), a zip, whose members are packed: torch packs none, and unpacks any size.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: a member is packed, or lies beyond the end of the file.
    """
    size = check_regular(file)
    if not zipfile.is_zipfile(file):
        return  # of an early version
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if (
        any(each.compress_type != zipfile.ZIP_STORED for each in members)
        or sum(each.file_size for each in members) > size
    ):
        raise ValueError("its members are packed")


def read_header(file: Path) -> WeightsHeader:
    """Read what a file holds; safetensors checks that its tensors are the bytes of the file, without gap or overlap.

    Raises as `open_weights`.
    """
    with open_weights(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
        tensors = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
        return WeightsHeader(tensors, dict(opened.metadata() or {}))
