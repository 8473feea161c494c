"""The training loop: epochs, evaluation, checkpoints; `training.outputs` says what is left where."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from hierclass.errors import InputError
from training.answers import Answers, collect_answers, weights_to_try
from training.batches import EpochBatches, read_batches, training_loader
from training.data import ImageSet
from training.evaluate import summarise
from training.loading import load_data
from training.outputs import RunFolder
from training.recipe import Recipe
from training.reports import Reporter, calibration_table, clock, consensus_table, level_table, threshold_table
from training.run import Run, check_sizes, make_backbone


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    workers: int = 1,
    threads: int | None = None,
    check: str = "auto",
    console: Console | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Train a recipe into the folder ``out``; returns the results of the best checkpoint.

    With ``resume`` a run found in ``out`` is continued after its last whole epoch; without one it begins. Images are
    looked at before the first epoch as ``check`` says (`training.checking`).
    Ends with a table per level. Raises `InputError` for bad data or options, and when the loss stops being a
    number.
    """
    recipe.check()
    if threads:
        torch.set_num_threads(threads)
    if accelerator is None:  # "cpu" also joins the processes of torchrun where there is no accelerator
        cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=cpu)
    reporter = Reporter(
        console or Console(),
        epochs=recipe.epochs,
        total_work=_work(recipe, recipe.epochs),
        quiet=not accelerator.is_main_process,
    )
    folder = RunFolder(out)
    taxonomy = folder.taxonomy(recipe, reporter.line)
    recipe.check_levels(taxonomy.num_tiers)
    claim = folder.claim(resume=resume) if accelerator.is_main_process else contextlib.nullcontext()
    if recipe.start_size is not None:
        check_sizes(recipe, make_backbone(recipe))
    with claim:
        train, dev = load_data(recipe, taxonomy, reporter, out=out, check=check, accelerator=accelerator)
        if len(train) < recipe.batch_size:
            reporter.line(
                f"--batch-size {recipe.batch_size} is more than there are images: one batch an epoch"
            )
        run = Run(
            recipe,
            taxonomy,
            steps_per_epoch=len(_batches(recipe, train, 0, accelerator)),
            accelerator=accelerator,
            leaf_counts=np.bincount(train.leaves, minlength=len(taxonomy.leaves)).tolist(),
            fresh=not folder.state.exists(),
        )
        best = _epochs(run, train, dev, folder, reporter, workers=workers)
    results: dict[str, Any] = best["results"]
    if not reporter.quiet:
        title = f"{folder.model}: epoch {best['epoch']}, {results['images']} dev images"
        reporter.console.print(level_table(results["levels"], title=title))
        reporter.console.print(consensus_table(results))
        if found := results.get("calibration"):  # absent from runs of older versions, None for few images
            reporter.console.print(calibration_table(found))
            reporter.console.print(threshold_table(found["thresholds"]))
    return results


def evaluate_run(run: Run, dev: ImageSet, *, workers: int) -> dict[str, Any]:
    """Results of the moving average on the dev images, each process taking its share."""
    accelerator = run.accelerator
    consensus = run.recipe.consensus
    answers = collect_answers(
        run.smoothed,
        dev,
        run.preprocessing,
        accelerator.device,
        run.taxonomy,
        part=np.arange(accelerator.process_index, len(dev), accelerator.num_processes),
        lower_weights=weights_to_try(consensus),
        workers=workers,
    )
    if accelerator.num_processes > 1:
        answers = Answers.join(gather_object([answers]))
    return summarise(run.smoothed, run.taxonomy, answers, consensus)


def _epochs(
    run: Run,
    train: ImageSet,
    dev: ImageSet,
    folder: RunFolder,
    reporter: Reporter,
    *,
    workers: int,
) -> dict[str, Any]:
    """Train from where the folder stands to the last epoch; returns the best epoch and its results."""
    recipe = run.recipe
    progress: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "best": None}
    if folder.state.exists():
        progress = run.load(folder.state)
        reporter.line(f"resumed after epoch {progress['epoch']} of {recipe.epochs}")
    if run.accelerator.is_main_process:
        folder.begin(recipe, progress["epoch"], run.taxonomy)
    reporter.line(_describe(run, train, dev))
    reporter.start(_work(recipe, progress["epoch"]))
    try:
        for epoch in range(progress["epoch"], recipe.epochs):
            started = time.monotonic()
            row = _train_epoch(run, train, epoch, reporter, workers=workers)
            results = None
            if epoch + 1 == recipe.epochs or (epoch + 1) % recipe.eval_every == 0:
                results = evaluate_run(run, dev, workers=workers)
                row["dev"] = [level["top1"] for level in results["levels"]]
            row["seconds"] = round(time.monotonic() - started, 2)
            progress["epoch"], progress["seconds"] = epoch + 1, progress["seconds"] + row["seconds"]
            _keep(run, folder, progress, row, results)
            reporter.line(_epoch_line(row, recipe.epochs))
    finally:
        reporter.stop()
    best: dict[str, Any] = progress["best"]
    return best


def _keep(
    run: Run, folder: RunFolder, progress: dict[str, Any], row: dict[str, Any], results: dict[str, Any] | None
) -> None:
    """Write what an epoch leaves: the model if it is the best so far, the history, last of all the state."""
    better = results is not None and _is_better(results, progress["best"])
    if better:
        progress["best"] = {"epoch": row["epoch"], "results": results}
    if run.accelerator.is_main_process:
        if better and results is not None:
            run.export(folder.model, results)
        if results is not None:
            folder.describe_model(run.recipe, run.taxonomy, progress, run.accelerator.device)
        folder.add_epoch(row)
        run.save(folder.state, progress)
    run.accelerator.wait_for_everyone()


def _is_better(results: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an epoch's network is to be kept instead of the best so far: by the accuracy of the last level.

    While a network is still being pruned, its levels have more weights than asked for, and are better for that:
    networks of other numbers of weights are not compared, the later one is kept.
    """
    if best is None:
        return True
    weights, former = ([row["parameters"] for row in r["levels"]] for r in (results, best["results"]))
    return weights != former or bool(results["levels"][-1]["top1"] > best["results"]["levels"][-1]["top1"])


def _train_epoch(
    run: Run, train: ImageSet, epoch: int, reporter: Reporter, *, workers: int
) -> dict[str, Any]:
    """Train one epoch; returns its row of the history (loss: the mean; images per second: all processes)."""
    recipe, size = run.recipe, run.recipe.image_size(epoch)
    batches = _batches(recipe, train, epoch, run.accelerator)
    loader = training_loader(
        train,
        batches,
        size=size,
        crop_scale=recipe.crop_scale,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        seed=(recipe.seed, epoch),
        workers=workers,
    )
    total = torch.zeros((), device=run.accelerator.device)
    started, seen, mean, rate, errors = time.monotonic(), 0, 0.0, 0.0, list[str]()
    work = size * size / len(batches)
    with contextlib.closing(read_batches(loader)) as stream:
        for step, (images, leaves, messages) in enumerate(stream):
            errors += messages
            if not len(images):
                raise InputError(f"no image of a whole batch could be read: {messages[0]}")
            total += run.step(images, leaves, epoch=epoch, step=step)
            seen += len(images) * run.accelerator.num_processes
            if step % 10 == 0 or step + 1 == len(batches):
                mean = float(total) / (step + 1)
                if not np.isfinite(mean):
                    raise InputError(f"the loss is not a number in epoch {epoch + 1}; lower --lr")
            if step == 0 and len(batches) > 1:  # starting workers and compiling is not the rate to come
                started, seen = time.monotonic(), 0
            rate = seen / max(time.monotonic() - started, 1e-9)
            reporter.step(epoch=epoch, step=step, steps=len(batches), loss=mean, rate=rate, work=work)
    mean = float(run.accelerator.reduce(total, "mean")) / len(batches)
    _report_unreadable(errors, f"training images of epoch {epoch + 1}", reporter)
    lr = run.optimizer.param_groups[0]["lr"]
    return {"epoch": epoch + 1, "loss": mean, "lr": lr, "size": size, "images_per_second": round(rate, 1)}


def _batches(recipe: Recipe, train: ImageSet, epoch: int, accelerator: Accelerator) -> EpochBatches:
    return EpochBatches(
        len(train),
        recipe.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        balance=train.leaves if recipe.balance == "sampling" else None,
    )


def _work(recipe: Recipe, epochs: int) -> float:
    """Work of the first epochs: pixels per image, summed over epochs."""
    return float(sum(recipe.image_size(epoch) ** 2 for epoch in range(epochs)))


def _report_unreadable(errors: list[str], where: str, reporter: Reporter) -> None:
    """Say how many images could not be read, and which (the first five)."""
    if errors:
        reporter.line(f"{len(errors)} {where} cannot be read and are left out: {'; '.join(errors[:5])}")


def _describe(run: Run, train: ImageSet, dev: ImageSet) -> str:
    classes = " / ".join(map(str, run.taxonomy.num_classes))
    macs = " / ".join(
        f"{run.smoothed.cost(level).macs / 1e6:.1f}" for level in range(run.smoothed.num_levels)
    )
    return (
        f"{len(train)} training images, {len(dev)} dev images, classes {classes}, {macs} MMACs, "
        f"{run.accelerator.device.type}, {torch.get_num_threads()} threads"
    )


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    accuracies = " / ".join(f"{share:.1%}" for share in row.get("dev", []))
    return (
        f"epoch {row['epoch']}/{epochs} loss {row['loss']:.3f} lr {row['lr']:.2g} {row['size']} px "
        f"{row['images_per_second']:.0f} img/s {clock(row['seconds'])}"
        + (f" dev {accuracies}" if accuracies else "")
    )
