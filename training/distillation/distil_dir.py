"""The output folder of a distillation, and how levels that are trained by separate runs become one model.

recipe.json            options that all levels share, and those of the last call that trained all levels
start/                 the nested network before training, float32
crops/                 crops and the teacher's answers (`crop_store`), unless they are kept elsewhere
unreadable.csv         photographs that can't be read
level-0/ …             per group of levels trained together: recipe.json, history.jsonl, and last/ for --resume
model/                 the model, float16, each level as trained last; recipe.json, training.json, MODEL_CARD.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import read_config
from hierclass.checkpoints.weights_header import open_weights
from hierclass.errors import CheckpointError, InputError
from hierclass.files import CONFIG_FILE, WEIGHTS_FILE, locked
from training.distillation.crop_store import HEADER
from training.distillation.model_card import distilled_card
from training.distillation.recipe import COMMON, DistilRecipe
from training.recipe.option import as_text
from training.trainer.export import describe_model
from training.trainer.run_dir import START, RunDir, refuse_others, refuse_to_overwrite_source


class DistilDir:
    """The output folder of one distillation; runs of different levels may write to it at the same time."""

    def __init__(self, path: Path, cache: str | None = None) -> None:
        """Name the folder, and ``cache`` if crops are kept elsewhere; `claim` creates it."""
        self.path = path
        self.recipe = path / "recipe.json"
        self.start = path / START
        self.model = path / "model"
        self.crops = path / "crops" if cache is None else Path(cache)
        self.unreadable = path / "unreadable.csv"

    def run_of(self, levels: Sequence[int]) -> RunDir:
        """The run folder of levels that are trained together."""
        return RunDir(self.path / f"level-{'-'.join(map(str, levels))}", self.model)

    @property
    def begun(self) -> bool:
        """Whether any level has been trained."""
        return any(self.path.glob("level-*/last/state.safetensors"))

    def stored_recipe(self, level: int | None = None) -> DistilRecipe | None:
        """The recipe that a level (None: the run as a whole) began with, or None."""
        own = self.run_of((level,)).path / "recipe.json" if level is not None else self.recipe
        for file in (own, self.recipe):
            if file.exists():
                return DistilRecipe.load(file)
        return None

    def check_mine(self) -> None:
        """Raise `InputError` if the folder holds output of another command."""
        if self.recipe.exists():
            try:
                DistilRecipe.load(self.recipe)
            except InputError as error:
                if RunDir(self.path).state.exists():
                    raise InputError(
                        f"{self.path} holds a run of another command; choose another `out`"
                    ) from error
                raise
        elif self.model.exists() and any(self.model.iterdir()):
            raise InputError(f"{self.model} holds a model that is not of this run; choose another `out`")

    def forget(self, recipe: DistilRecipe) -> None:
        """Remove what the run goes on from, its model and its crops.

        Raises `InputError` if the new run's ``recipe`` names a model that lies there.
        """
        refuse_to_overwrite_source(self.path, teacher=recipe.teacher, start=recipe.start)
        begun = (*self.path.glob("level-*/last/state.safetensors"), *self.path.glob("level-*/history.jsonl"))
        for file in (*begun, self.model / CONFIG_FILE, self.start / CONFIG_FILE, self.recipe):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.path / "crops", ignore_errors=True)

    def refuse_others(self) -> None:
        """Raise `InputError` if no run was begun in the folder, and it holds something that one would replace."""
        names = [each.name for each in self.path.glob("level-*")]
        if not (self.path / "crops" / HEADER).exists():  # crops say themselves what they are of
            names.append("crops")
        refuse_others(self.path, (START, self.unreadable.name, *names))

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder to set up a run or write the model; waits for another run that does."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", wait=True))
            except OSError as error:
                raise InputError(f"`out` {self.path} cannot be written: {error.strerror}") from error
            yield

    def check_common(self, recipe: DistilRecipe) -> None:
        """Raise `InputError` if the levels trained so far began with other shared options."""
        stored = self.stored_recipe()
        if stored is None or not self.begun:
            return
        for name in COMMON:
            ours, theirs = getattr(recipe, name), getattr(stored, name)
            if ours != theirs:
                raise InputError(
                    f"`{name}` {as_text(ours)} differs from the run in {self.path} ({as_text(theirs)}); leave it "
                    "out, or change `out`"
                )

    def check_others(self, level: int) -> None:
        """Raise `InputError` if another level was trained and has been deleted from the model."""
        kept = self.kept_levels()
        for other in sorted(self.path.glob("level-*/history.jsonl")):
            levels = set(map(int, other.parent.name.split("-")[1:]))
            measured = other.stat().st_size > 0  # a run that has just begun has kept nothing yet
            if level not in levels and measured and not levels <= kept:
                raise InputError(
                    f"{self.model} lacks {other.parent.name}, which was trained; continue with `resume` and without "
                    "`level` to put it back"
                )

    def kept_levels(self, interpolate: float | None = None) -> set[int]:
        """Trained levels in the model; with ``interpolate``, only those kept at that share."""
        found = self._stored_results().get("distillation")
        rows = found.get("levels", []) if isinstance(found, dict) else []
        return {row["level"] for row in rows if interpolate in (None, row.get("interpolate", 1.0))}

    def has_start(self, recipe: DistilRecipe) -> bool:
        """Whether the network before training exists, made with the same shared options."""
        stored = self.stored_recipe()
        return (
            stored is not None
            and (self.start / CONFIG_FILE).exists()
            and all(getattr(recipe, name) == getattr(stored, name) for name in COMMON)
        )

    def keep(
        self,
        recipe: DistilRecipe,
        trained: Checkpoint,
        names: set[str],
        results: dict[str, Any],
        device: torch.device,
    ) -> None:
        """Write the tensors ``names`` of a network into the model; its other tensors stay as trained before.

        Results on labelled images, and what was fitted to them, no longer hold and are removed.
        """
        with self.claim():
            merged = merge_results(self._stored_results(), results)
            network = trained.network
            tensors = {name: value.cpu() for name, value in network.stored().items()}
            tensors.update(
                {name: value for name, value in self._stored_tensors().items() if name not in names}
            )
            network.load_stored(tensors)
            save_checkpoint(self.model, dataclasses.replace(trained, results=merged, decision={}))
            shared = recipe.without_paths()
            describe_model(
                self.model,
                shared,
                dict(merged),
                device,
                lambda facts: distilled_card(facts, trained.taxonomy),
            )

    def _stored_tensors(self) -> dict[str, torch.Tensor]:
        if not (self.model / CONFIG_FILE).exists():
            return {}
        try:
            with open_weights(self.model / WEIGHTS_FILE, "pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.model} is damaged: {error}; delete it, and `resume`") from error

    def _stored_results(self) -> dict[str, Any]:
        if not (self.model / CONFIG_FILE).exists():
            return {}
        found = read_config(self.model).get("results")
        return found if isinstance(found, dict) else {}

    def load_start(self) -> Checkpoint:
        """Load the network before training."""
        return load_checkpoint(self.start)


def merge_results(stored: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Add the levels of other runs to the results of a distillation, in the order of levels."""
    known = stored.get("distillation")
    rows = known.get("levels", []) if isinstance(known, dict) else []
    found = {row["level"]: row for row in (*rows, *results["levels"])}
    return {"distillation": {**results, "levels": [found[level] for level in sorted(found)]}}
