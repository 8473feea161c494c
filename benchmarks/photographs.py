"""How often the bundled model names the right superclass on photographs of natural size, known classes and others.

    python benchmarks/photographs.py FOLDER [--model MODEL] [--json OUT]

FOLDER holds photographs called `<WordNet 3.0 id>_<anything>.jpg`. A class that the model knows has its superclass in
the model's taxonomy. For any other class its WordNet ancestors say which superclass holds it: the anchors that the
bundled taxonomy was built from; a class under none of them has no right answer and is counted apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import hierclass
from hierclass.inputs import find_inputs
from taxonomy import Taxonomy
from taxonomy.tiers import place, read_anchors

ANCHORS = Path(__file__).parents[1] / "taxonomy" / "data" / "anchors" / "tiny-imagenet.json"


def right_superclass(wnid: str, taxonomy: Taxonomy) -> tuple[bool, str | None]:
    """Whether the taxonomy has the class, and the id of the tier-0 class that holds it (None: none does)."""
    if wnid in taxonomy.leaves:
        return True, taxonomy.project(wnid, 0).id
    anchors = read_anchors(json.loads(ANCHORS.read_text(encoding="utf-8")))
    found = place(wnid, anchors)[0]
    return False, None if found is None else found.id


def measure(folder: Path, model: Path | None) -> dict[str, Any]:
    """Label the photographs at every level; count right superclasses, and right leaves of known classes."""
    classifier = hierclass.load(model)
    taxonomy = classifier.taxonomy
    inputs = list(find_inputs([str(folder)]))
    truths = {}
    for path in inputs:
        wnid = re.match(r"n\d{8}", Path(path).name)
        if wnid:
            truths[Path(path).name] = (wnid[0], *right_superclass(wnid[0], taxonomy))
    levels = []
    for level in range(len(classifier.levels)):
        counts: Counter[str] = Counter()
        for row in hierclass.label(inputs, classifier=classifier, level=level):
            truth = truths.get(Path(row.path).name)
            if truth is None or row.error:
                continue
            leaf, known, superclass = truth
            group = "known" if known else "unknown" if superclass else "elsewhere"
            counts[group] += 1
            counts[f"{group} tier 0 right"] += row.steps[0].synset == superclass
            last = len(classifier.levels) - 1
            counts["known leaf right"] += known and level == last and row.synset == leaf
        levels.append(dict(counts))
    return {"photographs": len(inputs), "model": taxonomy.name, "levels": levels}


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    model: Annotated[Path | None, typer.Option(help="Folder of a model. Default: the bundled one.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the counts here.")] = None,
) -> None:
    """Print the table and write the JSON."""
    results = measure(folder, model)
    table = Table(title=f"{results['photographs']} photographs, model {results['model']}, right answers")
    for column in ("level asked", "tier 0, known classes", "tier 0, unknown classes", "leaf, known classes"):
        table.add_column(column, justify="right")
    for level, counts in enumerate(results["levels"]):
        finest = level + 1 == len(results["levels"])
        table.add_row(
            str(level),
            f"{counts.get('known tier 0 right', 0)} of {counts.get('known', 0)}",
            f"{counts.get('unknown tier 0 right', 0)} of {counts.get('unknown', 0)}",
            f"{counts.get('known leaf right', 0)} of {counts.get('known', 0)}" if finest else "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{results['levels'][0].get('elsewhere', 0)} photographs are of classes that no superclass holds"
    )
    if json_ is not None:
        json_.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
