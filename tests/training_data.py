"""Coloured shapes as labelled images, a task that a tiny network learns in seconds, and runs that are stopped."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hierclass.files import locked
from taxonomy import Taxonomy

if TYPE_CHECKING:
    from accelerate import Accelerator

    from training.recipe.recipe import Recipe


def draw(leaf: int, number: int, size: int = 32) -> Image.Image:
    """An image of a leaf: its colour and its shape, at a random place."""
    random = np.random.default_rng((leaf, number))
    image = Image.new("RGB", (size, size), tuple(int(v) for v in random.integers(90, 120, 3)))
    x, y = (int(v) for v in random.integers(0, size // 2, 2))
    colour = tuple(255 if leaf >> bit & 1 else 0 for bit in range(3))
    box = (x, y, x + size // 2, y + size // 2)
    pen = ImageDraw.Draw(image)
    (pen.rectangle if leaf < 8 else pen.ellipse)(box, fill=colour)
    return image


def jpeg(image: Image.Image) -> bytes:
    """The image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_parquet(path: Path, taxonomy: Taxonomy, per_leaf: int) -> Path:
    """A Parquet file of ``per_leaf`` images of each leaf, named ``leaf_number.JPEG``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(leaf, number) for number in range(per_leaf) for leaf in range(len(taxonomy.leaves))]
    columns = {
        "image": [jpeg(draw(leaf, number)) for leaf, number in rows],
        "wnid": [taxonomy.leaves[leaf] for leaf, _ in rows],
        "name": [f"{taxonomy.leaves[leaf]}_{number}.JPEG" for leaf, number in rows],
    }
    pq.write_table(pa.table(columns), path)
    return path


def write_folder(path: Path, taxonomy: Taxonomy, per_leaf: int) -> Path:
    """A folder of class folders."""
    for index, leaf in enumerate(taxonomy.leaves):
        (path / leaf).mkdir(parents=True)
        for number in range(per_leaf):
            (path / leaf / f"{leaf}_{number}.jpg").write_bytes(jpeg(draw(index, number)))
    return path


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of pytest's processes makes and all of them read."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with locked(root / f"{name}.lock", wait=True):
        if not (root / f"{name}.made").exists():
            (root / name).mkdir()
            make(root / name)
            (root / f"{name}.made").touch()
    return root / name


def write_cached_weights(cache: Path, repository: str, weights: bytes = b"") -> None:
    """Put a file of weights where the Hugging Face cache would have it."""
    folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)


def read_fit_options(*words: object) -> Recipe:
    """The recipe that ``hierclass-train fit`` makes of its options, before it looks at any image."""
    from typer.main import get_command

    from training.cli import app
    from training.cli.cli_recipe import wanted_recipe

    command = get_command(app).commands["fit"]  # type: ignore[attr-defined]
    with command.make_context("fit", [str(word) for word in words]) as ctx:
        return wanted_recipe(ctx, Path(ctx.params["out"]))[0]


class Killed(BaseException):
    """Ends a run as a kill does: nobody catches it."""


def watched_accelerator(
    updates: list[int], at: int | None = None, do: Callable[[], Any] = int
) -> Accelerator:
    """An accelerator that adds the number of each update to a list, and does something before one is computed."""
    from training.trainer.processes import make_accelerator

    accelerator = make_accelerator("no")
    backward = accelerator.backward

    def watch(loss: Any, **how: Any) -> None:
        if len(updates) == at:
            do()
        updates.append(len(updates))
        backward(loss, **how)

    accelerator.backward = watch  # type: ignore[method-assign]
    return accelerator


def kill() -> None:
    """Raise `Killed`."""
    raise Killed
