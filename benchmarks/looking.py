"""What looking at images is worth when a tree is proposed, and how often it points at images that are right.

    python benchmarks/looking.py TABLE [--own TABLE …] [--json OUT]

TABLE is a Parquet file of ImageNet images that no network was trained on, with columns `image` and `wnid`; --own are
such files of other classes, with columns `image` and `label`.

Meanings: lists of random classes of ImageNet-1k are read by their first names alone and with their images, of which
most classes have one or two. The bundled model knows all these classes, so all is done again as if it did not know the
class that is asked for: that class's share of its answers is taken out. That ImageNet-22k has photographs of a meaning
does not count.

Alarms: classes of three images and more under their own names (false ones), under another class's name, and mixed with
as many images of another class. Alarms at own classes count as false only where the name means what it should.

Marks: own classes whose names are marked as doubtful.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

import hierclass
from taxonomy import load_taxonomy, wordnet
from taxonomy.senses import candidates, choose_senses
from training.look.kinds import Floats, Kinds
from training.look.seen import FEW, Looker, Seen

NAMES, SAMPLES, PAIRS = 12, 100, 300
PER_CLASS = 20


@dataclass
class Readings:
    """Names read: all, ambiguous ones, and how many of these rightly, marked or not."""

    what: str
    names: int = 0
    right: int = 0
    ambiguous: int = 0
    ambiguous_right: int = 0
    wrong_marked: int = 0
    right_marked: int = 0


@dataclass(frozen=True)
class Alarms:
    """Classes that were judged, and those at whose images it pointed."""

    what: str
    classes: int
    alarms: int


@dataclass(frozen=True)
class Marks:
    """Names that are marked as doubtful, by names alone and with images."""

    what: str
    names: int
    alone: int
    with_images: int
    changed: int
    """Names that images gave another meaning."""


def by_class(file: Path, column: str) -> dict[str, list[bytes]]:
    """Some images of every class of a Parquet file, evenly drawn."""
    table = pq.read_table(file, columns=["image", column])
    found: dict[str, list[bytes]] = {}
    for label, image in zip(table.column(column).to_pylist(), table.column("image").to_pylist(), strict=True):
        found.setdefault(label, []).append(image["bytes"] if isinstance(image, dict) else image)
    return {
        label: [images[round(k)] for k in np.linspace(0, len(images) - 1, min(PER_CLASS, len(images)))]
        for label, images in sorted(found.items())
    }


def without(kinds: Kinds, images: Floats, leaf: str) -> Seen:
    """What a model sees that does not know one of the classes, under the name of that class."""
    leaves = list(load_taxonomy("imagenet-1k").leaves)
    place = leaves.index(leaf)
    rest = np.delete(images, place, axis=1)
    names = [name for k, name in enumerate(kinds.leaf_names) if k != place]
    fewer = Kinds([each for each in leaves if each != leaf], names)
    return Seen(fewer, {wordnet.known(leaf).lemmas[0]: rest / rest.sum(1, keepdims=True)})


def meanings(kinds: Kinds, images: Mapping[str, Floats]) -> list[Readings]:
    """Read lists of names alone, with images, and with images of which the class is unknown."""
    evidence = {
        leaf: Seen(kinds, {wordnet.known(leaf).lemmas[0]: each}).evidence() for leaf, each in images.items()
    }
    masked = {leaf: without(kinds, each, leaf).evidence() for leaf, each in images.items()}
    rows = {
        "names alone": dict[str, Any](),
        "names and images": evidence,
        "names and images, the class unknown to the model": masked,
    }
    return [_read(what, list(images), told) for what, told in rows.items()]


def _read(what: str, leaves: Sequence[str], told: Mapping[str, Any]) -> Readings:
    found = Readings(what)
    for seed in range(SAMPLES):
        drawn = {
            wordnet.known(leaf).lemmas[0]: leaf
            for leaf in random.Random(seed).sample(leaves, min(NAMES, len(leaves)))
        }
        evidence = {name: bonus for leaf in drawn.values() for name, bonus in told.get(leaf, {}).items()}
        for choice in choose_senses(list(drawn), evidence=evidence, photographed=False):
            right, ambiguous = choice.synset.id == drawn[choice.name], len(candidates(choice.name)) > 1
            found.names += 1
            found.right += right
            found.ambiguous += ambiguous
            found.ambiguous_right += right and ambiguous
            found.right_marked += right and choice.doubtful
            found.wrong_marked += not right and choice.doubtful
    return found


def alarms(kinds: Kinds, named: Mapping[str, Sequence[tuple[str, Floats]]]) -> list[Alarms]:
    """Judge classes (meaning, images) of several sources under their own names, under others' and mixed."""

    def judge(synset: str, images: Floats) -> str:
        lines = Seen(kinds, {synset: images}).misfits_of({synset: synset})
        return lines[0] if lines else ""

    rows = [
        Alarms(f"own name: {what}", len(classes), sum(bool(judge(*each)) for each in classes))
        for what, classes in named.items()
    ]
    every, draw = [each for classes in named.values() for each in classes], random.Random(0)
    pairs = [draw.sample(every, 2) for _ in range(PAIRS)]
    swapped = sum("look like" in judge(one[0], other[1]) for one, other in pairs)
    mixed = 0
    for one, other in pairs:
        half = min(len(one[1]), len(other[1]), PER_CLASS // 2)
        mixed += "two kinds" in judge(one[0], np.concatenate([one[1][:half], other[1][:half]]))
    return [
        *rows,
        Alarms("another class's name", PAIRS, swapped),
        Alarms("mixed with another class", PAIRS, mixed),
    ]


def of_names(kinds: Kinds, images: Mapping[str, Floats]) -> list[tuple[str, Floats]]:
    """Meaning and images of the classes of a set whose names WordNet has."""
    names = [name for name in images if candidates(name)]
    choices = choose_senses(names, evidence=Seen(kinds, images).evidence())
    return [(choice.synset.id, images[choice.name]) for choice in choices]


def marks(what: str, kinds: Kinds, images: Mapping[str, Floats]) -> Marks:
    """Count the doubtful names of one set of classes."""
    seen, names = Seen(kinds, images), [name for name in images if candidates(name)]
    alone, told = choose_senses(names), choose_senses(names, evidence=seen.evidence())
    doubtful = sum(choice.doubtful and not seen.confirms(choice) for choice in told)
    changed = sum(one.synset != other.synset for one, other in zip(alone, told, strict=True))
    return Marks(what, len(names), sum(choice.doubtful for choice in alone), doubtful, changed)


def draw(readings: Sequence[Readings], judged: Sequence[Alarms], doubts: Sequence[Marks]) -> list[Table]:
    """Show all measurements."""
    first = Table("", "names", "right", "of ambiguous ones", "wrong ones marked", "right ones marked")
    for row in readings:
        first.add_row(
            row.what,
            str(row.names),
            f"{row.right / row.names:.1%}",
            f"{row.ambiguous_right / max(row.ambiguous, 1):.1%} of {row.ambiguous}",
            f"{row.wrong_marked} of {row.names - row.right}",
            f"{row.right_marked} of {row.right}",
        )
    second = Table("images under", "classes", "pointed at")
    for each in judged:
        second.add_row(each.what, str(each.classes), str(each.alarms))
    third = Table("own classes", "names", "marked, names alone", "with images", "another meaning")
    for marked in doubts:
        third.add_row(
            marked.what, *map(str, (marked.names, marked.alone, marked.with_images, marked.changed))
        )
    return [first, second, third]


def main(
    table: Annotated[Path, typer.Argument(help="Parquet file with columns image and wnid.")],
    own: Annotated[list[Path] | None, typer.Option(help="Parquet file with columns image and label.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure what looking is worth, and how often it raises a false alarm."""
    looker = Looker(hierclass.load(device="cpu", threads=1))

    def seen(file: Path, column: str) -> dict[str, Floats]:
        return {label: images for label, images, _ in looker.look(by_class(file, column)) if len(images)}

    images = seen(table, "wnid")
    readings = meanings(looker.kinds, images)
    named = {table.stem: [(leaf, each) for leaf, each in images.items() if len(each) >= FEW]}
    others = {file.stem: seen(file, "label") for file in own or ()}
    named |= {what: of_names(looker.kinds, each) for what, each in others.items()}
    judged = alarms(looker.kinds, named)
    doubts = [marks(what, looker.kinds, each) for what, each in others.items()]
    for each in draw(readings, judged, doubts):
        Console().print(each)
    if json_file:
        report = {
            "meanings": [asdict(row) for row in readings],
            "alarms": [asdict(row) for row in judged],
            "marks": [asdict(row) for row in doubts],
        }
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
