"""A whole distillation: `distil` sets up, makes crops, trains the levels one after the other and measures the model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hierclass.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hierclass.checkpoints.description import read_config
from hierclass.errors import InputError
from hierclass.nested.prefix import PrefixNetwork
from taxonomy.terminal import PlainConsole
from training.data.mixup import PixelNormaliser
from training.data.sample_weights import check_known_top1
from training.data.sampler import BatchSampler, seed_everything
from training.data.samples import read_images
from training.distillation.crops import Pixels
from training.distillation.dataset import CENTRES, DistilData, PhotographSplit, as_images
from training.distillation.distil_dir import DistilDir
from training.distillation.level_loop import LevelData, LevelLoop, choose_norm_statistics
from training.distillation.recipe import IDENTITY, DistilRecipe, untrained_levels
from training.distillation.student import groups_to_train, nest_teacher, start_from_model, statistics_of
from training.distillation.teacher import Teacher, model_teacher, timm_teacher
from training.distillation.trainer import DistilTrainer
from training.evaluation.calibration import check_enough
from training.evaluation.console import Reporter, show_results
from training.evaluation.evaluate import EvaluationOptions, measure_checkpoint
from training.trainer.network import FOR_ORDER
from training.trainer.optimizer import make_optimizer
from training.trainer.processes import local_processes, make_accelerator
from training.trainer.sync_batchnorm import has_statistics
from training.trainer.throughput import automatic_workers

PASSES = 16
"""Default number of passes over all crops."""


def distil(
    recipe: DistilRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    changes: Mapping[str, Any] | None = None,
    level: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    threads: int | None = None,
    save_every: float = 10.0,
    eval_data: Sequence[str] = (),
    known_top1: float | None = None,
    console: PlainConsole | None = None,
    accelerator: Accelerator | None = None,
) -> bool:
    """Nest a teacher in the folder ``out``; return whether all levels were trained to the end.

    ``resume`` continues the runs in ``out``; levels that have begun keep their recipes except for ``changes`` (field →
    value; None: this recipe). ``overwrite`` begins anew in place of them. ``level`` trains that level alone. After
    ``minutes`` the run ends with its state saved and the model written. At the end the model is measured and calibrated
    on the labelled photographs ``eval_data``, weighted by ``known_top1`` (`training.data.sample_weights`). Raises
    `InputError`, `BackboneError`, `CheckpointError` or `TaxonomyError`.
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
    reporter = Reporter(console or PlainConsole(), quiet=not accelerator.is_main_process)
    session = Distillation(recipe, DistilDir(out, recipe.cache), accelerator, reporter, changes=changes)
    if eval_data:  # what is wrong with it is said before hours of work
        check_enough(len(read_images(eval_data, session.teacher.taxonomy, part="val")))
    groups = session.set_up(level, resume=resume, overwrite=overwrite)
    session.make_crops(groups, workers=workers, threads=threads)
    ended = session.train_all(groups, resume=resume, save_every=save_every, until=until)
    accelerator.end_training()
    if not reporter.quiet:
        trained = session.folder.kept_levels()
        for each in untrained_levels(trained, session.teacher.taxonomy.num_tiers, recipe):
            reporter.line(f"level {each} has not been trained")
        how = EvaluationOptions(known_top1=known_top1, workers=workers, threads=threads)
        _evaluate(session.folder.model, eval_data, reporter, how)
    return ended


def _evaluate(model: Path, data: Sequence[str], reporter: Reporter, how: EvaluationOptions) -> None:
    """Measure and calibrate a model on labelled photographs; without any, print the command that does."""
    if data:
        results = measure_checkpoint(model, data, **how)
        show_results(reporter.console, results, str(model))
        return
    reporter.line(
        f"the model is in {model}; to fit how sure it is, with labelled photographs: "
        f"hierclass-train calibrate {model} --data PHOTOS"
    )


def load_teacher(recipe: DistilRecipe) -> Teacher:
    """Load the teacher of a recipe, at its own image side."""
    if recipe.teacher is not None:
        teacher = model_teacher(Path(recipe.teacher), recipe.taxonomy)
    else:
        assert recipe.timm is not None
        weights, classes = (None if file is None else Path(file) for file in (recipe.weights, recipe.classes))
        teacher = timm_teacher(recipe.timm, weights=weights, taxonomy=recipe.taxonomy, classes=classes)
    return teacher


class Distillation:
    """One call of `distil`: what all levels that it trains share."""

    def __init__(
        self,
        recipe: DistilRecipe,
        folder: DistilDir,
        accelerator: Accelerator,
        reporter: Reporter,
        *,
        changes: Mapping[str, Any] | None,
    ) -> None:
        """Load the teacher and list the photographs. Call `set_up`, `make_crops` and `train_all` in this order."""
        recipe.check()
        make_optimizer(nn.Linear(1, 1), opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.recipe, self.folder, self.changes = recipe, folder, changes
        self.accelerator, self.reporter = accelerator, reporter
        self.teacher = load_teacher(recipe)
        recipe.check_levels(self.teacher.taxonomy.num_tiers)
        if recipe.sizes is not None and recipe.sizes[-1] != self.teacher.preprocessing.size:
            reporter.line(
                f"the last level sees {recipe.sizes[-1]} pixels; the classifier was made for "
                f"{self.teacher.preprocessing.size}"
            )
            self.teacher = self.teacher.at_side(recipe.sizes[-1])
        self.gallery = PhotographSplit.find(recipe, self.teacher)
        if tables := self.gallery.photographs.passed_over:
            reporter.line(f"passed over, without a column of images: {', '.join(map(str, tables))}")
        self.material: DistilData
        self.centres: list[Pixels] = []
        self._start: Checkpoint | None = None
        self.facts: dict[str, Any] = {}

    def set_up(self, level: int | None, *, resume: bool, overwrite: bool = False) -> list[tuple[int, ...]]:
        """Make the network before training if it does not exist; return the groups of levels to train.

        Raises `InputError` where something in the folder would be replaced.
        """
        folder, recipe = self.folder, self.recipe
        if self.accelerator.is_main_process:
            folder.refuse_others()
            with folder.claim():
                folder.check_mine()
                if overwrite:
                    folder.forget(recipe)
                folder.check_common(recipe)
                has_start = folder.has_start(recipe)
                if has_start:
                    self._check_start()
                start = folder.load_start() if has_start else self._make_start()
                self._groups(start, level, resume=resume)  # refuses before anything is written
                if not has_start:
                    start.results = {"teacher": self.teacher.digest}
                    save_checkpoint(folder.start, start, dtype="float32")
                if level is None or not folder.begun:  # one level's options are in its own recipe
                    recipe.save(folder.recipe)
        self.accelerator.wait_for_everyone()
        self._start = folder.load_start()
        return self._groups(self._start, level, resume=resume)

    def _groups(self, start: Checkpoint, level: int | None, *, resume: bool) -> list[tuple[int, ...]]:
        """The groups of levels to train; raises `InputError` where a run would be replaced."""
        groups = groups_to_train(_network(start), level)
        for levels in groups:
            self.folder.run_of(levels).refuse_to_replace(resume=resume)
        if level is not None:
            self.folder.check_others(level)
        return groups

    def _check_start(self) -> None:
        """Raise `InputError` if the teacher has changed since the run began."""
        if read_config(self.folder.start).get("results") != {"teacher": self.teacher.digest}:
            raise InputError(
                f"the teacher, its preprocessing or its tree has changed since the run in {self.folder.path} began; "
                "choose another `out`"
            )

    def _make_start(self) -> Checkpoint:
        recipe, teacher = self.recipe, self.teacher
        if recipe.start is not None:
            return start_from_model(Path(recipe.start), recipe, teacher)
        seed_everything(recipe.seed)
        pixels = list(self.gallery.centres(FOR_ORDER))
        if not pixels:
            raise InputError("`images`: none of the photographs can be read; give others")
        normalise = PixelNormaliser(teacher.preprocessing, torch.device("cpu"))
        return nest_teacher(recipe, teacher, normalise(as_images(pixels, teacher.preprocessing.size)))

    def sides(self, levels: Sequence[int]) -> list[int]:
        """Image side in pixels of each of the levels."""
        whole = (self.teacher.preprocessing.size,) * self.teacher.taxonomy.num_tiers
        return [(self.recipe.sizes or whole)[level] for level in levels]

    def make_crops(self, groups: Sequence[tuple[int, ...]], *, workers: int, threads: int | None) -> None:
        """Make missing crops and answers for the groups, and print what is wrong with the photographs."""
        sides = sorted({side for levels in groups for side in self.sides(levels)})
        self.material = DistilData.of(self.gallery, self.recipe, self.teacher, self.folder.crops, sides)
        self.material.make(self.teacher, self.accelerator, self.reporter, workers=workers, threads=threads)
        broken = self.material.tell(self.folder.unreadable, sides, self.reporter)
        if self.accelerator.is_main_process:
            self.centres = list(self.gallery.centres(CENTRES))
        photographs, store = len(self.gallery.photographs) - broken, self.material.store
        self.facts = {
            "teacher": {"name": self.teacher.name, "digest": self.teacher.digest},
            "photographs": photographs,
            "unreadable": broken,
            "crops": photographs * store.passes,
        }

    def train_all(
        self,
        groups: Sequence[tuple[int, ...]],
        *,
        resume: bool,
        save_every: float,
        until: float | None = None,
    ) -> bool:
        """Train one group after the other; return whether all reached their end.

        The time until ``until`` (monotonic clock) is divided evenly among the remaining groups.
        """
        ended, deadline = True, math.inf
        for number, levels in enumerate(groups):
            if until is not None:
                now = time.monotonic()
                deadline = now + (until - now) / (len(groups) - number)
            ended &= self.train(levels, resume=resume, save_every=save_every, deadline=deadline)
        return ended

    def train(self, levels: tuple[int, ...], *, resume: bool, save_every: float, deadline: float) -> bool:
        """Train levels together until their end or ``deadline`` (monotonic clock); return whether they ended."""
        own, main = self.folder.run_of(levels), self.accelerator.is_main_process
        with own.claim(resume=resume) if main else contextlib.nullcontext():
            ended = self._training_of(levels).run_to_the_end(save_every, deadline)
        self.accelerator.free_memory()
        return ended

    def _training_of(self, levels: tuple[int, ...]) -> LevelLoop:
        accelerator, folder = self.accelerator, self.folder
        start, self._start = self._start or folder.load_start(), None  # training changes it
        sides = self.sides(levels)
        train, val = (self.material.crop_set(sides, held_out=each) for each in (False, True))
        recipe = self._recipe_of(levels, len(train))
        sampler = BatchSampler(
            len(train),
            recipe.batch_size,
            seed=recipe.seed,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        trainer = DistilTrainer(
            recipe, _network(start), levels, start.taxonomy, start.preprocessing, accelerator
        )
        if not folder.run_of(levels).state.exists() and recipe.start is None:
            statistics = choose_norm_statistics(trainer, train, val, self.reporter.line)
            trainer.recipe = dataclasses.replace(recipe, statistics=statistics)
        if has_statistics(trainer.network):
            how = {"batch": "those of each batch", "pretrained": "those that they begin with"}
            self.reporter.line(
                f"level {' and '.join(map(str, levels))}: norms keep to {how[trainer.recipe.statistics]}"
            )
        held_out = {
            "val_photographs": len(val) // self.material.store.passes,
            "val_crops": len(val),
        }
        self.reporter.line(_describe(trainer, len(train), len(val)))
        inputs = LevelData(
            train, val, [as_images(self.centres, side) for side in sides] if self.centres else []
        )
        return LevelLoop(trainer, start, inputs, sampler, folder, self.reporter, {**self.facts, **held_out})

    def _recipe_of(self, levels: tuple[int, ...], num_crops: int) -> DistilRecipe:
        """The recipe of a group of levels, with its number of crops."""
        recipe, own = self.recipe, self.folder.run_of(levels)
        file = own.path / "recipe.json"
        if own.state.exists() and file.exists():
            stored = DistilRecipe.load(file)
            if stored.statistics == "auto":  # of a version that knew batches alone
                stored = dataclasses.replace(stored, statistics="batch")
            if self.changes is not None:
                recipe = dataclasses.replace(stored, **self.changes)
            elif recipe.crops is None:
                recipe = dataclasses.replace(recipe, crops=stored.crops)
            if recipe.statistics == "auto":
                recipe = dataclasses.replace(recipe, statistics=stored.statistics)
            for name in (*IDENTITY, "statistics"):
                if getattr(recipe, name) != getattr(stored, name):
                    raise InputError(
                        f"`{name}` differs from that of the run in {own.path}; leave it out, or change `out`"
                    )
        elif recipe.start is not None and recipe.statistics == "auto":
            recipe = dataclasses.replace(recipe, statistics=statistics_of(Path(recipe.start), levels))
        return recipe if recipe.crops is not None else dataclasses.replace(recipe, crops=PASSES * num_crops)


def _network(checkpoint: Checkpoint) -> PrefixNetwork:
    assert isinstance(checkpoint.network, PrefixNetwork)
    return checkpoint.network


def _describe(trainer: DistilTrainer, train: int, val: int) -> str:
    network, recipe = trainer.smoothed, trainer.recipe
    macs = " / ".join(f"{network.cost(level).macs / 1e6:.1f}" for level in range(network.num_levels))
    trained = sum(value.numel() for value in trainer.network.parameters() if value.requires_grad)
    return (
        f"level {' and '.join(map(str, trainer.levels))} of {macs} MMACs: {trained:,} weights learn from {train} "
        f"crops, {recipe.crops} in all, {val} held out; {trainer.accelerator.device.type}, "
        f"{torch.get_num_threads()} threads"
    )
