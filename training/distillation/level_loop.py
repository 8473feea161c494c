"""Train a group of levels: updates, measurement on held-out crops every N crops, and the model after each."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hierclass.checkpoints.checkpoint import Checkpoint, as_stored
from hierclass.nested import NestedNetwork
from training.data.sampler import BatchSampler
from training.distillation.dataset import CropSet
from training.distillation.distil_dir import DistilDir
from training.distillation.losses import compare_to_teacher
from training.distillation.trainer import DistilTrainer
from training.evaluation.console import Reporter, clock
from training.trainer.autosave import Autosave, TimeUp, TrainingProgress
from training.trainer.interrupts import Interrupts
from training.trainer.sync_batchnorm import has_statistics, measure_statistics
from training.trainer.updates import train_updates

AT_FIRST = 20
"""Batches of crops on which norms are measured before the first update."""
MEASURED = 64
"""Batch size for measuring statistics of norms and divergences."""


@dataclasses.dataclass(frozen=True)
class LevelData:
    """Training crops, held-out crops, and photographs as inference sees them.

    ``centres`` uint8 (N, 3, S, S), one per level, are for measuring statistics of norms.
    """

    train: CropSet
    val: CropSet
    centres: Sequence[Tensor]


class LevelLoop:
    """Trains a group of levels from the state in their folder to the last update."""

    def __init__(
        self,
        trainer: DistilTrainer,
        start: Checkpoint,
        inputs: LevelData,
        sampler: BatchSampler,
        folder: DistilDir,
        reporter: Reporter,
        facts: dict[str, Any],
    ) -> None:
        """``facts`` are added to the results of the model."""
        self.trainer, self.start, self.inputs, self.sampler = trainer, start, inputs, sampler
        self.folder, self.reporter, self.facts = folder, reporter, facts
        self.own = folder.run_of(trainer.levels)
        self._kept: NestedNetwork | None = None

    def run_to_the_end(self, save_every: float, deadline: float = math.inf) -> bool:
        """Train, saving every ``save_every`` minutes; return whether the last update came before ``deadline``."""
        trainer, reporter, recipe = self.trainer, self.reporter, self.trainer.recipe
        total = recipe.total_updates()
        progress = self._start_progress()
        if trainer.accelerator.is_main_process:
            self.own.begin(recipe, progress.epoch, self.start.taxonomy)
        if trainer.updates >= total:
            reporter.line(f"{self._who()}: all {trainer.updates * recipe.batch_size} crops are done")
            if not set(trainer.levels) <= self.folder.kept_levels(recipe.interpolate):
                self._keep(self._measure(), progress.seconds)  # deleted since, or to be drawn back otherwise
            return True
        reporter.start(total, trainer.updates)
        stream = self.inputs.train.stream(self.sampler, trainer.updates, total)
        quiet = not trainer.accelerator.is_main_process
        try:
            with contextlib.closing(stream), Interrupts(quiet=quiet) as interrupts:
                autosave = Autosave(
                    trainer, self.own.state, progress, interrupts, minutes=save_every, deadline=deadline
                )
                while trainer.updates < total:
                    if not self._stretch(autosave, stream, total):
                        return False
        finally:
            reporter.close()
        return True

    def _start_progress(self) -> TrainingProgress:
        accelerator = self.trainer.accelerator
        device = accelerator.device
        if not self.own.state.exists():
            return TrainingProgress(torch.zeros((), device=device))
        stored = self.trainer.load(self.own.state)
        progress = TrainingProgress.from_json(stored, device, main=accelerator.is_main_process)
        done, total = self.trainer.updates, self.trainer.recipe.total_updates()
        self.reporter.line(f"{self._who()}: resumed after {done} of {total} updates")
        return progress

    def _stretch(self, autosave: Autosave, stream: Any, total: int) -> bool:
        """Train up to the next measurement and keep the result; return False if the time is up."""
        trainer, progress = self.trainer, autosave.progress
        every = max(trainer.recipe.eval_every // trainer.recipe.batch_size, 1)
        end = min((trainer.updates // every + 1) * every, total)
        steps = progress.step + end - trainer.updates
        first = end - steps
        autosave.begin_epoch()
        try:
            row, _ = train_updates(
                trainer,
                stream,
                steps,
                autosave,
                self.reporter,
                where=lambda step: f"{self._who()} {(first + step + 1) * trainer.recipe.batch_size} crops",
                work=1.0,
            )
        except TimeUp:
            measured = self._measure()
            self._keep(measured, progress.seconds + autosave.spent())
            self.reporter.line(
                f"{self._who()}: time is up after {trainer.updates * trainer.recipe.batch_size} of "
                f"{total * trainer.recipe.batch_size} crops; `resume` continues; {_distances(measured[1])}"
            )
            return False
        totals = autosave.totals()
        try:
            with autosave.interrupts.abrupt():
                measured = self._measure()
        except KeyboardInterrupt:
            autosave.write(*totals)  # the updates are done
            raise
        row = {"crops": trainer.updates * trainer.recipe.batch_size, **row, "levels": measured[1]}
        row["seconds"] = round(autosave.spent(), 2)
        progress.end_epoch(row["seconds"])
        self._keep(measured, progress.seconds)
        if trainer.accelerator.is_main_process:
            self.own.add_epoch(row)
        autosave.write(0.0, 0)
        trainer.accelerator.wait_for_everyone()
        self.reporter.line(_row_line(self._who(), row))
        if trainer.updates < total:
            autosave.after_update()
        return True

    def _measure(self) -> tuple[NestedNetwork, list[dict[str, Any]]]:
        """The network as it will be stored, and its divergences from the teacher (measured by the main process)."""
        trainer = self.trainer
        network = self._kept = as_stored(_interpolated(trainer), into=self._kept)
        if not trainer.accelerator.is_main_process:
            return network, []
        rows = []
        for place, level in enumerate(trainer.levels):
            if trainer.recipe.statistics == "batch":
                measure_norm_statistics(trainer, network, level, self.inputs.centres[place])
            rows.append(measure_divergence(trainer, network, place, self.inputs.val))
        return network, rows

    def _keep(self, measured: tuple[NestedNetwork, list[dict[str, Any]]], seconds: float) -> None:
        """Write the levels into the model."""
        network, rows = measured
        trainer = self.trainer
        if trainer.accelerator.is_main_process:
            crops = trainer.updates * trainer.recipe.batch_size
            trained = {
                "crops_trained": crops,
                "seconds": round(seconds, 1),
                "statistics": trainer.recipe.statistics,
                "train_heads": trainer.recipe.train_heads,
                "interpolate": trainer.recipe.interpolate,
            }
            levels = [{**row, **trained} for row in rows]
            checkpoint = dataclasses.replace(self.start, network=network)
            results = {**self.facts, "levels": levels}
            self.folder.keep(trainer.recipe, checkpoint, trainer.changed, results, trainer.accelerator.device)

    def _who(self) -> str:
        return f"level {' and '.join(map(str, self.trainer.levels))}"


def _interpolated(trainer: DistilTrainer) -> NestedNetwork:
    """The moving average, moved towards the initial weights as the recipe's ``interpolate`` says.

    Source: robust fine-tuning by interpolating weights (Wortsman et al. 2022, arXiv 2109.01903).
    """
    if trainer.recipe.interpolate == 1:
        return trainer.smoothed
    network = copy.deepcopy(trainer.smoothed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name in trainer.began:
                value.copy_(trainer.began[name].to(value).lerp(value, trainer.recipe.interpolate))
    return network


def measure_divergence(
    trainer: DistilTrainer, network: NestedNetwork, place: int, val: CropSet
) -> dict[str, Any]:
    """Compare one trained level with the teacher on held-out crops (`compare_to_teacher`)."""
    device = trainer.accelerator.device
    batches = (
        (trainer.normalise(images[place]), answers.to(device).float().softmax(dim=1))
        for images, answers in val.batches(MEASURED)
    )
    return compare_to_teacher(network.eval(), trainer.loss, trainer.levels[place], batches)


def measure_norm_statistics(
    trainer: DistilTrainer, network: NestedNetwork, level: int, images: Tensor
) -> None:
    """Measure the statistics of a level's norms on images, uint8 (N, 3, S, S); end in evaluation mode."""
    batches = torch.split(images, MEASURED)
    if len(batches) > 1 and len(batches[-1]) < MEASURED // 2:
        batches = batches[:-1]
    calls = ((lambda each=each: network.features(trainer.normalise(each), level)) for each in batches)
    measure_statistics(network, calls)
    network.eval()


def choose_norm_statistics(
    trainer: DistilTrainer, crops: CropSet, val: CropSet, tell: Callable[[str], None]
) -> str:
    """Choose the statistics of norms before the first update: pretrained ones, or ones measured on crops.

    With "auto", the higher agreement with the teacher on the levels' tiers decides. Pretrained statistics suit levels
    of full width and not thin ones. Returns "batch" or "pretrained"; the moving average follows. ``tell`` gets a line
    per measurement.
    """
    wanted = trainer.recipe.statistics
    if wanted == "pretrained":
        return wanted
    if not has_statistics(trainer.network):
        return "batch"
    if wanted == "auto":
        before, pretrained = copy.deepcopy(trainer.network.state_dict()), _all_distances(trainer, val)
    chosen = np.random.default_rng(trainer.recipe.seed).permutation(len(crops))[: AT_FIRST * MEASURED]
    images, _ = crops.take(np.sort(chosen).tolist())
    for place, level in enumerate(trainer.levels):
        measure_norm_statistics(trainer, trainer.network, level, images[place])
    if wanted == "auto":
        measured = _all_distances(trainer, val)
        tell(f"with pretrained statistics: {_distances(pretrained)}")
        tell(f"with statistics of crops: {_distances(measured)}")
        if _nearness(pretrained) > _nearness(measured):
            trainer.network.load_state_dict(before)
            return "pretrained"
    trainer.ema.set(trainer.network)
    return "batch"


def _all_distances(trainer: DistilTrainer, val: CropSet) -> list[dict[str, Any]]:
    return [measure_divergence(trainer, trainer.network, place, val) for place in range(len(trainer.levels))]


def _nearness(rows: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Sort key of closeness to the teacher: agreement on tiers, then on leaves, then divergence on tiers."""
    agree_tier, agree_leaf, apart = (
        sum(row[name] for row in rows) for name in ("agree_tier", "agree_leaf", "kl_tier")
    )
    return agree_tier, agree_leaf, -apart


def _row_line(who: str, row: dict[str, Any]) -> str:
    return (
        f"{who} {row['crops']} crops loss {row['loss']:.3f} lr {row['lr']:.2g} {row['images_per_second']:.0f} img/s "
        f"{clock(row['seconds'])}; {_distances(row['levels'])}"
    )


def _distances(rows: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"level {each['level']}: KL leaf {each['kl_leaf']:.3f} tier {each['kl_tier']:.3f}, same leaf "
        f"{each['agree_leaf']:.1%} tier {each['agree_tier']:.1%}"
        for each in rows
    )
