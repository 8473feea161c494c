"""How many photographs of natural size the bundled model names rightly, level by level and tier by tier.

    python benchmarks/photographs.py FOLDER [--model MODEL] [--json OUT]

FOLDER holds photographs called `<leaf>_<anything>.jpg`, where `<leaf>` is the id of a leaf of the model's taxonomy
(`n02123045_tabby.JPEG`); others are counted and left out. A level is asked as `hierclass label --level` asks it:
images are decoded no larger than the level needs them. Whether that changes answers is measured beside it: every level
is asked again with the images decoded as for the last level, and the answers that stay the same are counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import hierclass
from hierclass.classifier import Classifier
from hierclass.decisions.prediction import Prediction
from hierclass.images.decoding import read_image
from hierclass.images.discovery import find_inputs
from hierclass.images.preprocessing import Preprocessing, decode_side, preprocess
from taxonomy import Taxonomy

BATCH = 50


def leaf_of(path: str, taxonomy: Taxonomy) -> str | None:
    """The leaf that a photograph's name begins with, if the taxonomy has it."""
    leaf = Path(path).name.partition("_")[0]
    return leaf if leaf in taxonomy.leaves else None


def ask(
    classifier: Classifier, paths: Sequence[str], level: int, preprocessing: Preprocessing
) -> list[Prediction]:
    """The answers of a level to images that are read as `preprocessing` says."""
    found: list[Prediction] = []
    for start in range(0, len(paths), BATCH):
        images = [
            preprocess(read_image(path, min_side=decode_side(preprocessing)), preprocessing)
            for path in paths[start : start + BATCH]
        ]
        found += classifier.predict_tensors(np.stack(images), level)
    return found


def measure(folder: Path, model: Path | None) -> dict[str, Any]:
    """Ask every level for every photograph; count right answers, and those that the size of reading does not change.

    Returns `levels[k]` with the side that its images are read at, and per tier 0 … k `right` and `same`.
    """
    classifier = hierclass.load(model)
    taxonomy = classifier.taxonomy
    inputs = list(find_inputs([str(folder)]))
    named = [(path, leaf) for path in inputs if (leaf := leaf_of(path, taxonomy)) is not None]
    if not named:
        raise typer.BadParameter(f"no photograph in {folder} is called after a class of {taxonomy.name}")
    paths, levels = [path for path, _ in named], list[dict[str, Any]]()
    for level in range(len(classifier.levels)):
        preprocessing = classifier.preprocessing_for(level)
        answers = ask(classifier, paths, level, preprocessing)
        larger = (
            answers
            if preprocessing == classifier.preprocessing
            else ask(classifier, paths, level, classifier.preprocessing)
        )
        right, same = [0] * (level + 1), [0] * (level + 1)
        for (_, leaf), answer, other in zip(named, answers, larger, strict=True):
            for tier in range(level + 1):
                given = answer.path[tier].synset
                right[tier] += given == taxonomy.project(leaf, tier).id
                same[tier] += given == other.path[tier].synset
        levels.append({"level": level, "side": decode_side(preprocessing), "right": right, "same": same})
    return {
        "model": taxonomy.name,
        "photographs": len(named),
        "left_out": len(inputs) - len(named),
        "levels": levels,
    }


def draw(results: dict[str, Any]) -> Table:
    """A row per level: right answers per tier, then answers that reading as for the last level leaves the same."""
    count, last = results["photographs"], len(results["levels"]) - 1
    table = Table(
        title=f"{count} photographs, model {results['model']}: right answers, and the same at any size"
    )
    names = [*(f"tier {tier}" for tier in range(last)), "leaf"]
    for column in (
        "level",
        "decoded for",
        *(f"{name} right" for name in names),
        *(f"{name} same" for name in names),
    ):
        table.add_column(column, justify="right")
    for row in results["levels"]:
        empty = [""] * (last - row["level"])
        same = [str(each) for each in row["same"]] if row["level"] < last else [""] * (last + 1)
        table.add_row(
            str(row["level"]),
            f"{row['side']} px",
            *(str(each) for each in row["right"]),
            *empty,
            *same,
            *(empty if row["level"] < last else []),
        )
    return table


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    model: Annotated[Path | None, typer.Option(help="Folder of a model. Default: the bundled one.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the counts here.")] = None,
) -> None:
    """Print the table and write the JSON."""
    results = measure(folder, model)
    console = Console()
    console.print(draw(results))
    side = results["levels"][-1]["side"]
    console.print(f"“Same”: of {results['photographs']}, with images read at {side} pixels instead.")
    if results["left_out"]:
        console.print(
            f"{results['left_out']} files are not called after a class of the model and are left out."
        )
    if json_ is not None:
        json_.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
