"""`fit_heads`: a model for a tree of one's own, or of its own classes calibrated anew, without training its network."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import read_description
from hierclass.checkpoints.new_classes import choose_levels, with_new_classes
from hierclass.errors import ExportError, InputError, MissingExtraError
from hierclass.export.new_heads import write_graphs_like
from hierclass.nested import NestedNetwork
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.load import tell_classes
from training.data.samples import truth_table
from training.evaluation.calibration import MIN_IMAGES, calibrate, decision_of
from training.evaluation.console import (
    Reporter,
    answer_table,
    calibration_table,
    coverage_table,
    level_table,
)
from training.evaluation.evaluate import summarise
from training.evaluation.predictions import (
    Predictions,
    best_classes,
    images_to_keep,
    shrink_logits,
    weights_to_try,
)
from training.heads.examples import FEATURES, Examples, LoadedExamples, label_nodes, load_examples
from training.heads.kept_features import FILE, keep_features
from training.heads.logistic import Indices, Values
from training.heads.model_card import heads_card
from training.heads.selection import SelectedHeads, select_heads
from training.recipe.recipe import Recipe
from training.recipe.stored_options import write_json
from training.trainer.export import add_graphs, describe_model
from training.trainer.network import fields_of_base
from training.trainer.run_dir import HEADS, RunDir

BLOCK = 4096
"""Images that are scored at once."""


class Stopwatch:
    """Seconds that each step of a run took."""

    def __init__(self, since: float | None = None) -> None:
        """Count from now, or from a former `time.monotonic()`, whose step is called "start"."""
        self._last, self.seconds = time.monotonic(), dict[str, float]()
        if since is not None:
            self._last = since
            self.lap("start")

    def lap(self, step: str) -> None:
        """Name the step that ends now."""
        now = time.monotonic()
        self.seconds[step], self._last = round(now - self._last, 2), now


@dataclasses.dataclass(frozen=True, slots=True)
class FittedModel:
    """A model, the examples that it is calibrated on, with its levels' features, and what it scores them.

    ``logits[k]`` (N, num_classes[k]) are of level k, by heads that were not fitted to the image. ``base_levels`` are
    the levels of the model that it was made of, ``strengths`` the regularisation of its heads, ``why`` what decided.
    """

    checkpoint: Checkpoint
    examples: Examples
    logits: Sequence[Values]
    base_levels: Sequence[int]
    strengths: Sequence[float] = ()
    why: Sequence[str] = ()


def fit_heads(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    graphs: bool = True,
    console: PlainConsole | None = None,
    since: float | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Fit heads to the features of a recipe's images (``tune`` none: temperatures and thresholds alone).

    The model is left in ``out``/model, features in ``out``/features, which a second start takes up. ``since`` is the
    `time.monotonic()` of the command's start. ``show`` prints the results. Returns them. Raises `InputError` for bad
    data or options.
    """
    recipe.check()
    reporter, run_dir, watch = Reporter(console or PlainConsole()), RunDir(out), Stopwatch(since)
    taxonomy = run_dir.taxonomy(recipe.taxonomy, reporter.line)
    with run_dir.claim(resume=resume), _one_thread():
        base = load_checkpoint(recipe.base)
        _check_fit(base, taxonomy, recipe)
        run_dir.begin(recipe, 0, taxonomy)
        watch.lap("model read")
        data = load_examples(recipe, taxonomy, out, reporter, threads=threads, workers=workers)
        watch.lap("features")
        _tell(data, taxonomy, recipe, reporter)
        model = _calibrated(base, data) if recipe.tune == "none" else _fitted(base, data, taxonomy, recipe)
        for line in model.why:
            reporter.line(line)
        watch.lap("heads")
        results = _results(model, data, recipe)
        watch.lap("calibration")
        _write(model, recipe, run_dir, results)
        watch.lap("model written")
        if graphs:
            _write_graphs(run_dir.model, Path(recipe.base), model.base_levels, reporter)
            watch.lap("graphs")
        _describe(model, recipe, run_dir, results, watch)
    if show:
        _show(reporter, run_dir, results, watch)
    return results


def start_with_heads(
    recipe: Recipe,
    out: Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    console: PlainConsole | None = None,
) -> Recipe:
    """Fit heads first where all of a network is to be trained (``tune`` all); return the recipe that begins with them.

    The model with these heads is left in ``out``/heads/model. Training from fitted heads distorts the features of a
    pretrained network less than from random ones (Kumar et al. 2022, arXiv 2202.10054). The images that training holds
    out are held out here too.
    """
    folder, console = out / HEADS, console or PlainConsole()
    balance = "none" if recipe.balance == "sampling" else recipe.balance
    first = dataclasses.replace(recipe, tune="heads", keep_features=False, balance=balance)
    results = fit_heads(
        first,
        folder,
        resume=True,
        workers=workers,
        threads=threads,
        graphs=False,
        console=console,
        show=False,
    )
    accuracy = " / ".join(f"{level['top1']:.1%}" for level in results["levels"])
    Reporter(console).line(f"heads on its features, from which all of it is trained: dev {accuracy}")
    base = (folder / "model").absolute()
    fields = fields_of_base(base, read_description(base)[0].taxonomy)
    return dataclasses.replace(recipe, **{**fields, "base": str(base)})


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: it computes little here, and its threads spin while others have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_fit(base: Checkpoint, taxonomy: Taxonomy, recipe: Recipe) -> None:
    """Raise for a tree that the model can't answer, before any image is read."""
    num_levels = base.network.num_levels
    if recipe.tune == "none":
        if base.taxonomy.tiers != taxonomy.tiers:
            raise InputError(
                "`tune` none keeps the classes of the model; leave `taxonomy` out, or give `tune` heads"
            )
    elif taxonomy.num_tiers != num_levels:
        with_new_classes(base, taxonomy, choose_levels(taxonomy.num_tiers, num_levels))


def _tell(data: LoadedExamples, taxonomy: Taxonomy, recipe: Recipe, reporter: Reporter) -> None:
    """Print how many images of which classes there are; raises `InputError` for too few to fit heads to."""
    held_out = f", {len(data.held_out)} held out" if data.held_out is not None else ""
    classes = " / ".join(map(str, taxonomy.num_classes))
    reporter.line(f"{len(data.fitted)} images{held_out}, classes {classes}")
    if recipe.tune == "heads":
        dev = data.held_out.labels if data.held_out is not None else None
        tell_classes(data.fitted.labels, dev, taxonomy, reporter, balance=recipe.balance)


def _fitted(base: Checkpoint, data: LoadedExamples, taxonomy: Taxonomy, recipe: Recipe) -> FittedModel:
    """The network of a model with heads fitted to the examples."""
    truth = truth_table(taxonomy)[data.fitted.labels]
    found = select_heads(
        data.fitted, taxonomy, truth, kind=recipe.heads, balance=recipe.balance == "loss", seed=recipe.seed
    )
    checkpoint = with_new_classes(base, taxonomy, list(found.levels), heads=found.kind)
    _fill_heads(checkpoint.network, found)
    examples = Examples([data.fitted.levels[level] for level in found.levels], data.fitted.labels)
    return FittedModel(checkpoint, examples, found.logits, found.levels, found.strengths, found.why)


@torch.no_grad()
def _fill_heads(network: NestedNetwork, found: SelectedHeads) -> None:
    for head, fitted in zip(network.heads, found.heads, strict=True):
        assert isinstance(head, nn.Linear)
        head.weight.copy_(torch.from_numpy(fitted.weight))
        head.bias.copy_(torch.from_numpy(fitted.bias))


def _calibrated(base: Checkpoint, data: LoadedExamples) -> FittedModel:
    """A model as it is; the images to calibrate it on are those held out, if any are."""
    examples = data.fitted if data.held_out is None else data.held_out
    return FittedModel(base, examples, _scores(base.network, examples.levels), range(base.network.num_levels))


@torch.inference_mode()
def _scores(network: NestedNetwork, levels: Sequence[Values]) -> list[Values]:
    """The logits (N, num_classes[k]) that a network's heads give for the features of each level k."""
    found = []
    for level, values in enumerate(levels):
        blocks = (torch.from_numpy(values[start : start + BLOCK]) for start in range(0, len(values), BLOCK))
        found.append(torch.cat([network.classify(block, level) for block in blocks]).numpy())
    return found


# ---------------------------------------------------------------- results


def _results(model: FittedModel, data: LoadedExamples, recipe: Recipe) -> dict[str, Any]:
    """Measures of a model, and what is fitted to its examples: weight of lower levels, temperatures, thresholds.

    It is measured on the images that are held out, if any are; else over its examples, which is cross-validated where
    heads were fitted (``cross_validated``).
    """
    network, taxonomy = model.checkpoint.network, model.checkpoint.taxonomy
    weights, errors = weights_to_try(recipe.consensus), [str(each) for each in data.unreadable]
    said = to_predictions(model.logits, model.examples.labels, taxonomy, weights, errors)
    fits = recipe.tune == "heads"
    about = {"cross_validated": fits and data.held_out is None, "strengths": list(model.strengths)}
    if not fits or data.held_out is None:
        return {**summarise(network, taxonomy, said, recipe.consensus), **about}
    lower_weight = said.lower_weights[said.chosen(recipe.consensus, taxonomy)]
    found = calibrate(said, taxonomy, lower_weight) if len(said.kept) >= MIN_IMAGES else None
    scores = _scores(network, [data.held_out.levels[level] for level in model.base_levels])
    held_out = to_predictions(scores, data.held_out.labels, taxonomy, weights, errors)
    return {**summarise(network, taxonomy, held_out, lower_weight, found), **about}


def to_predictions(
    logits: Sequence[Values],
    labels: Indices,
    taxonomy: Taxonomy,
    lower_weights: Sequence[float],
    errors: Sequence[str] = (),
    top: int = 5,
) -> Predictions:
    """Predictions from the logits (N, num_classes[k]) of every level k for images with labels (N,)."""
    count = len(labels)
    best = [
        best_classes([level[start : start + BLOCK] for level in logits], taxonomy, lower_weights)
        for start in range(0, count, BLOCK)
    ]
    kept = images_to_keep(count, sum(taxonomy.num_classes))
    ranked = np.argsort(-logits[-1], axis=1, kind="stable")[:, :top].astype(np.int32)
    return Predictions(
        np.arange(count),
        labels,
        tuple(lower_weights),
        np.concatenate(best, axis=2),
        ranked,
        kept,
        tuple(shrink_logits(torch.from_numpy(level[kept])) for level in logits),
        tuple(errors),
    )


# ---------------------------------------------------------------- the model's folder


def _write(model: FittedModel, recipe: Recipe, run_dir: RunDir, results: dict[str, Any]) -> None:
    """Write weights, results and decision; with them, if wanted, the features that the heads were fitted to."""
    checkpoint = dataclasses.replace(
        model.checkpoint, results={"dev": results}, decision=decision_of(results)
    )
    (run_dir.model / FILE).unlink(missing_ok=True)  # of a former start
    save_checkpoint(run_dir.model, checkpoint)
    if recipe.tune != "heads":
        return
    if recipe.keep_features:
        nodes = label_nodes(checkpoint.taxonomy)
        labels = [nodes[label] for label in model.examples.labels.tolist()]
        keep_features(run_dir.model, model.examples.levels, labels)
    else:
        shutil.rmtree(run_dir.path / FEATURES, ignore_errors=True)


def _write_graphs(model: Path, base: Path, levels: Sequence[int], reporter: Reporter) -> None:
    """Write the model's graphs: those of its base with other heads, which is fast, else newly exported ones."""
    try:
        write_graphs_like(model, base, levels)
    except (ExportError, MissingExtraError):
        add_graphs(model, reporter.line)


def _describe(
    model: FittedModel, recipe: Recipe, run_dir: RunDir, results: dict[str, Any], watch: Stopwatch
) -> None:
    """Write recipe, facts and card into the model's folder, and that the run is done."""
    facts = {
        "seconds": watch.seconds,
        "base_levels": list(model.base_levels),
        "best": {"results": results},
    }
    taxonomy, architecture = model.checkpoint.taxonomy, model.checkpoint.architecture
    describe_model(
        run_dir.model,
        recipe.without_paths(),
        facts,
        torch.device("cpu"),
        lambda known: heads_card(known, taxonomy, architecture),
    )
    write_json(run_dir.done, {"images": results["images"], "seconds": watch.seconds})


def _show(reporter: Reporter, run_dir: RunDir, results: dict[str, Any], watch: Stopwatch) -> None:
    """Print what the model is worth, and what to do with it."""
    how = "cross-validated over" if results["cross_validated"] else "measured on"
    title = f"{run_dir.model}: {how} {results['images']} images"
    tables = [level_table(results["levels"], title=title), answer_table(results)]
    if found := results["calibration"]:
        tables += [calibration_table(found), coverage_table(found["thresholds"])]
    else:
        reporter.line(
            f"not calibrated: {MIN_IMAGES} images are the fewest that temperatures and thresholds are fitted to; "
            "scores are as they come"
        )
    for table in tables:
        reporter.console.print(table)
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in watch.seconds.items())
    reporter.line(f"took {sum(watch.seconds.values()):.0f} s: {steps}")
    model = shlex.quote(str(run_dir.model))
    reporter.line(f"next: hierclass label PHOTOS --model {model} -o labels.csv")
