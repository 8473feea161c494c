"""What several commands need: options, opening a model, stopping by a signal, messages on standard error."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hierclass
from hierclass.errors import CheckpointError, InputError
from hierclass.files import CONFIG_FILE, no_model
from hierclass.processors import MOST_THREADS
from taxonomy.streams import clipped

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

SOME_INPUTS_FAILED = 3
"""Exit code when some inputs could not be read."""

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of a model. Default: the one that comes with hierclass."),
]
TimmOption = Annotated[
    str | None,
    typer.Option(
        "--timm",
        metavar="NAME",
        help="A timm classifier of ImageNet instead of a model; every level costs the whole network.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="File of the timm classifier's weights. Default: timm's local cache."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
RuntimeOption = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="onnx (ONNX Runtime, on processors), torch, or auto: what suits the device and model.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=MOST_THREADS,
        help="Processor cores to use. Default: OMP_NUM_THREADS, else all.",
    ),
]
Int8Option = Annotated[
    bool, typer.Option("--int8", help="Run the model's graphs in 8 bits: faster, a little less exact.")
]
FormerForce = Annotated[bool, typer.Option("--force", hidden=True)]
"""The name that --overwrite had in some commands."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM; a BaseException, so that `except Exception` does not catch it."""

    def __init__(self, code: int, message: str = "") -> None:
        """End with an exit code, after printing a line."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What answers: the options of the same names."""

    model: Path | None
    timm: str | None
    weights: Path | None
    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = None
    int8: bool = False

    def open(self) -> Classifier:
        """Load the classifier; check the choice before importing torch.

        Raises:
            HierclassError: the options do not fit together, or what they name can't be loaded.
        """
        model, weights = self.model, self.weights
        how: dict[str, Any] = {"device": self.device, "runtime": self.runtime, "threads": self.threads}
        if self.timm is not None:
            if model is not None:
                raise InputError("--model and --timm each name what answers; give one of them")
            if self.int8:
                raise InputError(
                    "a timm classifier has no graphs in 8 bits; --int8 belongs to a model folder"
                )
            if weights is not None and not weights.is_file():
                raise CheckpointError(f"there is no file of weights at {weights}")
            return hierclass.from_timm(self.timm, weights=weights, **how)
        if weights is not None:
            raise InputError("--weights belongs to a timm classifier; name that with --timm")
        if model is not None and not (model / CONFIG_FILE).is_file():
            raise CheckpointError(no_model(model))
        return hierclass.load(model, **how, int8=self.int8)


def say(message: str) -> None:
    """Print a line on standard error; ignore that it is closed."""
    from hierclass.cli.terminal import one_line

    with contextlib.suppress(OSError):
        print(one_line(clipped(message)), file=sys.stderr, flush=True)
