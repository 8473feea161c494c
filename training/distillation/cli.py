"""``hierclass-train distil``: make a pretrained classifier nested, without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from hierclass.errors import InputError
from taxonomy.files import bundled
from training.cli import options
from training.cli.cli_recipe import is_given
from training.cli.exits import one_line_errors, resume_command
from training.distillation import options as ours
from training.distillation.recipe import IDENTITY, DistilRecipe
from training.recipe.recipe import option_of

D = DistilRecipe(images=())
OUT = Path("distilled")
OWN = ",".join(D.own)
PATHS = ("weights", "classes", "teacher", "start", "cache")


def distil(
    ctx: typer.Context,
    timm: ours.Timm = None,
    weights: ours.Weights = None,
    classes: ours.Classes = None,
    teacher: ours.Teacher = None,
    start: ours.Start = None,
    images: ours.Images = None,
    taxonomy: ours.Tree = None,
    structure: ours.Structure = D.structure,
    widths: ours.Widths = "",
    sizes: options.Sizes = "",
    own: options.Own = OWN,
    frozen: ours.Frozen = D.frozen,
    level: ours.Level = None,
    out: ours.Out = OUT,
    cache: ours.Cache = None,
    resume: ours.Resume = False,
    crops_per_photo: ours.CropsPerPhoto = D.crops_per_photo,
    crop_scale: ours.CropScale = "0.25,1",
    val_share: ours.ValShare = D.val_share,
    crops: ours.Crops = None,
    updates: ours.Updates = None,
    minutes: ours.Minutes = None,
    batch_size: ours.BatchSize = D.batch_size,
    opt: options.Opt = D.opt,
    lr: ours.Lr = D.lr,
    weight_decay: options.WeightDecay = D.weight_decay,
    clip_grad: options.ClipGrad = D.clip_grad,
    warmup: ours.Warmup = D.warmup,
    decay: ours.Decay = D.decay,
    ema_decay: options.EmaDecay = D.ema_decay,
    leaf_weight: ours.LeafWeight = D.leaf_weight,
    tier_weight: ours.TierWeight = D.tier_weight,
    statistics: ours.Statistics = D.statistics,
    train_heads: ours.TrainHeads = D.train_heads,
    interpolate: ours.Interpolate = D.interpolate,
    mixup: ours.Mixup = D.mixup,
    mix_prob: ours.MixProb = D.mix_prob,
    flip: ours.Flip = D.flip,
    eval_every: ours.EvalEvery = D.eval_every,
    eval_data: ours.EvalData = None,
    known_top1: options.KnownTop1 = None,
    save_every: options.SaveEvery = 10.0,
    seed: options.Seed = D.seed,
    workers: options.AutomaticWorkers = None,
    threads: options.Threads = None,
    mixed_precision: options.MixedPrecision = D.mixed_precision,
    channels_last: options.ChannelsLast = D.channels_last,
    sync_batch_norm: options.SyncBatchNorm = D.sync_batch_norm,
) -> None:
    """Make a pretrained classifier nested, from photographs without labels.

    The last level stays the classifier as it is; lower levels, which use parts of its weights, learn from its answers.
    """
    more = [] if level is None else ["--level", str(level)]
    more += [part for each in eval_data or () for part in ("--eval-data", str(each))]
    more += [] if known_top1 is None else ["--known-top1", str(known_top1)]
    with one_line_errors(lambda: resume_command("distil", out, threads, *more)):
        recipe, changes = wanted_recipe(ctx)
        from training.distillation.loop import distil as run

        run(
            recipe,
            out,
            changes=changes,
            resume=resume,
            level=level,
            minutes=minutes,
            workers=workers,
            threads=threads,
            save_every=save_every,
            eval_data=eval_data or (),
            known_top1=known_top1,
        )


def wanted_recipe(ctx: typer.Context) -> tuple[DistilRecipe, dict[str, Any]]:
    """The recipe to train, and what of it was given; with ``--resume`` the one in ``out``, changed where it may be.

    Raises `InputError` for an option that the run in ``out`` contradicts, and where there is no run.
    """
    given = _given(ctx)
    if ctx.params["updates"] is not None and ctx.params["crops"] is not None:
        raise InputError("--updates has no effect beside --crops; leave one of them out")
    out: Path = ctx.params["out"]
    stored = None
    if ctx.params["resume"]:
        from training.distillation.folder import DistilFolder

        stored = DistilFolder(out).stored_recipe(ctx.params["level"])
        if stored is None and not given.get("images"):
            raise InputError(f"{out} holds no run to resume")
    if stored is None:
        recipe = dataclasses.replace(_from_start(given), **given)
    else:
        for name in IDENTITY:
            if name in given and given[name] != getattr(stored, name):
                raise InputError(
                    f"{option_of(name)} differs from that of the run in {out}; leave it out, or change --out"
                )
        recipe = dataclasses.replace(stored, **given)
    if ctx.params["updates"] is not None:
        given["crops"] = ctx.params["updates"] * recipe.batch_size
        recipe = dataclasses.replace(recipe, crops=given["crops"])
    if recipe.mix_prob != D.mix_prob and not recipe.mixup:
        raise InputError(
            f"--mix-prob {recipe.mix_prob} has no effect without --mixup; give that, such as 0.2"
        )
    return recipe, given


def _given(ctx: typer.Context) -> dict[str, Any]:
    """Field of the recipe → value, of those that are given; paths absolute, to resume from any working directory."""
    names = [field.name for field in dataclasses.fields(DistilRecipe) if is_given(ctx, field.name)]
    values = {name: ctx.params[name] for name in names}
    for name in PATHS:
        if name in values:
            values[name] = str(values[name].absolute())
    if "images" in values:
        values["images"] = tuple(str(Path(path).absolute()) for path in values["images"])
    if "taxonomy" in values and values["taxonomy"] not in bundled():
        values["taxonomy"] = str(Path(values["taxonomy"]).absolute())
    if "own" in values:
        values["own"] = tuple(part.strip() for part in values["own"].split(","))
    for name in ("widths", "crop_scale", "sizes"):
        if name in values:
            values[name] = options.numbers(values[name], option_of(name)) or getattr(D, name)
    if values.get("sizes"):
        if any(side != int(side) for side in values["sizes"]):
            raise InputError(
                f"--sizes {ctx.params['sizes']}: give whole numbers of pixels, such as 80,128,224"
            )
        values["sizes"] = tuple(map(int, values["sizes"]))
    return values


def _from_start(given: dict[str, Any]) -> DistilRecipe:
    """The defaults; how levels are nested is that of the model that is begun with, if there is one."""
    if "start" not in given:
        return D
    from hierclass.checkpoints.checkpoint import read_config

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
