"""The folder of a run.

recipe.json            the recipe
history.jsonl          one line per epoch
last/                  what --resume continues from: state.safetensors, and the taxonomy the run began with;
                       heads.json: that heads were fitted
features/              features of the images, where heads alone are fitted
taxonomy.json, .csv    the taxonomy proposed for class folders, to look at and to edit
checked.json           result of checking the images; unreadable.csv lists those that can't be read
model/                 the best model on the dev split, with recipe.json, training.json and MODEL_CARD.md
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from hierclass.files import CONFIG_FILE, locked, make_folder, replacing
from taxonomy import Taxonomy, TaxonomyError, load_taxonomy
from training.recipe.stored_options import StoredOptions

START = "start"
"""Subfolder in which a distillation keeps its network before training."""
HEADS = "heads"
"""Subfolder of a run that trains all of a network: the heads that it begins with."""
WRITTEN = (
    *("recipe.json", "history.jsonl", "last", "features", HEADS, "model"),
    *("taxonomy.json", "taxonomy.csv", "checked.json", "unreadable.csv"),
)
"""What a run writes into its folder."""
MARKS = (".lock", ".proposed", f"{HEADS}/.lock")
"""Files of a folder in which a run was begun, however early it ended."""


def refuse_others(folder: Path, written: Iterable[str]) -> None:
    """Raise `InputError` if a folder in which no run was begun holds something that a run would replace."""
    if any((folder / mark).exists() for mark in MARKS):
        return
    for name in written:
        found = folder / name
        if found.is_file() or (found.is_dir() and any(found.iterdir())):
            raise InputError(f"{folder} holds {name}, which is no part of a run; choose a new or empty `out`")


def refuse_to_overwrite_source(out: Path, **sources: str | None) -> None:
    """Raise `InputError` if a model that a new run in ``out`` is made of lies there; ``sources``: option → folder."""
    for option, source in sources.items():
        if source and Path(source).resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"`{option}` {source} lies in {out}, which `overwrite` replaces; choose another `out`"
            )


class RunDir:
    """The output folder of one run; only its main process writes to it."""

    def __init__(self, path: Path, model: Path | None = None) -> None:
        """Name the folder, and that of the model if it lies elsewhere; nothing is created."""
        self.path = path
        self.state = path / "last" / "state.safetensors"
        self.begun_with = path / "last" / "taxonomy.json"
        self.model = model or path / "model"
        self.history = path / "history.jsonl"
        self.done = path / "last" / "heads.json"

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run: a state to go on from, or a model whose heads were fitted."""
        return self.state.exists() or self.done.exists()

    def refuse_to_replace(self, *, resume: bool, overwrite: bool = False) -> None:
        """Raise `InputError` if the folder holds something else, or a run and neither ``resume`` nor ``overwrite``."""
        if (self.path / START / CONFIG_FILE).exists():
            raise InputError(f"{self.path} holds a run of hierclass-train distil; choose another `out`")
        if self.begun and not (resume or overwrite):
            raise InputError(
                f"{self.path} holds a run; add `resume` to continue it or `overwrite` to begin anew, or choose another "
                "`out`"
            )
        if not (self.begun or resume):
            refuse_others(self.path, WRITTEN)

    def forget(self) -> None:
        """Remove what a run goes on from; each file of it stays until the next run replaces it.

        Raises `InputError` if another process holds the folder.
        """
        with self._locked():
            for run in (self, RunDir(self.path / HEADS)):
                run.state.unlink(missing_ok=True)
                run.done.unlink(missing_ok=True)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.path / ".lock", f"another run writes to {self.path}; choose another `out`")

    @contextlib.contextmanager
    def claim(self, *, resume: bool) -> Iterator[None]:
        """Lock the folder for this run; the system unlocks it if the process is killed.

        Raises `InputError` if another process holds it, or it holds a run and ``resume`` is not set.
        """
        self.refuse_to_replace(resume=resume)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked())
            except OSError as error:
                raise InputError(f"`out` {self.path} cannot be written: {error.strerror}") from error
            for folder in (
                self.state.parent,
                self.path / "model",
            ):  # nothing else below --out is ours to remove
                for left_by_a_kill in folder.glob(".*.safetensors.*.tmp"):
                    left_by_a_kill.unlink(missing_ok=True)
            yield

    def taxonomy(self, named: str, tell: Callable[[str], None]) -> Taxonomy:
        """Load a recipe's taxonomy; a run that has begun keeps the one it began with.

        ``tell`` gets a line if the file has changed since.
        """
        if not (self.begun and self.begun_with.exists()):
            return load_taxonomy(named)
        begun = load_taxonomy(self.begun_with)
        try:
            changed = load_taxonomy(named) != begun
        except TaxonomyError:  # gone, or being edited
            changed = True
        if changed:
            tell(
                f"{named} has changed since this run began, and the run keeps the tree it began with; a new "
                "run takes the changed one: choose another `out`"
            )
        return begun

    def begin(self, recipe: StoredOptions, epochs_done: int, taxonomy: Taxonomy) -> None:
        """Store recipe and taxonomy, and cut the history to the epochs done; a kill can leave one more."""
        make_folder(self.begun_with.parent)
        taxonomy.save(self.begun_with)
        recipe.save(self.path / "recipe.json")
        lines = self.history.read_text(encoding="utf-8").splitlines() if self.history.exists() else []
        text = "".join(line + "\n" for line in lines[:epochs_done])
        with replacing(self.history) as file:
            file.write_text(text, encoding="utf-8")

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Append an epoch's row to the history."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
