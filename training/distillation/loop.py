"""A distillation from its recipe to a model: what `training.trainer.loop.fit` is to labelled images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from hierclass.errors import InputError
from training.data.sample_weights import check_known_top1
from training.data.samples import read_images
from training.distillation.folder import DistilFolder
from training.distillation.recipe import DistilRecipe, untrained_levels
from training.distillation.session import Session
from training.evaluation.calibration import check_enough
from training.evaluation.console import Reporter, show_results
from training.evaluation.evaluate import Options, measure_checkpoint
from training.trainer.processes import local_processes, make_accelerator
from training.trainer.throughput import automatic_workers


def distil(
    recipe: DistilRecipe,
    out: Path,
    *,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    level: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    threads: int | None = None,
    save_every: float = 10.0,
    eval_data: Sequence[str] = (),
    known_top1: float | None = None,
    console: Console | None = None,
    accelerator: Accelerator | None = None,
) -> bool:
    """Make a teacher nested, in the folder ``out``; returns whether all levels were trained to their end.

    ``resume`` continues what ``out`` holds; levels that have begun go on with the recipes that they began with, but
    for ``changes``, field → value; None: with this recipe. With ``level`` that one alone is trained. After so many
    ``minutes`` the run ends, its state saved and the model as good as it is. In the end the model is measured and
    calibrated on the labelled photographs ``eval_data``, weighed by ``known_top1`` (see `sample_weights`).
    Raises `InputError`,
    `BackboneError`, `CheckpointError` or `TaxonomyError` for what does not fit.
    """
    if known_top1 is not None:
        check_known_top1(known_top1)
        if not eval_data:
            raise InputError("`known_top1` has no effect without `eval_data`; give that, or leave it out")
    until = None if minutes is None else time.monotonic() + 60 * minutes
    if threads:
        torch.set_num_threads(threads)
    recipe.check()
    accelerator = accelerator or make_accelerator(recipe.mixed_precision)
    if workers is None:
        workers = automatic_workers(accelerator.device, local_processes(accelerator))
    reporter = Reporter(console or Console(), total_work=1.0, quiet=not accelerator.is_main_process)
    session = Session(recipe, DistilFolder(out, recipe.cache), accelerator, reporter, changes=changes)
    if eval_data:  # what is wrong with it is said before hours of work
        check_enough(len(read_images(eval_data, session.teacher.taxonomy, held_out_only=True)))
    groups = session.set_up(level, resume=resume)
    session.make_crops(groups, workers=workers, threads=threads)
    ended = session.train_all(groups, resume=resume, save_every=save_every, until=until)
    accelerator.end_training()
    if not reporter.quiet:
        trained = session.folder.kept_levels()
        for each in untrained_levels(trained, session.teacher.taxonomy.num_tiers, recipe):
            reporter.line(f"level {each} has not been trained")
        how = Options(known_top1=known_top1, workers=workers, threads=threads)
        _evaluate(session.folder.model, eval_data, reporter, how)
    return ended


def _evaluate(model: Path, data: Sequence[str], reporter: Reporter, how: Options) -> None:
    """Measure and calibrate a model on labelled photographs; without any say how that is done later."""
    if data:
        results = measure_checkpoint(model, data, **how)
        show_results(reporter.console, results, str(model))
        return
    reporter.line(
        f"the model is in {model}; to fit how sure it is, with labelled photographs: "
        f"hierclass-train calibrate {model} --data PHOTOS"
    )
