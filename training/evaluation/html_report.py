"""Report of an evaluation: one self-contained HTML page, and its numbers as JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

import hierclass
from hierclass.cli.terminal import one_line
from hierclass.errors import ImageError, InputError
from hierclass.files import has_content, make_folder, remove_temporaries, replacing_all, written_at
from training.data.samples import inner_nodes
from training.evaluation import plots, report_data
from training.evaluation.console import alone_sentence, usual, weighting_sentence
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import wilson_interval

PAGE, NUMBERS = "report.html", "report.json"
"""The two files of a report."""
PACKAGES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "matplotlib")
"""Packages whose versions a report lists."""
MEASURES = {
    "top1": ("top-1", "share of images whose leaf is right"),
    "mistake_severity": (
        "mistake severity",
        "mean height at which answer and truth meet, of wrong answers only",
    ),
    "mean_lca_height": ("mean height", "the same of all answers, right ones 0"),
    "hierarchical_precision": (
        "hierarchical precision",
        "of the answers and their ancestors, the share that is true",
    ),
    "hierarchical_recall": (
        "hierarchical recall",
        "of the truths and their ancestors, the share that is answered",
    ),
    "hierarchical_f1": ("hierarchical F1", "harmonic mean of the two"),
}
"""Name and explanation of each measure of `training.evaluation.evaluate.hierarchical_measures`."""
CONFUSIONS, EXAMPLES, THUMBNAIL = 10, 4, 96
"""Number of worst confusions, images of each, and largest side of a thumbnail in pixels."""


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Create the folder of a report before any work is done; its content stays.

    Raises `InputError` if it is a file, can't be written to, or without ``overwrite`` holds a report.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`report` {folder} is no folder; name a new one, or one that may hold {PAGE}")
    for file in (folder / PAGE, folder / NUMBERS):
        if has_content(file) and not overwrite:
            raise InputError(
                f"`report` {folder} holds {file.name} (written {written_at(file)}); add `overwrite` to replace it, or "
                "name another folder"
            )
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"`report` {folder} cannot be written: {error.strerror or error}") from error


def write_report(
    folder: Path, evaluation: Evaluation, results: dict[str, Any], *, model: str, command: str
) -> None:
    """Write page and numbers of an evaluation into a folder, both or none, replacing former ones.

    ``results`` are `evaluate.measures`, ``model`` the title of the page, ``command`` the command line that repeats the
    evaluation. Raises OSError.
    """
    numbers = {"header": header(evaluation, model, command), **results, **more_numbers(evaluation, results)}
    page = render(evaluation, numbers)
    remove_temporaries(folder, PAGE, NUMBERS)
    with replacing_all(folder / PAGE, folder / NUMBERS) as (html, figures):
        html.write_text(page, encoding="utf-8", errors="backslashreplace")
        figures.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def header(evaluation: Evaluation, model: str, command: str) -> dict[str, Any]:
    """What was measured on what, as JSON values; without a date, so that equal evaluations give equal files.

    ``images`` has a digest of their names and labels.
    """
    listed = hashlib.sha256()
    nodes = (*evaluation.checkpoint.taxonomy.leaves, *inner_nodes(evaluation.checkpoint.taxonomy))
    for name, label in zip(evaluation.images.names, evaluation.images.labels.tolist(), strict=True):
        listed.update(f"{name}\t{nodes[label]}\n".encode("utf-8", "backslashreplace"))
    architecture = evaluation.checkpoint.architecture
    return {
        "model": model,
        "digest": evaluation.digest,
        "taxonomy": evaluation.checkpoint.taxonomy.name,
        "architecture": dataclasses.asdict(architecture),
        "size": evaluation.checkpoint.preprocessing.size,
        "crop": evaluation.checkpoint.preprocessing.crop,
        "images": {
            "listed": len(evaluation.images),
            "read": len(evaluation.predictions.labels),
            "scores_kept": len(evaluation.predictions.kept),
            "digest": listed.hexdigest(),
        },
        "command": command,
        "versions": {
            "hierclass": hierclass.__version__,
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def more_numbers(evaluation: Evaluation, results: dict[str, Any]) -> dict[str, Any]:
    """JSON values that the page shows beyond the results.

    ``confusions[k]`` has the classes of tier k, the nonzero cells of its confusion matrix (truth, answer, images) and
    the ``worst``; ``superclasses`` and ``curves`` are those of `report_data`.
    """
    taxonomy, predictions = evaluation.checkpoint.taxonomy, evaluation.predictions
    weight = predictions.lower_weights.index(results["lower_weight"])
    confusions = []
    for tier in range(taxonomy.num_tiers):
        counts = report_data.confusion(predictions, taxonomy, weight, tier)
        truth, answer = np.nonzero(counts)
        cells = np.stack([truth, answer, counts[truth, answer]], axis=1)
        confusions.append(
            {
                "tier": tier,
                "classes": [node.id for node in taxonomy.classes(tier)],
                "cells": cells.tolist(),
                "worst": report_data.worst_confusions(counts, taxonomy, tier, CONFUSIONS),
            }
        )
    return {
        "superclasses": report_data.superclasses(predictions, taxonomy, weight),
        "confusions": confusions,
        "curves": report_data.curves(evaluation.calibration) if evaluation.calibration else None,
    }


def render(evaluation: Evaluation, numbers: dict[str, Any]) -> str:
    """Render the page of a report; names are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share, digits=1: f"{100 * share:.{digits}f}%",
        interval=lambda pair: f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f}",
        shown=lambda text: one_line(str(text)),
        usual=usual,
    )
    weight = evaluation.predictions.lower_weights.index(numbers["lower_weight"])
    return environment.get_template("report.html").render(
        **numbers,
        measures=MEASURES,
        stored_kept=_stored_thresholds(numbers),
        answer_intervals=_answer_intervals(numbers),
        figures=_figures(numbers, evaluation),
        alone_sentence=alone_sentence(numbers["alone"]),
        counts_differ=len({row["images"] for row in numbers["levels"]}) > 1,
        weighting=weighting_sentence(evaluation.weighting.to_dict(), len(evaluation.predictions.kept))
        if evaluation.weighting
        else "",
        examples=list(_examples(evaluation, numbers["confusions"][-1]["worst"], weight)),
    )


def _answer_intervals(numbers: dict[str, Any]) -> list[list[tuple[float, float, float]]]:
    """Share, low and high [k][j] of tier j when level k is asked."""
    images = [row["images"] for row in numbers["levels"]]
    return [
        [(share, *wilson_interval(share, count)) for share, count in zip(row, images, strict=False)]
        for row in numbers["answers"]
    ]


def _stored_thresholds(numbers: dict[str, Any]) -> dict[tuple[int, int, float], dict[str, Any]]:
    """Measured rows of the model's own thresholds, by level, tier and precision."""
    rows = numbers["stored"]["thresholds"] if numbers["stored"] else []
    return {(row["level"], row["tier"], row["precision"]): row for row in rows}


def _figures(numbers: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """SVG elements of the page; a list where there is one per level or tier."""
    taxonomy, images = evaluation.checkpoint.taxonomy, numbers["images"]
    drawn: dict[str, Any] = {
        "cost": plots.cost_accuracy(
            numbers["levels"], _answer_intervals(numbers), f"Accuracy by cost, {images} images"
        ),
        "confusions": [
            plots.confusion_matrix(
                _counts(row), taxonomy, row["tier"], f"Confusion matrix of tier {row['tier']}"
            )
            for row in numbers["confusions"]
        ],
        "reliability": [],
        "coverage": [],
    }
    for row in numbers["curves"] or ():
        level = row["level"]
        kept = [each for each in usual(numbers["calibration"]["thresholds"]) if each["level"] == level]
        drawn["reliability"].append(plots.reliability_diagram(row, f"Reliability of level {level}"))
        about = f"Share of right answers by coverage, level {level}"
        drawn["coverage"].append(plots.risk_coverage_diagram(row, kept, taxonomy.num_classes, about))
    return {
        name: [Markup(each) for each in value] if isinstance(value, list) else Markup(value)
        for name, value in drawn.items()
    }


def _counts(row: dict[str, Any]) -> report_data.Counts:
    counts = np.zeros((len(row["classes"]),) * 2, dtype=np.int64)
    truth, answer, images = np.array(row["cells"], dtype=np.int64).reshape(-1, 3).T
    counts[truth, answer] = images
    return counts


def _examples(
    evaluation: Evaluation, worst: Sequence[dict[str, Any]], weight: int
) -> Iterator[dict[str, Any]]:
    """Images of each worst confusion of the finest level, and one of the class that was answered."""
    predictions = evaluation.predictions
    best = predictions.best[weight, -1]
    for pair in worst:
        wrong = np.flatnonzero((predictions.labels == pair["truth"]) & (best == pair["answer"]))
        right = np.flatnonzero((predictions.labels == pair["answer"]) & (best == pair["answer"]))
        yield {
            **pair,
            "images": _pictures(evaluation, predictions.positions[wrong].tolist(), EXAMPLES),
            "compared": _pictures(evaluation, predictions.positions[right].tolist(), 1),
        }


def _pictures(evaluation: Evaluation, positions: Sequence[int], limit: int) -> list[dict[str, str]]:
    """Name and thumbnail (data URL) of the first ``limit`` readable images."""
    found: list[dict[str, str]] = []
    for position in positions:
        if len(found) == limit:
            break
        try:
            image = evaluation.images.image(position, min_side=THUMBNAIL)
        except ImageError:  # the file changed since
            continue
        found.append({"name": evaluation.images.names[position], "address": thumbnail(image)})
    return found


def thumbnail(image: Image.Image) -> str:
    """A thumbnail of an image as a data URL, without metadata of its file."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    Image.fromarray(np.asarray(small)).save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
