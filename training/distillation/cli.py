"""``hierclass-train distil``: nest a pretrained classifier without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from hierclass.errors import InputError
from taxonomy.files import bundled
from training.cli import options
from training.cli.cli_recipe import refuse_idle
from training.cli.exits import FlagConsole, one_line_errors, resume_command
from training.distillation.recipe import IDENTITY, DistilRecipe
from training.trainer.processes import is_main

DEFAULTS = DistilRecipe(images=())


@options.with_options(DistilRecipe)
def distil(
    ctx: typer.Context,
    out: options.DistilOut = Path("distilled"),
    resume: options.DistilResume = False,
    overwrite: options.Overwrite = False,
    eval_data: options.EvalData = None,
    level: options.Level = None,
    updates: options.Updates = None,
    minutes: options.Minutes = None,
    known_top1: options.KnownTop1 = None,
    save_every: options.SaveEvery = 10.0,
    workers: options.AutomaticWorkers = None,
    threads: options.RunThreads = None,
    graphs: options.Graphs = True,
) -> None:
    """Make a pretrained classifier nested, from photographs without labels.

    The last level stays the classifier as it is; lower levels, which use parts of its weights, learn from its answers.
    """
    more = [] if level is None else ["--level", str(level)]
    more += [] if graphs else ["--no-graphs"]
    more += [part for each in eval_data or () for part in ("--eval-data", str(each))]
    more += [] if known_top1 is None else ["--known-top1", str(known_top1)]
    with one_line_errors(lambda: resume_command("distil", out, threads, *more)):
        options.check_overwrite(resume=resume, overwrite=overwrite)
        if overwrite and level is not None:
            raise InputError("`overwrite` begins with all levels anew; leave `level` out")
        recipe, changes = wanted_recipe(ctx, out, level=level, updates=updates, resume=resume)
        from training.distillation.loop import distil as run

        run(
            recipe,
            out,
            changes=changes,
            resume=resume,
            overwrite=overwrite,
            level=level,
            minutes=minutes,
            workers=workers,
            threads=threads,
            save_every=save_every,
            eval_data=eval_data or (),
            known_top1=known_top1,
            console=FlagConsole(),
        )
        if graphs and is_main():
            from training.trainer.export import add_graphs

            add_graphs(out / "model", print)


def wanted_recipe(
    ctx: typer.Context, out: Path, *, level: int | None, updates: int | None, resume: bool
) -> tuple[DistilRecipe, dict[str, Any]]:
    """Return the recipe to train, and the fields of it that were given; to resume, the stored one with changes.

    Raises `InputError` for an option that the run in ``out`` contradicts, and where there is no run.
    """
    given = options.read_fields(ctx, DistilRecipe)
    if given.get("taxonomy", DEFAULTS.taxonomy) not in (None, *bundled()):
        given["taxonomy"] = str(Path(given["taxonomy"]).absolute())
    if updates is not None and "crops" in given:
        raise InputError("`updates` has no effect beside `crops`; leave one of them out")
    stored = None
    if resume:
        from training.distillation.distil_dir import DistilDir

        stored = DistilDir(out).stored_recipe(level)
        if stored is None and not given.get("images"):
            raise InputError(f"{out} holds no run to resume")
    if stored is None:
        recipe = dataclasses.replace(_from_start(given), **given)
    else:
        for name in IDENTITY:
            if name in given and given[name] != getattr(stored, name):
                raise InputError(
                    f"`{name}` differs from that of the run in {out}; leave it out, or change `out`"
                )
        recipe = dataclasses.replace(stored, **given)
    if updates is not None:
        given["crops"] = updates * recipe.batch_size
        recipe = dataclasses.replace(recipe, crops=given["crops"])
    if recipe.mix_prob != DEFAULTS.mix_prob:
        refuse_idle(recipe, given.keys(), {"mix_prob"})
    return recipe, given


def _from_start(given: dict[str, Any]) -> DistilRecipe:
    """The default recipe; with ``start`` its structure is that of the model folder."""
    if "start" not in given:
        return DEFAULTS
    from hierclass.checkpoints.description import read_config

    found = read_config(Path(given["start"])).get("architecture")
    found = found if isinstance(found, dict) else {}
    own = found.get("own", "norms")
    return DistilRecipe(
        images=(),
        widths=tuple(found.get("widths") or ()) or None,
        sizes=tuple(found.get("sizes") or ()) or None,
        own=(own,) if isinstance(own, str) else tuple(own),
        frozen=bool(found.get("frozen", False)),
    )
