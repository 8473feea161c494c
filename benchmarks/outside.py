"""What the bundled model says of pictures that show none of its classes, and how often it is sure of that.

    python benchmarks/outside.py [--model MODEL] [--keep FOLDER] [--json OUT]

The pictures are drawn, or come with installed packages (`outside_pictures.py`). Every level answers each of them; an
answer to a tier counts as given where its score reaches the threshold that the model has for being right 90, or 95,
times of 100. All answers are wrong here in a sense, so the fewer are given the better; what was answered most often
is listed, for some are near ("web site" for a screen). A model without thresholds has its scores shown alone.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from outside_pictures import Picture, pictures
from rich.console import Console
from rich.table import Table

import hierclass
from hierclass.classifier import Classifier

PRECISIONS = (0.9, 0.95)
SHOWN = 8
"""Answers that are listed at most."""


def measure(classifier: Classifier, found: list[Picture]) -> dict[str, Any]:
    """Answer every picture at every level.

    Returns `pictures`, each with `answers[level][tier]` (synset, label, score, and whether it is sure at each
    precision), and the `precisions` that the model has thresholds for.
    """
    precisions = [each for each in PRECISIONS if each in classifier.decision.precisions]
    thresholds = {each: classifier.thresholds(each) for each in precisions}
    rows: list[dict[str, Any]] = [{"kind": each.kind, "name": each.name, "answers": []} for each in found]
    for level in range(len(classifier.levels)):
        predictions = classifier.predict_batch([each.image for each in found], level)
        for row, prediction in zip(rows, predictions, strict=True):
            row["answers"].append(
                [
                    {
                        **step.to_dict(),
                        "sure": [thresholds[each][level][tier].is_met(step.score) for each in precisions],
                    }
                    for tier, step in enumerate(prediction.path)
                ]
            )
    return {"model": classifier.taxonomy.name, "precisions": precisions, "pictures": rows}


def draw_levels(results: dict[str, Any]) -> Table:
    """A row per level and tier: how often an answer is given as sure, and the middle score."""
    rows = results["pictures"]
    table = Table(title=f"{len(rows)} pictures of none of the classes of {results['model']}")
    for column in (
        "level",
        "tier",
        *(f"sure at {each:.0%}" for each in results["precisions"]),
        "median score",
    ):
        table.add_column(column, justify="right")
    for level in range(len(rows[0]["answers"])):
        for tier in range(level + 1):
            answers = [row["answers"][level][tier] for row in rows]
            sure = [sum(answer["sure"][at] for answer in answers) for at in range(len(results["precisions"]))]
            middle = statistics.median(answer["score"] for answer in answers)
            table.add_row(str(level), str(tier), *map(str, sure), f"{middle:.2f}")
    return table


def draw_kinds(results: dict[str, Any]) -> Table:
    """A row per kind of picture: how often the last level is sure at the first precision, per tier."""
    kinds = Counter(row["kind"] for row in results["pictures"])
    tiers = len(results["pictures"][0]["answers"])
    table = Table(title=f"The last level, sure at {results['precisions'][0]:.0%}, by kind of picture")
    table.add_column("kind")
    for column in ("pictures", *(f"tier {tier}" for tier in range(tiers - 1)), "leaf"):
        table.add_column(column, justify="right")
    for kind, count in kinds.items():
        answers = [row["answers"][-1] for row in results["pictures"] if row["kind"] == kind]
        sure = [sum(each[tier]["sure"][0] for each in answers) for tier in range(tiers)]
        table.add_row(kind, str(count), *map(str, sure))
    return table


def common_answers(results: dict[str, Any]) -> str:
    """The leaves that the last level answers most often, with how often."""
    leaves = Counter(row["answers"][-1][-1]["label"] for row in results["pictures"])
    return ", ".join(f"{label} {count}" for label, count in leaves.most_common(SHOWN))


def keep_pictures(folder: Path, found: list[Picture]) -> None:
    """Write the pictures, to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(found):
        each.image.convert("RGB").save(folder / f"{number:02}-{each.kind}-{each.name}.png".replace(" ", "-"))


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a model. Default: the bundled one.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Write the pictures into this folder, too.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write every answer here.")] = None,
) -> None:
    """Print the tables and write the JSON."""
    console, found = Console(), list(pictures())
    if keep is not None:
        keep_pictures(keep, found)
    results = measure(hierclass.load(model), found)
    console.print(draw_levels(results))
    if results["precisions"]:
        console.print(draw_kinds(results))
    else:
        console.print(
            "This model has no thresholds for 90 or 95%, so it is never sure: scores alone are shown."
        )
    console.print(f"Answered most often by the last level: {common_answers(results)}.")
    if json_ is not None:
        json_.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
