"""Levels are trained, measured every so many crops, and kept: what `training.trainer.loop.EpochLoop` is to `fit`."""

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
"""Images in a batch that statistics of norms or the distance from the teacher are measured on."""


@dataclasses.dataclass(frozen=True)
class LevelData:
    """What levels are trained on: crops, held-out crops, and photographs as inference sees them.

    ``centres`` are uint8 (N, 3, S, S) for each of the levels, on which the norms are measured.
    """

    train: CropSet
    val: CropSet
    centres: Sequence[Tensor]


class LevelLoop:
    """Levels that are trained together, from where their folder stands to the last update."""

    def __init__(
        self,
        run: DistilTrainer,
        start: Checkpoint,
        inputs: LevelData,
        order: BatchSampler,
        folder: DistilDir,
        reporter: Reporter,
        facts: dict[str, Any],
    ) -> None:
        """``facts`` go into the results of the model beside what is measured here."""
        self.run, self.start, self.inputs, self.order = run, start, inputs, order
        self.folder, self.reporter, self.facts = folder, reporter, facts
        self.own = folder.run_of(run.levels)
        self._kept: NestedNetwork | None = None

    def run_to_the_end(self, save_every: float, deadline: float = math.inf) -> bool:
        """Train to the last update, saving every so many minutes; returns whether it was reached by the deadline."""
        run, reporter, recipe = self.run, self.reporter, self.run.recipe
        total = recipe.total_updates()
        standing = self._standing()
        if run.accelerator.is_main_process:
            self.own.begin(recipe, standing.epoch, self.start.taxonomy)
        if run.updates >= total:
            reporter.line(f"{self._who()}: all {run.updates * recipe.batch_size} crops are done")
            if not set(run.levels) <= self.folder.kept_levels(recipe.interpolate):
                self._keep(self._measure(), standing.seconds)  # deleted since, or to be drawn back otherwise
            return True
        reporter.start(total, run.updates)
        stream = self.inputs.train.stream(self.order, run.updates, total)
        quiet = not run.accelerator.is_main_process
        try:
            with contextlib.closing(stream), Interrupts(quiet=quiet) as interrupts:
                saver = Autosave(
                    run, self.own.state, standing, interrupts, minutes=save_every, deadline=deadline
                )
                while run.updates < total:
                    if not self._stretch(saver, stream, total):
                        return False
        finally:
            reporter.close()
        return True

    def _standing(self) -> TrainingProgress:
        accelerator = self.run.accelerator
        device = accelerator.device
        if not self.own.state.exists():
            return TrainingProgress(torch.zeros((), device=device))
        progress = self.run.load(self.own.state)
        standing = TrainingProgress.from_json(progress, device, main=accelerator.is_main_process)
        done, total = self.run.updates, self.run.recipe.total_updates()
        self.reporter.line(f"{self._who()}: resumed after {done} of {total} updates")
        return standing

    def _stretch(self, saver: Autosave, stream: Any, total: int) -> bool:
        """Train up to the next measurement, and keep what it leaves; returns False where the time is up."""
        run, standing = self.run, saver.standing
        every = max(run.recipe.eval_every // run.recipe.batch_size, 1)
        end = min((run.updates // every + 1) * every, total)
        steps = standing.step + end - run.updates
        first = end - steps
        saver.begin_epoch()
        try:
            row, _ = train_updates(
                run,
                stream,
                steps,
                saver,
                self.reporter,
                where=lambda step: f"{self._who()} {(first + step + 1) * run.recipe.batch_size} crops",
                work=1.0,
            )
        except TimeUp:
            measured = self._measure()
            self._keep(measured, standing.seconds + saver.spent())
            self.reporter.line(
                f"{self._who()}: time is up after {run.updates * run.recipe.batch_size} of "
                f"{total * run.recipe.batch_size} crops; `resume` continues; {_distances(measured[1])}"
            )
            return False
        totals = saver.totals()
        try:
            with saver.interrupts.abrupt():
                measured = self._measure()
        except KeyboardInterrupt:
            saver.write(*totals)  # the updates are done
            raise
        row = {"crops": run.updates * run.recipe.batch_size, **row, "levels": measured[1]}
        row["seconds"] = round(saver.spent(), 2)
        standing.end_epoch(row["seconds"])
        self._keep(measured, standing.seconds)
        if run.accelerator.is_main_process:
            self.own.add_epoch(row)
        saver.write(0.0, 0)
        run.accelerator.wait_for_everyone()
        self.reporter.line(_row_line(self._who(), row))
        if run.updates < total:
            saver.after_update()
        return True

    def _measure(self) -> tuple[NestedNetwork, list[dict[str, Any]]]:
        """The network as it will be stored, and how near its levels come to the teacher; on the main process alone."""
        run = self.run
        network = self._kept = as_stored(_interpolated(run), into=self._kept)
        if not run.accelerator.is_main_process:
            return network, []
        rows = []
        for place, level in enumerate(run.levels):
            if run.recipe.statistics == "batch":
                measure_norm_statistics(run, network, level, self.inputs.centres[place])
            rows.append(measure_divergence(run, network, place, self.inputs.val))
        return network, rows

    def _keep(self, measured: tuple[NestedNetwork, list[dict[str, Any]]], seconds: float) -> None:
        """Write the levels into the model."""
        network, rows = measured
        run = self.run
        if run.accelerator.is_main_process:
            crops = run.updates * run.recipe.batch_size
            trained = {
                "crops_trained": crops,
                "seconds": round(seconds, 1),
                "statistics": run.recipe.statistics,
                "train_heads": run.recipe.train_heads,
                "interpolate": run.recipe.interpolate,
            }
            levels = [{**row, **trained} for row in rows]
            checkpoint = dataclasses.replace(self.start, network=network)
            results = {**self.facts, "levels": levels}
            self.folder.keep(run.recipe, checkpoint, run.changed, results, run.accelerator.device)

    def _who(self) -> str:
        return f"level {' and '.join(map(str, self.run.levels))}"


def _interpolated(run: DistilTrainer) -> NestedNetwork:
    """The moving average, drawn back as far as the recipe says to the weights that training began with.

    Source: robust fine-tuning by interpolating weights (Wortsman et al. 2022, arXiv 2109.01903).
    """
    if run.recipe.interpolate == 1:
        return run.smoothed
    network = copy.deepcopy(run.smoothed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name in run.began:
                value.copy_(run.began[name].to(value).lerp(value, run.recipe.interpolate))
    return network


def measure_divergence(
    run: DistilTrainer, network: NestedNetwork, place: int, val: CropSet
) -> dict[str, Any]:
    """Compare one of the trained levels with the teacher on held-out crops (`compare_to_teacher`)."""
    device = run.accelerator.device
    batches = (
        (run.normalise(images[place]), answers.to(device).float().softmax(dim=1))
        for images, answers in val.batches(MEASURED)
    )
    return compare_to_teacher(network.eval(), run.loss, run.levels[place], batches)


def measure_norm_statistics(run: DistilTrainer, network: NestedNetwork, level: int, images: Tensor) -> None:
    """Measure the statistics of a level's norms anew on images, uint8 (N, 3, S, S); the network is put back to use."""
    batches = torch.split(images, MEASURED)
    if len(batches) > 1 and len(batches[-1]) < MEASURED // 2:
        batches = batches[:-1]
    calls = ((lambda each=each: network.features(run.normalise(each), level)) for each in batches)
    measure_statistics(network, calls)
    network.eval()


def choose_norm_statistics(
    run: DistilTrainer, crops: CropSet, val: CropSet, tell: Callable[[str], None]
) -> str:
    """Before the first update: measure the norms of all levels on crops, if that brings them nearer to the teacher.

    Pretrained statistics do not fit thin levels; levels of all channels they fit better than new ones, at any side. How
    often level and teacher agree on the level's tier decides, unless the recipe does; returns "batch" or "pretrained".
    The moving average, which begins as the network, follows. ``tell`` hears what was found.
    """
    wanted = run.recipe.statistics
    if wanted == "pretrained":
        return wanted
    if not has_statistics(run.network):
        return "batch"
    if wanted == "auto":
        before, pretrained = copy.deepcopy(run.network.state_dict()), _all_distances(run, val)
    chosen = np.random.default_rng(run.recipe.seed).permutation(len(crops))[: AT_FIRST * MEASURED]
    images, _ = crops.take(np.sort(chosen).tolist())
    for place, level in enumerate(run.levels):
        measure_norm_statistics(run, run.network, level, images[place])
    if wanted == "auto":
        measured = _all_distances(run, val)
        tell(f"with pretrained statistics: {_distances(pretrained)}")
        tell(f"with statistics of crops: {_distances(measured)}")
        if _nearness(pretrained) > _nearness(measured):
            run.network.load_state_dict(before)
            return "pretrained"
    run.ema.set(run.network)
    return "batch"


def _all_distances(run: DistilTrainer, val: CropSet) -> list[dict[str, Any]]:
    return [measure_divergence(run, run.network, place, val) for place in range(len(run.levels))]


def _nearness(rows: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """How near levels come to the teacher: what they answer on their own tiers; of equals, on leaves; then how sure."""
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
