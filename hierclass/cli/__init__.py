"""The command `hierclass`: label images, look at one, list the levels of a model, compress one, list backbones.

The only room of the package that prints and turns errors into one line and an exit code: 0 success, 1 a failure that
is not the user's, 2 wrong use, 3 some inputs could not be read, 128 + n stopped by signal n. Commands import torch only
after checking everything that can be checked without it.

Read in this order: this file (the commands and `main`), `shared` (options of several commands), `label`,
`embed`, `label_options` and `output_target` (the commands of runs), `progress` and `terminal` (what is shown).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

import hierclass
from hierclass.cli.embed import embed
from hierclass.cli.export import export, show_level
from hierclass.cli.label import label, open_for, refine
from hierclass.cli.label_options import LevelOrAuto, Precision, read_request
from hierclass.cli.shared import (
    SOME_INPUTS_FAILED,
    DeviceOption,
    FormerForce,
    Int8Option,
    ModelChoice,
    ModelOption,
    RuntimeOption,
    Stopped,
    ThreadsOption,
    TimmOption,
    WeightsOption,
    say,
)
from hierclass.errors import HierclassError, ImageError, require
from hierclass.files import BUNDLED, check_model_folder
from hierclass.labelling.reader_pipes import kept_ready
from taxonomy.streams import dash_hint, prepare_streams, visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from hierclass.costs import Level
    from hierclass.decisions.prediction import Prediction

DEBUG_VARIABLE = "HIERCLASS_DEBUG"
_READING = ("label", "refine", "embed", "predict")
"""Commands that read images: processes for that start before anything else, when that costs least."""

app = typer.Typer(
    name="hierclass",
    help="Label photographs coarse to fine: what it is for little computing, exactly what for more.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class DType(enum.StrEnum):
    """How the weights of a model are stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hierclass {hierclass.__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.command()(label)
app.command()(refine)
app.command()(embed)
app.command()(export)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files.")],
    level: LevelOrAuto = None,
    precision: Precision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image.")] = False,
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    threads: ThreadsOption = None,
    int8: Int8Option = False,
) -> None:
    """Look at images: draw the path from coarse to fine, with scores and what each step costs."""
    from hierclass.decisions.cascade import PredictionCascade
    from hierclass.decisions.exit_policy import ExitPolicy
    from hierclass.images.discovery import check_named
    from hierclass.images.path_lists import as_meant
    from hierclass.labelling.inputs import SECONDS_PER_IMAGE
    from hierclass.labelling.read_input import PictureReader
    from hierclass.labelling.reader_processes import ReaderPool
    from taxonomy.terminal import PlainConsole

    request = read_request(level, None, precision, None, None)
    for path in images:
        check_named(path)
    classifier = open_for(
        ModelChoice(model, timm, weights, device, runtime, threads, int8), request, precision
    )
    last = classifier.check_level(None if request.level == "auto" else request.level)
    policy = ExitPolicy(request, classifier.taxonomy, classifier.decision)

    def answers(pixels: NDArray[np.uint8]) -> Iterator[Prediction]:
        if request.level == "auto":
            yield from PredictionCascade(classifier, policy, 1).predict([pixels])
        elif as_json:
            yield from classifier.predict_pixels(pixels, last)
        else:
            yield from islice(classifier.refine_pixels(pixels), last + 1)

    console = PlainConsole()
    reader = PictureReader(classifier.preprocessing_for(last if as_json else None))
    failed = False
    with ReaderPool(1) as readers:
        for path in map(as_meant, images):
            try:
                pixels = readers.pixels(reader, path, SECONDS_PER_IMAGE)[None]
            except ImageError as error:
                failed = True
                if as_json:
                    _print_json(path, {"error": str(error)})
                else:
                    say(f"error: {path}: {error}")
                continue
            if as_json:
                _print_json(path, next(answers(pixels)).to_dict())
            else:
                _draw(path, answers(pixels), classifier.levels, console)
    if failed:
        raise typer.Exit(SOME_INPUTS_FAILED)


@app.command()
def levels(
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    int8: Int8Option = False,
) -> None:
    """List the levels of a model: tier, classes, cost, parameters and accuracy on held-out images."""
    from hierclass.cli.terminal import draw_levels
    from taxonomy.terminal import PlainConsole

    choice = ModelChoice(model, timm, weights, "cpu", int8=int8)
    PlainConsole().print(draw_levels(choice.open().levels))


@app.command()
def classes(
    part: Annotated[str, typer.Argument(metavar="[PART]", help="Part of a name or synset id.")] = "",
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
) -> None:
    """List the classes of a model, of all tiers and between them: what --only and --exclude may name."""
    from hierclass.cli.terminal import draw_classes
    from taxonomy.terminal import PlainConsole

    taxonomy = ModelChoice(model, timm, weights, "cpu").open().taxonomy
    PlainConsole().print(draw_classes(taxonomy, part))


@app.command()
def compress(
    level: Annotated[int, typer.Option("--level", min=0, help="The finest level to keep; 0: the coarsest.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")],
    model: ModelOption = None,
    dtype: Annotated[
        DType | None, typer.Option("--dtype", help="Type of the stored weights. Default: as in MODEL.")
    ] = None,
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="Write graphs, by which it runs without PyTorch.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the folder.")] = False,
    force: FormerForce = False,
) -> None:
    """Make a smaller model of a model's levels up to one; it answers as they do. Print what that saves."""
    source = BUNDLED if model is None else model
    require("torch", "torch", "timm", what="hierclass compress")
    check_model_folder(output, source, overwrite=overwrite or force)
    from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint, stored_dtype
    from hierclass.checkpoints.compress import ROUNDS, compare, saves
    from hierclass.checkpoints.compress import compress as keep_levels
    from hierclass.cli.terminal import draw_footprints
    from hierclass.export.graphs import try_to_write_graphs
    from taxonomy.terminal import PlainConsole

    whole = load_checkpoint(source)
    small = keep_levels(whole, level)
    try:
        save_checkpoint(output, small, dtype=dtype or stored_dtype(source))
        if graphs and (reason := try_to_write_graphs(output, show_level)):
            say(reason)
    except OSError as error:
        raise Stopped(1, f"writing the model failed: {error.strerror or error}") from error
    try:
        footprints = compare(source, whole, output, load_checkpoint(output))
    except Stopped as stop:
        raise Stopped(stop.code, f"timing was stopped; the model is written: {output}") from None
    PlainConsole().print(draw_footprints(footprints))
    print(f"Times: the network alone, medians of {ROUNDS} rounds in turn, on the processor.")
    if not saves(footprints):
        lower = "keep a lower level" if level else "there is no lower one to keep"
        say(f"This saves nothing: level {level} is the last level of {source}, stored as it was; {lower}.")
    say(f"levels 0 to {level} -> {output}")


@app.command()
def backbones(
    pattern: Annotated[
        str | None, typer.Argument(help="A model, which is tried at once, or families or models like *vit*.")
    ] = None,
    try_now: Annotated[bool, typer.Option("--try", help="Cut all that match now; look nothing up.")] = False,
) -> None:
    """Say which models of timm can be cut into levels, in which structures, and if not, why."""
    from hierclass.cli.terminal import draw_families, draw_probe_result
    from hierclass.timm_models.backbone_table import models_to_try, probe_models, shipped_backbones
    from taxonomy.terminal import PlainConsole

    console = PlainConsole()
    tried = models_to_try(pattern, force=try_now)
    if not tried:
        console.print(draw_families(shipped_backbones().matching(pattern or "*")))
    for result, family in probe_models(tried):
        console.print(draw_probe_result(result, family))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` if `args` is None) and return its exit code."""
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    prepare_streams()
    words = sys.argv[1:] if args is None else args
    reads = bool(words) and words[0] in _READING and not {"-h", "--help"} & set(words)
    with kept_ready(start=reads), _signals(), warnings.catch_warnings():
        if not sys.warnoptions and not debug:
            warnings.simplefilter("ignore")
        try:
            return app(args, prog_name="hierclass", standalone_mode=False) or 0
        except Stopped as stop:
            return _fail(str(stop) or "stopped", stop.code)
        except HierclassError as error:
            read_as_option = [
                word for word in words if word[2:] and word[2:] in str(error)
            ]  # -old.jpg: -o ld.jpg
            return _fail(f"{error}{dash_hint(read_as_option)}", 2, debug=debug)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
                return _fail(f"standard output can't be written: {error.strerror}", 1, debug=debug)
            show = getattr(error, "format_message", None)  # typer's own errors of wrong use
            if show is not None:
                return _fail(f"{show()}{dash_hint(words)}", 2) if show() else 2
            if isinstance(error, typer.Abort):
                return _fail("stopped", 130)
            hint = f"please report it with what {DEBUG_VARIABLE}=1 prints"
            return _fail(f"{type(error).__name__}: {error} (unexpected; {hint})", 1, debug=debug)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Stopped`, and end silently when the reader of a pipe has gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second one ends the program at once
        raise Stopped(128 + number)

    handlers: dict[signal.Signals, object] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGPIPE"):
        handlers[signal.SIGPIPE] = signal.SIG_DFL
    before = {each: signal.getsignal(each) for each in handlers}
    for each, handler in handlers.items():
        if each == signal.SIGPIPE or before[each] != signal.SIG_IGN:
            signal.signal(each, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _draw(path: str, predictions: Iterator[Prediction], levels: Sequence[Level], console: Console) -> None:
    """Draw the path of one image; on a terminal it grows as the levels answer."""
    from rich.live import Live

    from hierclass.cli.terminal import draw_path

    unicode = (console.encoding or "").lower().startswith("utf")
    drawings = (draw_path(path, prediction, levels, unicode=unicode) for prediction in predictions)
    if not console.is_terminal:
        *_, final = drawings
        console.print(final)
        return
    with Live(console=console, auto_refresh=False) as live:
        for drawing in drawings:
            live.update(drawing, refresh=True)


def _print_json(path: str, values: dict[str, object]) -> None:
    from hierclass.images.discovery import display_name

    line = json.dumps({"image": display_name(path), **values}, ensure_ascii=False)
    print(visible(line) if sys.stdout and sys.stdout.isatty() else line, flush=True)


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    say(f"error: {message}")
    return code
