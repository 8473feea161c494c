"""The training loop: epochs, evaluation, checkpoints, and what is left in the output folder.

OUT/recipe.json            the recipe
OUT/history.jsonl          one line per epoch
OUT/last/state.safetensors what --resume continues from
OUT/model/                 the best model on the dev split, with recipe.json and training.json
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.batches import EpochBatches, evaluation_loader, training_loader
from training.data import ImageSet, decode_small, read_images, split
from training.evaluate import Answers, collect_answers, count_right, finest_measures, level_rows
from training.recipe import Recipe, write_json
from training.reports import Reporter, clock, level_table
from training.run import Run


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    workers: int = 1,
    threads: int | None = None,
    eval_every: int = 1,
    console: Console | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Train a recipe into the folder ``out``; returns the results of the best checkpoint.

    With ``resume`` a run found in ``out`` is continued after its last whole epoch; without one it begins.
    Ends with a table per level. Raises `InputError` for bad data or options, and when the loss stops being a
    number.
    """
    if threads:
        torch.set_num_threads(threads)
    accelerator = accelerator or Accelerator(mixed_precision=recipe.mixed_precision)
    console = console or Console()
    reporter = Reporter(console, epochs=recipe.epochs, total_work=_work(recipe, 0, recipe.epochs))
    reporter.quiet = not accelerator.is_main_process
    taxonomy = Taxonomy.load(recipe.taxonomy)
    state = out / "last" / "state.safetensors"
    if state.exists() and not resume:
        raise InputError(f"{out} holds an unfinished or finished run; add --resume, or choose another --out")
    train, dev = load_data(recipe, taxonomy, reporter)
    steps = len(_batches(recipe, train, 0, accelerator))
    run = Run(recipe, taxonomy, steps_per_epoch=steps, accelerator=accelerator)
    out.mkdir(parents=True, exist_ok=True)
    progress: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "best": None}
    if state.exists():
        progress = run.load(state)
        reporter.line(f"resumed after epoch {progress['epoch']} of {recipe.epochs}")
    if accelerator.is_main_process:
        recipe.save(out / "recipe.json")
        _cut_history(out / "history.jsonl", progress["epoch"])
    reporter.line(_describe(run, train, dev))
    reporter.start(_work(recipe, 0, progress["epoch"]))
    try:
        for epoch in range(progress["epoch"], recipe.epochs):
            _epoch(run, train, dev, epoch, progress, out, reporter, workers=workers, eval_every=eval_every)
    finally:
        reporter.stop()
    results: dict[str, Any] = progress["best"]["results"]
    if not reporter.quiet:
        title = f"{out / 'model'}: epoch {progress['best']['epoch']}, {results['images']} dev images"
        console.print(level_table(results["levels"], title=title))
    return results


def load_data(recipe: Recipe, taxonomy: Taxonomy, reporter: Reporter) -> tuple[ImageSet, ImageSet]:
    """The training images and the held-out ones of a recipe; unreadable ones are reported and left out."""
    images = read_images(recipe.data, taxonomy)
    train, dev = split(images, dev_from=recipe.dev_from, dev_share=recipe.dev_share, seed=recipe.seed)
    parts = []
    for name, part in (("training", images.subset(train[: recipe.limit])), ("dev", images.subset(dev))):
        readable, errors = decode_small(part, max_side=2 * recipe.size)
        report_unreadable(errors, f"of {len(part)} {name} images", reporter)
        parts.append(readable)
    return parts[0], parts[1]


def report_unreadable(errors: list[str], where: str, reporter: Reporter) -> None:
    """Say how many images could not be read, and which (the first five)."""
    if errors:
        reporter.line(f"{len(errors)} {where} cannot be read and are left out: {'; '.join(errors[:5])}")


def evaluate_run(run: Run, dev: ImageSet, *, workers: int) -> dict[str, Any]:
    """Results of the moving average on the dev images, each process taking its share."""
    accelerator = run.accelerator
    share = dev.subset(np.arange(accelerator.process_index, len(dev), accelerator.num_processes))
    loader = evaluation_loader(share, run.preprocessing, batch_size=256, workers=workers)
    answers = collect_answers(run.smoothed, loader, accelerator.device)
    if accelerator.num_processes > 1:
        answers = _join(gather_object([answers]))
    right = count_right(answers, run.taxonomy)
    return {
        "images": len(answers.leaves),
        "unreadable": len(answers.errors),
        "levels": level_rows(run.smoothed, run.taxonomy, right, len(answers.leaves)),
        "finest": finest_measures(answers, run.taxonomy),
    }


def _epoch(
    run: Run,
    train: ImageSet,
    dev: ImageSet,
    epoch: int,
    progress: dict[str, Any],
    out: Path,
    reporter: Reporter,
    *,
    workers: int,
    eval_every: int,
) -> None:
    """Train one epoch, evaluate, keep the best, write the history and the state."""
    recipe, started = run.recipe, time.monotonic()
    loss, rate = _train_epoch(run, train, epoch, reporter, workers=workers)
    row: dict[str, Any] = {
        "epoch": epoch + 1,
        "loss": loss,
        "lr": run.optimizer.param_groups[0]["lr"],
        "size": recipe.image_size(epoch),
        "images_per_second": round(rate, 1),
    }
    last = epoch + 1 == recipe.epochs
    if last or (epoch + 1) % eval_every == 0:
        results = evaluate_run(run, dev, workers=workers)
        row["dev"] = [level["top1"] for level in results["levels"]]
        best = progress["best"]
        if best is None or row["dev"][-1] > best["results"]["levels"][-1]["top1"]:
            progress["best"] = {"epoch": epoch + 1, "results": results}
    row["seconds"] = round(time.monotonic() - started, 2)
    progress["epoch"], progress["seconds"] = epoch + 1, progress["seconds"] + row["seconds"]
    if run.accelerator.is_main_process:
        if "dev" in row and progress["best"]["epoch"] == epoch + 1:
            run.export(out / "model", progress["best"]["results"])
        if (out / "model").is_dir():
            recipe.save(out / "model" / "recipe.json")
            write_json(out / "model" / "training.json", _training_facts(run, progress))
        with (out / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        run.save(out / "last" / "state.safetensors", progress)
    accuracies = " / ".join(f"{share:.1%}" for share in row.get("dev", []))
    reporter.line(
        f"epoch {epoch + 1}/{recipe.epochs} loss {loss:.3f} lr {row['lr']:.2g} {recipe.image_size(epoch)} px "
        f"{rate:.0f} img/s {clock(row['seconds'])}" + (f" dev {accuracies}" if accuracies else "")
    )
    run.accelerator.wait_for_everyone()


def _train_epoch(
    run: Run, train: ImageSet, epoch: int, reporter: Reporter, *, workers: int
) -> tuple[float, float]:
    """Train one epoch; returns the mean loss and images per second over all processes."""
    recipe, processes = run.recipe, run.accelerator.num_processes
    size = recipe.image_size(epoch)
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
        pin_memory=run.accelerator.device.type == "cuda",
    )
    total = torch.zeros((), device=run.accelerator.device)
    started, seen, mean, errors = time.monotonic(), 0, 0.0, list[str]()
    for step, (images, leaves, messages) in enumerate(loader):
        errors += messages
        if not len(images):
            raise InputError(f"no image of a whole batch could be read: {messages[0]}")
        total += run.step(images, leaves, epoch=epoch, step=step)
        seen += len(images) * processes
        if step % 10 == 0 or step + 1 == len(batches):
            mean = float(total) / (step + 1)
            if not np.isfinite(mean):
                raise InputError(
                    f"the loss is not a number in epoch {epoch + 1}, step {step + 1}; lower --lr"
                )
        rate = seen / (time.monotonic() - started)
        work = size * size / len(batches)
        reporter.step(epoch=epoch, step=step, steps=len(batches), loss=mean, rate=rate, work=work)
    report_unreadable(errors, f"training images of epoch {epoch + 1}", reporter)
    return mean, rate


def _batches(recipe: Recipe, train: ImageSet, epoch: int, accelerator: Accelerator) -> EpochBatches:
    return EpochBatches(
        len(train),
        recipe.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def _work(recipe: Recipe, first: int, last: int) -> float:
    """Work of the epochs first…last-1: pixels per image, summed over epochs."""
    return float(sum(recipe.image_size(epoch) ** 2 for epoch in range(first, last)))


def _join(parts: list[Answers]) -> Answers:
    """The answers of all processes as one."""
    return Answers(
        tuple(np.concatenate(level) for level in zip(*(part.per_level for part in parts), strict=True)),
        np.concatenate([part.ranked for part in parts]),
        np.concatenate([part.leaves for part in parts]),
        tuple(message for part in parts for message in part.errors),
    )


def _cut_history(path: Path, epochs: int) -> None:
    """Keep the lines of the epochs that the state knows; a kill can leave one more."""
    lines = path.read_text(encoding="utf-8").splitlines()[:epochs] if path.exists() else []
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _describe(run: Run, train: ImageSet, dev: ImageSet) -> str:
    classes = " / ".join(map(str, run.taxonomy.num_classes))
    macs = " / ".join(
        f"{run.smoothed.cost(level).macs / 1e6:.1f}" for level in range(run.smoothed.num_levels)
    )
    return (
        f"{len(train)} training images, {len(dev)} dev images, classes {classes}, {macs} MMACs, "
        f"{run.accelerator.device.type}, {torch.get_num_threads()} threads"
    )


def _training_facts(run: Run, progress: dict[str, Any]) -> dict[str, Any]:
    device = run.accelerator.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "recipe": run.recipe.to_dict(),
        "epochs_done": progress["epoch"],
        "seconds": round(progress["seconds"], 1),
        "hardware": {
            "device": device.type,
            "name": hardware,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "best": progress["best"],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
