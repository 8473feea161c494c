"""How often a class name is read as meant: `python benchmarks/senses.py [--seeds N] [--json OUT]`.

The truth is ImageNet-1k: each synset's first lemma is the name, and the synset is what the name means. A name that
several synsets share is asked once and right with any of them. Compared are WordNet's first sense and the rule of
`taxonomy.senses.choose_senses`, with all names given at once and with random samples of them, because the rule
judges a name by its company.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taxonomy import wordnet
from taxonomy.senses import choose_senses

SAMPLES = (50, 200)


@dataclass(frozen=True)
class Accuracy:
    """Shares of names read as meant, 0 to 1; means where several samples were drawn."""

    names: int
    samples: int
    ambiguous: float
    """Mean number of names with more than one noun sense."""
    first_sense: float
    rule: float
    first_sense_ambiguous: float
    rule_ambiguous: float
    """The same two over ambiguous names only."""
    rule_lowest: float
    rule_highest: float
    """Of the samples, over all names."""
    doubtful: float
    """Share of names that are marked as doubtful."""
    wrong_doubtful: float
    """Share of those among the names that were read wrongly."""


def read_truth() -> dict[str, frozenset[str]]:
    """Name → the synsets of ImageNet-1k that have it as their first lemma."""
    text = (files("taxonomy") / "data" / "anchors" / "imagenet-1k.ids.txt").read_text("utf-8")
    truth: dict[str, frozenset[str]] = {}
    for line in text.splitlines():
        synset = wordnet.known(line.split()[0])
        truth[synset.lemmas[0]] = truth.get(synset.lemmas[0], frozenset()) | {synset.id}
    return truth


def measure(truth: Mapping[str, frozenset[str]], samples: Sequence[Sequence[str]]) -> Accuracy:
    """Score both ways on samples of equally many names; a sample is given to the rule at once."""
    rows = []
    for names in samples:
        first = {name for name in names if wordnet.senses(name)[0] in truth[name]}
        choices = choose_senses(names)
        chosen = {c.name for c in choices if c.synset.id in truth[c.name]}
        marked, wrong = {c.name for c in choices if c.doubtful}, set(names) - chosen
        ambiguous = {name for name in names if len(wordnet.senses(name)) > 1}
        shares = [len(first) / len(names), len(chosen) / len(names)]
        shares += [len(found & ambiguous) / max(len(ambiguous), 1) for found in (first, chosen)]
        shares += [len(marked) / len(names), len(marked & wrong) / max(len(wrong), 1)]
        rows.append([float(len(ambiguous)), *shares])
    ambiguous_names, *means = (statistics.fmean(column) for column in zip(*rows, strict=True))
    of_rule = [row[2] for row in rows]
    return Accuracy(
        names=len(samples[0]),
        samples=len(samples),
        ambiguous=ambiguous_names,
        first_sense=means[0],
        rule=means[1],
        first_sense_ambiguous=means[2],
        rule_ambiguous=means[3],
        rule_lowest=min(of_rule),
        rule_highest=max(of_rule),
        doubtful=means[4],
        wrong_doubtful=means[5],
    )


def draw(results: Sequence[Accuracy]) -> Table:
    """Show one row per number of names."""
    table = Table(title="Names of ImageNet-1k read as meant")
    for heading in ("names", "samples", "ambiguous", "first sense", "rule", "lowest – highest"):
        table.add_column(heading, justify="right")
    table.add_column("ambiguous only: first sense", justify="right")
    for heading in ("rule", "doubtful", "of the wrong ones"):
        table.add_column(heading, justify="right")
    for row in results:
        table.add_row(
            str(row.names),
            str(row.samples),
            f"{row.ambiguous:.0f}",
            f"{row.first_sense:.1%}",
            f"{row.rule:.1%}",
            f"{row.rule_lowest:.1%} – {row.rule_highest:.1%}" if row.samples > 1 else "",
            f"{row.first_sense_ambiguous:.1%}",
            f"{row.rule_ambiguous:.1%}",
            f"{row.doubtful:.1%}",
            f"{row.wrong_doubtful:.1%}",
        )
    return table


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Random samples of each size.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure how often names are read as meant."""
    truth = read_truth()
    names = list(truth)
    groups = [[names]]
    groups += [[random.Random(seed).sample(names, size) for seed in range(seeds)] for size in SAMPLES]
    results = [measure(truth, samples) for samples in groups]
    Console().print(draw(results))
    if json_file:
        report = {"truth": "imagenet-1k", "seeds": seeds, "results": [asdict(row) for row in results]}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
