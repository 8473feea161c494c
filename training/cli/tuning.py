"""Choose the model that a run begins with, and what of its network is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any

from hierclass.checkpoints.description import read_description
from hierclass.errors import InputError
from hierclass.files import BUNDLED, CONFIG_FILE
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.dataset_summary import DatasetSummary
from training.evaluation.console import clock
from training.recipe.defaults import DatasetFacts, choose_tune
from training.recipe.option import list_words, specs_of
from training.recipe.recipe import Recipe
from training.trainer.processes import num_processes

ALWAYS_USED = {
    "data",
    "taxonomy",
    "base",
    "tune",
    "dev_from",
    "dev_share",
    "limit",
    "consensus",
    "seed",
    "pseudo_labels",
}
USED = {
    "none": ALWAYS_USED,
    "heads": {*ALWAYS_USED, "add", "keep_features", "heads", "balance"},
}
"""Fields that have an effect where the network is not trained."""


def with_base(recipe: Recipe, given: Set[str], *, from_recipe_file: bool) -> Recipe:
    """The recipe with the model that it begins with: the bundled one, unless it describes a network of its own.

    Raises `InputError` if it does both.
    """
    specs = specs_of(Recipe)
    own = [name for name in specs if specs[name].group == "network" and name in given]
    own = [name for name in own if name not in ("base", "tune", "heads")]
    if recipe.base and own:
        raise InputError(
            f"`{own[0]}` has no effect with `base`, whose network is taken as it is; leave one of them out"
        )
    needing = [name for name in ("tune", "add") if name in given]
    if own and needing and "base" not in given:
        raise InputError(
            f"`{own[0]}` describes a network of its own, `{needing[0]}` is for that of a model; leave one of them out"
        )
    if "base" in given or own or from_recipe_file or not (BUNDLED / CONFIG_FILE).exists():
        return recipe
    return dataclasses.replace(recipe, base=str(BUNDLED))


def with_tune(recipe: Recipe, given: Set[str], facts: DatasetFacts) -> tuple[Recipe, str]:
    """The recipe with what is trained of its base's network, and the reason.

    Raises `InputError` for options without effect on that.
    """
    tune = recipe.tune
    training = [name for name in specs_of(Recipe) if name in given and name not in USED["heads"]]
    why = "as you said"
    if not tune and recipe.add:
        tune, why = "heads", "images are added"
    elif not tune and (training or num_processes() > 1):
        tune = "all"
        why = f"`{training[0]}` is for training" if training else "there are several processes"
    elif not tune:
        choice = choose_tune(facts)
        tune, why = choice.values["tune"], choice.why
    if tune in USED:
        idle = [name for name in specs_of(Recipe) if name in given and name not in USED[tune]]
        if idle:
            raise InputError(
                f"{list_words(f'`{name}`' for name in idle)} {'has' if len(idle) == 1 else 'have'} no effect with "
                f"`tune` {tune}, which does not train the network; leave {'it' if len(idle) == 1 else 'them'} out, or "
                "give `tune` all"
            )
        if num_processes() > 1:
            raise InputError(
                f"`tune` {tune} runs in one process; start it without a launcher, or give `tune` all"
            )
    recipe = dataclasses.replace(recipe, tune=tune)
    recipe.check()
    return recipe, why


def without_training(recipe: Recipe, given: Set[str]) -> Recipe:
    """The recipe where the network is not trained: nothing held out and the better kind of heads, unless given."""
    values: dict[str, Any] = {"dev_share": 0.0, "heads": "auto"}
    if recipe.tune == "none":
        values["heads"] = read_description(Path(recipe.base))[0].architecture.heads
    return dataclasses.replace(recipe, **{name: value for name, value in values.items() if name not in given})


def say_tuning(recipe: Recipe, why: str, found: DatasetSummary, console: PlainConsole) -> None:
    """Print in one line what the run begins with, what is trained of it and why, and how long that will take."""
    from training.heads.estimate import seconds_for_features, seconds_for_training

    base, count = Path(recipe.base), min(found.num_images, recipe.limit or found.num_images)
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    if recipe.tune == "all":
        seconds = seconds_for_training(base, recipe.epochs * count, recipe.batch_size)
        rest = f"its whole network is trained, for {epochs} of {count} images: about {clock(seconds)}"
    else:
        seconds = seconds_for_features(base, found.sample, count)
        what = (
            "heads are fitted to its features"
            if recipe.tune == "heads"
            else "temperatures and thresholds are fitted to what it says"
        )
        rest = (
            f"its network stays as it is, {what}: about {clock(seconds + 1)} for {count} images, then the fit"
        )
    text = f"chosen: --from {shown(base)} --tune {recipe.tune} ({why}): {rest}"
    console.print(text, soft_wrap=True)


def shown(base: Path) -> str:
    """A model's folder as people know it: the name of the bundled one, else its path from the working directory."""
    if base == BUNDLED:
        return base.name
    return str(base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base)


def tree_of_base(recipe: Recipe) -> Taxonomy:
    """The tree of the model that a run begins with."""
    return read_description(Path(recipe.base))[0].taxonomy
