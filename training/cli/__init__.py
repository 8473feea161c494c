"""``hierclass-train``: the commands ``fit``, ``distil``, ``evaluate`` and ``calibrate``.

`options` declares options, `cli_recipe` makes a recipe of them, `prepare` and `prompts` propose a taxonomy and complete
the recipe, `exits` turns errors into one line and an exit code.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hierclass.errors import InputError
from hierclass.files import check_writable
from taxonomy.streams import dash_hint, prepare_streams
from taxonomy.terminal import PlainConsole
from training.cli import options
from training.cli.cli_recipe import given_fields, refuse_two_splits, wanted_recipe
from training.cli.exits import FlagConsole, failure, one_line_errors, resume_command
from training.distillation.cli import distil
from training.recipe.option import CHECKS, list_words
from training.recipe.recipe import Recipe
from training.recipe.stored_options import write_json
from training.trainer.processes import is_main, num_processes

if TYPE_CHECKING:
    from training.evaluation.evaluate import EvaluationOptions

app = typer.Typer(
    help="Train and measure nested coarse-to-fine image classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
@options.with_options(Recipe)
def fit(
    ctx: typer.Context,
    out: options.Out = None,
    recipe: options.RecipeFile = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    tiers: options.Tiers = None,
    pin: options.Pin = None,
    yes: options.Yes = False,
    look: options.Look = True,
    check: options.Check = "auto",
    save_every: options.SaveEvery = 10.0,
    workers: options.AutomaticWorkers = None,
    threads: options.RunThreads = None,
    graphs: options.Graphs = True,
) -> None:
    """Train a nested classifier on your images; the best checkpoint on held-out ones is left in OUT/model.

    A folder of class folders is enough: a tree of classes is proposed from their names, network and schedule are
    chosen by the images.
    """
    since = time.monotonic()
    folder = out or _default_out(ctx.params["data"] or ctx.params["add"])
    more = [] if graphs else ["--no-graphs"]
    with one_line_errors(lambda: resume_command("fit", folder, threads, *more)):
        options.check_overwrite(resume=resume, overwrite=overwrite)
        wanted, stored = wanted_recipe(ctx, folder)
        if check not in CHECKS:
            raise InputError(f"`check` {check}: give {list_words(CHECKS)}")
        if not stored:
            wanted = _prepared(ctx, wanted, folder)
        if overwrite:
            from training.trainer.run_dir import RunDir, refuse_to_overwrite_source

            refuse_to_overwrite_source(folder, base=wanted.base)
            RunDir(folder).forget()
        if wanted.fits_heads:
            from training.heads.fit import fit_heads

            fit_heads(
                wanted,
                folder,
                resume=resume,
                workers=workers,
                threads=threads,
                graphs=graphs,
                console=FlagConsole(),
                since=since,
            )
            return
        if wanted.tune == "all" and not stored and num_processes() == 1:
            from training.heads.fit import start_with_heads

            wanted = start_with_heads(wanted, folder, workers=workers, threads=threads, console=FlagConsole())
        from training.trainer.loop import fit as run

        run(
            wanted,
            folder,
            resume=resume,
            workers=workers,
            threads=threads,
            check=check,
            save_every=save_every,
            console=FlagConsole(),
        )
        if graphs and is_main():
            from training.trainer.export import add_graphs

            add_graphs(folder / "model", print)


def _default_out(data: list[str] | None) -> Path:
    """Output folder where --out is not given."""
    if not data:
        return Path("runs")
    from training.data.dataset_summary import default_out

    return default_out(data)


def _prepared(ctx: typer.Context, recipe: Recipe, out: Path) -> Recipe:
    """Complete the recipe of a new run from its images, or exit if the user rejects the taxonomy."""
    from training.cli.prepare import Declined, PrepareOptions, prepare
    from training.trainer.run_dir import RunDir

    folder = RunDir(out)
    resume = ctx.params["resume"]
    folder.refuse_to_replace(resume=resume, overwrite=ctx.params["overwrite"])
    given = given_fields(ctx)
    recipe_was_deleted = resume and folder.begun and folder.begun_with.exists()
    if recipe_was_deleted and "taxonomy" not in given:
        given.add("taxonomy")
        recipe = dataclasses.replace(recipe, taxonomy=str(folder.begun_with.absolute()))
    how = PrepareOptions(
        tiers=options.tier_sizes(ctx.params["tiers"]),
        pins=options.pins(ctx.params["pin"] or []),
        yes=ctx.params["yes"],
        look=ctx.params["look"],
    )
    from_file = given - options.read_fields(ctx, Recipe).keys() - {"taxonomy"}
    console = FlagConsole(quiet=not is_main())
    if not options.is_given(ctx, "out"):
        console.print(f"the run goes to {out} (--out)", soft_wrap=True)
    try:
        return prepare(recipe, given, out, how, console, from_file=from_file)
    except Declined as answer:
        print(options.as_flags(str(answer)))
        raise SystemExit(1) from None


@app.command()
def evaluate(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    data: options.Data = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the results here as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for a page, report.html, and its numbers, report.json.")
    ] = None,
    overwrite: options.OverwriteResults = False,
    dev_from: options.DevFrom = None,
    dev_share: options.OnlyDevShare = None,
    split: options.MeasuredSplit = "test",
    known_top1: options.KnownTop1 = None,
    seed: options.Seed = 0,
    batch_size: options.EvaluationBatch = None,
    workers: options.Workers = 1,
    threads: options.Threads = None,
) -> None:
    """Measure a checkpoint on labelled images: all, or those that --dev-from or --dev-share hold out."""
    with one_line_errors():
        images = _labelled(ctx)
        if json_ is not None:
            json_ = check_writable(json_, "--json", overwrite=overwrite)
            if json_.parent == model.resolve():
                raise InputError(f"--json {json_} lies in the folder of the model; name a file elsewhere")
        if report is not None:
            from training.evaluation.html_report import claim_folder, write_report

            claim_folder(report, overwrite=overwrite)
        from training.evaluation.console import show_results
        from training.evaluation.evaluate import measures, run_checkpoint

        run = run_checkpoint(model, images, **_evaluation_options(ctx))
        results = measures(run)
        show_results(PlainConsole(), results, str(model))
        divided = dev_from is not None or dev_share is not None
        if divided or _were_fitted_to(model, images):
            _say_not_held_out(run.checkpoint.results)
        if json_ is not None:
            write_json(json_, results)
        if report is not None:
            given = {
                "--dev-from": dev_from,
                "--dev-share": dev_share,
                "--split": split if split != "test" else None,
                "--known-top1": known_top1,
                "--seed": seed or None,
            }
            write_report(
                report, run, results, model=str(model), command=_evaluate_command(model, images, given)
            )
            print(f"report: {report / 'report.html'}")


def _were_fitted_to(model: Path, images: Sequence[str]) -> bool:
    """Return whether a model may have been made of these folders or tables: its recipe keeps their names alone."""
    try:
        recipe = Recipe.load(model / "recipe.json")
    except InputError:  # a model that came in another way
        return False
    made_of = {Path(each).name for each in (*recipe.data, *recipe.add)}
    return any(Path(each).absolute().name in made_of for each in images)


def _say_not_held_out(results: Mapping[str, Any]) -> None:
    """Say so if no image can be held out of the training of a model, whose heads were fitted to all."""
    dev = results.get("dev")
    if isinstance(dev, dict) and dev.get("cross_validated"):
        print(
            f"if these are the images that the model was made of, they were not held out: its heads were fitted to all "
            f"of its images, and its own results are cross-validated over {dev.get('images')} of them (MODEL_CARD.md)"
        )


def _labelled(ctx: typer.Context) -> tuple[str, ...]:
    """The images of --data; raises `InputError` without any, or when two splits are given."""
    if not ctx.params["data"]:
        raise InputError("give the labelled images with `data`")
    refuse_two_splits(ctx)
    return tuple(ctx.params["data"])


def _evaluation_options(ctx: typer.Context) -> EvaluationOptions:
    """The options of a command as `EvaluationOptions`."""
    from training.evaluation.evaluate import EvaluationOptions

    return cast(EvaluationOptions, {name: ctx.params[name] for name in EvaluationOptions.__annotations__})


def _evaluate_command(model: Path, data: Sequence[str], given: Mapping[str, object]) -> str:
    """Command line that repeats an evaluation; options at their defaults are left out."""
    words = ["hierclass-train", "evaluate", str(model)]
    for path in data:
        words += ["--data", path]
    for option, value in given.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join([*words, "--report", "report"])


@app.command()
def calibrate(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of a checkpoint; it is rewritten.")],
    data: options.Data = None,
    dev_from: options.DevFrom = None,
    dev_share: options.OnlyDevShare = None,
    split: options.MeasuredSplit = "val",
    known_top1: options.KnownTop1 = None,
    seed: options.Seed = 0,
    batch_size: options.EvaluationBatch = None,
    workers: options.Workers = 1,
    threads: options.Threads = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Fit those of the model's graphs in 8 bits, and measure them.")
    ] = False,
) -> None:
    """Fit temperatures and thresholds to labelled images, not those trained on, and store them in the model."""
    with one_line_errors():
        images = _labelled(ctx)
        from training.evaluation.console import show_calibration, show_notes
        from training.evaluation.evaluate import calibrate_checkpoint
        from training.evaluation.int8 import calibrate_int8

        fit = calibrate_int8 if int8 else calibrate_checkpoint
        results = fit(model, images, **_evaluation_options(ctx))
        show_notes(PlainConsole(), results)
        show_calibration(PlainConsole(), results)
        print(f"stored in {model}")


app.command()(distil)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` if ``args`` is None); return its exit code, or raise SystemExit with it."""
    prepare_streams()
    try:
        return app(args, prog_name="hierclass-train", standalone_mode=False) or 0
    except Exception as error:
        show = getattr(error, "format_message", None)  # typer's own errors of wrong use
        if show is None:
            raise
        if show():  # empty where the help was shown instead
            raise failure(f"{show()}{dash_hint(sys.argv[1:] if args is None else args)}", 2) from None
        return 2
