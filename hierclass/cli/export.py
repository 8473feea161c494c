"""The command `hierclass export`: a model's levels as graphs, in its folder or in one that runs without hierclass."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclass.cli.shared import FormerForce, ModelOption, Stopped, say
from hierclass.errors import InputError, require
from hierclass.files import BUNDLED

if TYPE_CHECKING:
    from hierclass.export.int8_files import Int8Graphs, Progress

NUM_IMAGES = 128
"""Images that 8 bits are fitted to by default; 64 gave the bundled model the same answers."""


class GraphFormat(enum.StrEnum):
    """What runs the graphs."""

    ONNX = "onnx"
    OPENVINO = "openvino"


def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder, which runs without hierclass.")
    ] = None,
    format_: Annotated[
        GraphFormat | None, typer.Option("--format", help="What runs the graphs there.")
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Add graphs to the folder of MODEL, which then runs without PyTorch."
        ),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Graphs in 8 bits: faster, a little less exact.")
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", metavar="DIR", help="Photographs, without labels, to fit 8 bits to. Repeatable."
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images", min=16, help=f"How many of them are used at most. Default: {NUM_IMAGES}."
        ),
    ] = None,
    model: ModelOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an exported model in the folder.")
    ] = False,
    force: FormerForce = False,
) -> None:
    """Write the levels of a model as graphs: in its folder, or in one that runs without hierclass."""
    overwrite = overwrite or force
    if in_place == (output is not None):
        raise InputError(
            "say where the graphs go: -o FOLDER makes one that runs without hierclass, --in-place adds them to MODEL's"
        )
    if images and not int8:
        raise InputError("--images belongs to --int8; leave it out, or add --int8")
    if num_images and not images:
        raise InputError("--num-images belongs to --int8 --images DIR; leave it out, or add them")
    int8_wish = _Int8Wish(int8, images or [], num_images or NUM_IMAGES)
    with _failures():
        if output is not None:
            _export(model or BUNDLED, output, format_ or GraphFormat.ONNX, int8_wish, overwrite)
            return
        if format_ or overwrite:
            raise InputError("--format and --overwrite belong to -o FOLDER; leave them out with --in-place")
        if model is None:
            raise InputError("--in-place changes a model; name it with --model")
        if int8 and not images:
            raise InputError("8 bits are fitted to photographs; name some hundred with --images DIR")
        if not (int8 and _has_graphs(model)):
            _add_graphs(model)
        if int8:
            _add_int8(model, int8_wish)


@dataclasses.dataclass(frozen=True)
class _Int8Wish:
    """Whether graphs in 8 bits are wanted, and the photographs to fit them to; without any: those of the model."""

    wanted: bool
    images: list[str]
    num_images: int


def _export(model: Path, output: Path, kind: GraphFormat, int8: _Int8Wish, overwrite: bool) -> None:
    from hierclass.checkpoints.description import read_int8
    from hierclass.export.deployed_folder import (
        SourceModel,
        check_deployed_folder,
        check_openvino,
        write_deployed,
    )
    from hierclass.export.int8_files import read_graphs, temporary_int8

    openvino = kind is GraphFormat.OPENVINO
    if openvino:
        check_openvino()
    check_deployed_folder(output, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        if int8.wanted and int8.images:
            made = _quantise(model, int8)
            source = stack.enter_context(temporary_int8(model, made))
        else:
            source = SourceModel(model, *(read_int8(model) if int8.wanted else read_graphs(model)))
        last = source.description.taxonomy.num_tiers - 1
        files = write_deployed(
            source, output, lambda level: say(f"level {level} of 0 to {last}: converting"), openvino=openvino
        )
    size = sum(file.stat().st_size for file in files) / 1e6
    say(f"levels 0 to {last}, {size:.1f} MB -> {output}; try: python {output / 'example.py'} PHOTO")


def _has_graphs(model: Path) -> bool:
    from hierclass.checkpoints.description import read_description

    return read_description(model)[1] is not None


def _add_graphs(model: Path) -> None:
    require("torch", "torch", "timm", "onnx", "onnxscript", what="hierclass export")
    from hierclass.checkpoints.checkpoint import load_checkpoint
    from hierclass.export.graphs import write_graphs

    write_graphs(model, load_checkpoint(model), show_level)
    say(f"graphs -> {model}")


def show_level(level: int) -> None:
    """Say that the graph of a level is being made, which takes seconds."""
    say(f"level {level}: writing its graph")


def _add_int8(model: Path, int8: _Int8Wish) -> None:
    from hierclass.export.int8_files import write_int8

    made = _quantise(model, int8)
    write_int8(model, made)
    size = sum(map(len, made.contents)) / 1e6
    say(
        f"levels 0 to {len(made.contents) - 1} in 8 bits, {size:.1f} MB -> {model}; hierclass label --int8 uses them"
    )


def _quantise(model: Path, int8: _Int8Wish) -> Int8Graphs:
    """Make the graphs in 8 bits, and say how well they agree with the others."""
    from hierclass.export.int8_files import make_int8
    from taxonomy.streams import plural

    with _bar() as progress:
        made = make_int8(model, int8.images, int8.num_images, progress)
    if made.unreadable:
        say(f"{plural(made.unreadable, 'image')} could not be read, and were left out")
    shares = ", ".join(f"level {level} {share:.1%}" for level, share in enumerate(made.same))
    say(f"same class as in float32, of {plural(made.num_images, 'image')}: {shares}")
    say(
        "temperatures and thresholds are those of float32; hierclass-train calibrate --int8 fits them to labels"
    )
    return made


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on standard error for what is being done; a line for each thing where that is no terminal."""
    from hierclass.cli.terminal import task_bar
    from taxonomy.terminal import PlainConsole

    console, said = PlainConsole(stderr=True), set[str]()
    with task_bar(console) as bar:
        task = bar.add_task("")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal and what not in said:
                said.add(what)
                say(what)

        yield show


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn a file that can't be written into one line."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Stopped(1, f"writing the graphs failed: {where}{error.strerror or error}") from error
