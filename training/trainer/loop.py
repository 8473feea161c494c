"""`fit`: load the data, train epoch after epoch, evaluate, keep the best model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from hierclass.checkpoints.checkpoint import as_stored
from hierclass.errors import ImageError, InputError
from hierclass.images.preprocessing import preprocess, resize_side
from taxonomy.terminal import PlainConsole
from training.data.batches import TrainingBatch, read_training_batches, training_loader
from training.data.load import load_data
from training.data.sampler import BatchSampler
from training.data.samples import ImageSet, truth_table
from training.evaluation.console import (
    Reporter,
    calibration_table,
    clock,
    consensus_table,
    level_table,
    threshold_table,
)
from training.evaluation.evaluate import summarise
from training.evaluation.model_card import model_card
from training.evaluation.predictions import Predictions, collect_predictions, weights_to_try
from training.recipe.recipe import Recipe
from training.trainer.autosave import Autosave, TrainingProgress
from training.trainer.export import describe_model, export_model
from training.trainer.interrupts import Interrupts
from training.trainer.network import FOR_ORDER, check_parts, make_preprocessing
from training.trainer.processes import local_processes, make_accelerator
from training.trainer.run_dir import RunDir
from training.trainer.supervised import SupervisedTrainer
from training.trainer.throughput import automatic_workers, waiting_hint
from training.trainer.updates import train_updates


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    check: str = "auto",
    save_every: float = 10.0,
    console: PlainConsole | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Train a recipe into the folder ``out``; return the results of the best checkpoint.

    The state is saved after every epoch, every ``save_every`` minutes (0: after epochs only), and on Ctrl-C or SIGTERM.
    ``resume`` continues a run found in ``out``, or begins one. ``workers`` None is chosen by the device. Images are
    checked first as ``check`` says (`training.data.dataset_check`). Prints a table per level. Raises `InputError` for
    bad data or options, and if the loss is not finite.
    """
    recipe.check()
    if threads:
        torch.set_num_threads(threads)
    accelerator = accelerator or make_accelerator(recipe.mixed_precision)
    if workers is None:
        workers = automatic_workers(accelerator.device, local_processes(accelerator))
    reporter = Reporter(console or PlainConsole(), quiet=not accelerator.is_main_process)
    run_dir = RunDir(out)
    taxonomy = run_dir.taxonomy(recipe.taxonomy, reporter.line)
    recipe.check_levels(taxonomy.num_tiers)
    claim = run_dir.claim(resume=resume) if accelerator.is_main_process else contextlib.nullcontext()
    check_parts(recipe)
    with claim:
        train, dev = load_data(recipe, taxonomy, reporter, out=out, check=check, accelerator=accelerator)
        if len(train) < recipe.batch_size:
            reporter.line(
                f"`batch_size` {recipe.batch_size} is more than there are images: one batch an epoch"
            )
        sampler = make_sampler(recipe, train, accelerator)
        fresh = not run_dir.state.exists()
        trainer = SupervisedTrainer(
            recipe,
            taxonomy,
            steps_per_epoch=len(sampler),
            accelerator=accelerator,
            label_counts=np.bincount(train.labels, minlength=len(truth_table(taxonomy))).tolist(),
            fresh=fresh,
            images=sample_images(train, recipe) if fresh and recipe.order == "importance" else None,
        )
        training = EpochLoop(trainer, train, dev, sampler, run_dir, reporter, workers=workers)
        best = training.run_to_the_end(save_every)
    results: dict[str, Any] = best["results"]
    if not reporter.quiet:
        title = f"{run_dir.model}: epoch {best['epoch']}, {results['images']} dev images"
        reporter.console.print(level_table(results["levels"], title=title))
        reporter.console.print(consensus_table(results))
        if found := results.get("calibration"):  # absent from runs of older versions, None for few images
            reporter.console.print(calibration_table(found))
            reporter.console.print(threshold_table(found["thresholds"]))
    accelerator.end_training()
    return results


def sample_images(train: ImageSet, recipe: Recipe) -> torch.Tensor:
    """Up to `FOR_ORDER` training images, evenly spaced, preprocessed: float32 (N, 3, S, S)."""
    preprocessing = make_preprocessing(recipe)
    chosen = np.unique(np.linspace(0, len(train) - 1, min(FOR_ORDER, len(train))).astype(int))
    seen = []
    for index in chosen.tolist():
        with contextlib.suppress(ImageError):  # told of elsewhere
            image = train.image(index, min_side=resize_side(preprocessing))
            seen.append(preprocess(image, preprocessing))
    return torch.from_numpy(np.stack(seen))


def make_sampler(recipe: Recipe, train: ImageSet, accelerator: Accelerator) -> BatchSampler:
    """The batch sampler of a recipe for this process; raises `InputError` if ``accumulate`` is too large."""
    processes = accelerator.num_processes
    sampler = BatchSampler(
        len(train),
        recipe.batch_size,
        seed=recipe.seed,
        process=accelerator.process_index,
        num_processes=processes,
        balance=train.labels if recipe.balance == "sampling" else None,
    )
    most = sampler.batch_size // processes // 2
    if recipe.accumulate > most:
        raise InputError(
            f"`accumulate` {recipe.accumulate}: {sampler.batch_size} images for {processes} processes make no more "
            f"than {most} parts"
        )
    return sampler


def evaluate_run(trainer: SupervisedTrainer, dev: ImageSet, *, workers: int) -> dict[str, Any]:
    """Results of the moving average on the dev images, which are divided among processes.

    Weights are rounded as they will be stored, so that the results are those of the file.
    """
    accelerator, consensus = trainer.accelerator, trainer.recipe.consensus
    network = as_stored(trainer.smoothed)
    part = np.arange(accelerator.process_index, len(dev), accelerator.num_processes)
    predictions = []
    if len(part):  # there may be fewer images than processes
        predictions.append(
            collect_predictions(
                network,
                dev,
                trainer.preprocessing,
                accelerator.device,
                trainer.taxonomy,
                part=part,
                lower_weights=weights_to_try(consensus),
                workers=workers,
            )
        )
    if accelerator.num_processes > 1:
        predictions = gather_object(predictions)
    return summarise(network, trainer.taxonomy, Predictions.join(predictions), consensus)


class EpochLoop:
    """Trains a run from the state in its folder to the last epoch."""

    def __init__(
        self,
        trainer: SupervisedTrainer,
        train: ImageSet,
        dev: ImageSet,
        sampler: BatchSampler,
        run_dir: RunDir,
        reporter: Reporter,
        *,
        workers: int,
    ) -> None:
        """Train on ``train`` in the order of ``sampler``; ``dev`` selects the best epoch."""
        self.trainer, self.train, self.dev, self.sampler = trainer, train, dev, sampler
        self.run_dir, self.reporter, self.workers = run_dir, reporter, workers
        self.hinted = False

    def run_to_the_end(self, save_every: float) -> dict[str, Any]:
        """Train to the last epoch, saving every ``save_every`` minutes; return the best epoch and its results."""
        trainer, reporter = self.trainer, self.reporter
        main = trainer.accelerator.is_main_process
        progress = self._start_progress(main=main)
        if main:
            self.run_dir.begin(trainer.recipe, progress.epoch, trainer.taxonomy)
        reporter.line(_describe(trainer, self.train, self.dev))
        size = trainer.recipe.image_size(progress.epoch)
        part_done = size * size * progress.step / len(self.sampler)
        reporter.start(
            _work(trainer.recipe, trainer.recipe.epochs), _work(trainer.recipe, progress.epoch) + part_done
        )
        stream = read_training_batches(self._loader(progress))
        if trainer.recipe.base and not self.run_dir.state.exists():
            self._keep_start(progress, main=main)
        try:
            with contextlib.closing(stream), Interrupts(quiet=not main) as interrupts:
                autosave = Autosave(trainer, self.run_dir.state, progress, interrupts, minutes=save_every)
                while progress.epoch < trainer.recipe.epochs:
                    self._epoch(autosave, stream)
        finally:
            reporter.close()
        assert progress.best is not None
        return progress.best

    def _keep_start(self, progress: TrainingProgress, *, main: bool) -> None:
        """Keep the model that training begins with until an epoch is better on the held-out images."""
        results = evaluate_run(self.trainer, self.dev, workers=self.workers)
        progress.best = {"epoch": 0, "results": results}
        if main:
            export_model(self.trainer, self.run_dir.model, results)
        accuracies = " / ".join(f"{level['top1']:.1%}" for level in results["levels"])
        self.reporter.line(f"before training dev {accuracies}")

    def _start_progress(self, *, main: bool) -> TrainingProgress:
        device = self.trainer.accelerator.device
        if not self.run_dir.state.exists():
            return TrainingProgress(torch.zeros((), device=device))
        progress = TrainingProgress.from_json(self.trainer.load(self.run_dir.state), device, main=main)
        steps = f" and {progress.step} of {len(self.sampler)} updates" if progress.step else ""
        self.reporter.line(f"resumed after epoch {progress.epoch} of {self.trainer.recipe.epochs}{steps}")
        return progress

    def _loader(self, progress: TrainingProgress) -> DataLoader[Any]:
        """The batches of all remaining epochs."""
        recipe, start = self.trainer.recipe, progress.step
        epochs = range(progress.epoch, recipe.epochs)
        shares = (
            share
            for epoch in epochs
            for share in self.sampler.shares(
                epoch, side=recipe.image_size(epoch), start=start if epoch == epochs[0] else 0
            )
        )
        return training_loader(
            self.train,
            shares,
            sides={recipe.image_size(epoch) for epoch in epochs},
            crop_scale=recipe.crop_scale,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment,
            seed=recipe.seed,
            workers=self.workers,
            pin_memory=self.trainer.accelerator.device.type == "cuda",
        )

    def _epoch(self, autosave: Autosave, stream: Iterator[TrainingBatch]) -> None:
        """Train the rest of an epoch, evaluate if due, and write the results."""
        trainer, recipe, progress = self.trainer, self.trainer.recipe, autosave.progress
        autosave.begin_epoch()
        row = self._train(autosave, stream)
        self._hint(row["data_wait"])
        results, done, totals = None, progress.epoch + 1, autosave.totals()
        if done == recipe.epochs or done % recipe.eval_every == 0:
            try:
                with autosave.interrupts.abrupt():
                    results = evaluate_run(trainer, self.dev, workers=self.workers)
            except KeyboardInterrupt:
                autosave.write(*totals)  # the updates of the epoch are done
                raise
            row["dev"] = [level["top1"] for level in results["levels"]]
        row["seconds"] = round(autosave.spent(), 2)
        progress.end_epoch(row["seconds"])
        _keep(trainer, autosave, self.run_dir, row, results)
        self.reporter.line(_epoch_line(row, recipe.epochs))
        if done < recipe.epochs:
            autosave.after_update()

    def _train(self, autosave: Autosave, stream: Iterator[TrainingBatch]) -> dict[str, Any]:
        """Train the rest of an epoch; return its row of the history."""
        recipe, epoch, steps = self.trainer.recipe, autosave.progress.epoch, len(self.sampler)
        size = recipe.image_size(epoch)
        row, errors = train_updates(
            self.trainer,
            stream,
            steps,
            autosave,
            self.reporter,
            where=lambda step: f"epoch {epoch + 1}/{recipe.epochs} step {step + 1}/{steps}",
            work=size * size / steps,
        )
        self.reporter.unreadable(errors, f"training images of epoch {epoch + 1}")
        return {"epoch": epoch + 1, **row, "size": size}

    def _hint(self, waiting: float) -> None:
        """Print once what may help if the run waits for images."""
        hint = waiting_hint(waiting, self.workers, local_processes(self.trainer.accelerator))
        if hint is not None and not self.hinted:
            self.reporter.line(hint)
            self.hinted = True


def _keep(
    trainer: SupervisedTrainer,
    autosave: Autosave,
    run_dir: RunDir,
    row: dict[str, Any],
    results: dict[str, Any] | None,
) -> None:
    """Write the results of an epoch: the model if it is the best so far, the history, and last the state."""
    progress = autosave.progress
    better = results is not None and _is_better(results, progress.best)
    if better:
        progress.best = {"epoch": row["epoch"], "results": results}
    if trainer.accelerator.is_main_process:
        if better and results is not None:
            export_model(trainer, run_dir.model, results)
        if results is not None:
            facts = {
                "epochs_done": progress.epoch,
                "seconds": round(progress.seconds, 1),
                "best": progress.best,
            }
            describe_model(
                run_dir.model,
                trainer.recipe.without_paths(),
                facts,
                trainer.accelerator.device,
                lambda known: model_card(known, trainer.taxonomy),
            )
        run_dir.add_epoch(row)
    autosave.write(0.0, 0)
    trainer.accelerator.wait_for_everyone()


def _is_better(results: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an epoch's network replaces the best so far: by the accuracy of the last level.

    Of equal ones that with the better next lower level wins, and so on; of ties in all levels the later epoch. During
    pruning, levels have more weights than asked for and are better for it; networks with different numbers of weights
    are not compared, and the later one is kept.
    """
    if best is None:
        return True
    weights, former = ([row["parameters"] for row in r["levels"]] for r in (results, best["results"]))
    found, known = ([row["top1"] for row in reversed(r["levels"])] for r in (results, best["results"]))
    return weights != former or bool(found >= known)


def _work(recipe: Recipe, epochs: int) -> float:
    """Work of the first ``epochs`` epochs: pixels per image, summed."""
    return float(sum(recipe.image_size(epoch) ** 2 for epoch in range(epochs)))


def _describe(trainer: SupervisedTrainer, train: ImageSet, dev: ImageSet) -> str:
    classes = " / ".join(map(str, trainer.taxonomy.num_classes))
    macs = " / ".join(
        f"{trainer.smoothed.cost(level).macs / 1e6:.1f}" for level in range(trainer.smoothed.num_levels)
    )
    return (
        f"{len(train)} training images, {len(dev)} dev images, classes {classes}, {macs} MMACs, "
        f"{trainer.accelerator.device.type}, {torch.get_num_threads()} threads"
    )


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    accuracies = " / ".join(f"{share:.1%}" for share in row.get("dev", []))
    return (
        f"epoch {row['epoch']}/{epochs} loss {row['loss']:.3f} lr {row['lr']:.2g} {row['size']} px "
        f"{row['images_per_second']:.0f} img/s waiting {row['data_wait']:.0%} {clock(row['seconds'])}"
        + (f" dev {accuracies}" if accuracies else "")
    )
