"""How often a class name is read as meant: `python benchmarks/senses.py [--seeds N] [--large N] [--json OUT]`.

Two truths. (1) Class names of public data sets with the synsets that each may mean, `benchmarks/senses_truth/*/*.tsv`:
name, accepted synset ids ("-" where WordNet lacks the meaning: right is then to say so or to mark it as doubtful), and
what they are. `eleven` are the sets that the rule's constants were chosen on (beside half of ImageNet-1k's names);
what `others` got wrong was looked at afterwards, and `late` was measured when the rule almost stood. A set is given
at once.
(2) ImageNet-1k: each synset's first lemma is the name, and the synset is what the name means. A name that several
synsets share is asked once and right with any of them. All names are given at once, and random samples of them,
because the rule judges a name by its company. Which synsets ImageNet-22k has photographs of is no evidence here, since
all of these are among them; `with the list` says what it would add.

`--large 10000` proposes trees for so many ids and names of ImageNet-22k, each in a process of its own, and reports time
and peak memory.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taxonomy import propose, wordnet
from taxonomy.evidence import photographed_synsets
from taxonomy.senses import choose_senses, is_known

TRUTH = Path(__file__).parent / "senses_truth"
SAMPLES = (50, 200)
UNLISTED = "-"
"""Stands in a truth for a meaning that WordNet lacks."""

Truth = Mapping[str, Collection[str]]
"""Name → the ids of the synsets that it may mean."""


@dataclass(frozen=True)
class Accuracy:
    """What became of some names; shares are 0 to 1."""

    what: str
    names: int
    right: float
    first_sense: float
    """Share that WordNet's first sense would read rightly."""
    doubtful: float
    """Share of names that are marked as doubtful or said to be unknown."""
    wrong: int
    wrong_unmarked: int
    lowest: float
    highest: float
    """Right in the worst and the best of the lists that were given at once."""


def read_sets(group: str) -> dict[str, Truth]:
    """The truths of a group of public data sets, by the name of the set."""
    return {
        path.stem: {name: ids.split() for name, ids, *_ in map(_cells, path.read_text("utf-8").splitlines())}
        for path in sorted((TRUTH / group).glob("*.tsv"))
    }


def _cells(line: str) -> list[str]:
    return line.split("\t")


def read_truth() -> Truth:
    """Name → the synsets of ImageNet-1k that have it as their first lemma."""
    text = (files("taxonomy") / "data" / "anchors" / "imagenet-1k.ids.txt").read_text("utf-8")
    truth: dict[str, list[str]] = {}
    for line in text.splitlines():
        synset = wordnet.known(line.split()[0])
        truth.setdefault(synset.lemmas[0], []).append(synset.id)
    return truth


def measure(what: str, lists: Iterable[tuple[Truth, Sequence[str]]], *, with_list: bool = True) -> Accuracy:
    """Score lists of names, each given to the rule at once with what its names mean."""
    right: list[list[bool]] = []
    doubts: list[list[bool]] = []
    first: list[bool] = []
    for truth, names in lists:
        known = [name for name in names if is_known(name)]
        found = {choice.name: choice for choice in choose_senses(known, photographed=with_list)}
        doubts.append([name not in found or found[name].doubtful for name in names])
        right.append([])
        for name, doubt in zip(names, doubts[-1], strict=True):
            read = found[name].synset.id if name in found else UNLISTED
            right[-1].append(read in truth[name] or (doubt and UNLISTED in truth[name]))
            first.append((wordnet.senses(name) or (UNLISTED,))[0] in truth[name])
    pairs = [pair for r, d in zip(right, doubts, strict=True) for pair in zip(r, d, strict=True)]
    shares = [statistics.fmean(one) for one in right]
    return Accuracy(
        what=what,
        names=len(pairs),
        right=statistics.fmean(good for good, _ in pairs),
        first_sense=statistics.fmean(first),
        doubtful=statistics.fmean(doubt for _, doubt in pairs),
        wrong=sum(not good for good, _ in pairs),
        wrong_unmarked=sum(not good and not doubt for good, doubt in pairs),
        lowest=min(shares),
        highest=max(shares),
    )


def on_public_sets(group: str) -> list[Accuracy]:
    """Measure each set of a group, and all together."""
    lists = {name: (truth, list(truth)) for name, truth in read_sets(group).items()}
    rows = [measure(name, [each]) for name, each in lists.items()]
    return [*rows, measure(f"all of {group}", lists.values())]


def on_imagenet(seeds: int) -> list[Accuracy]:
    """Measure ImageNet-1k's names: all at once, and samples."""
    truth = read_truth()
    names = list(truth)
    rows = [measure("all names", [(truth, names)], with_list=False)]
    for size in SAMPLES:
        samples = [(truth, random.Random(seed).sample(names, size)) for seed in range(seeds)]
        rows.append(measure(f"{size} names, {seeds} samples", samples, with_list=False))
    return [*rows, measure("all names, with the list", [(truth, names)])]


def draw(title: str, results: Sequence[Accuracy]) -> Table:
    """Show one row per list or group of lists."""
    table = Table(title=title)
    table.add_column("names of")
    for heading in (
        "names",
        "first sense",
        "rule",
        "lowest – highest",
        "doubtful",
        "wrong",
        "of these unmarked",
    ):
        table.add_column(heading, justify="right")
    for row in results:
        table.add_row(
            row.what,
            str(row.names),
            f"{row.first_sense:.1%}",
            f"{row.right:.1%}",
            f"{row.lowest:.1%} – {row.highest:.1%}" if row.lowest < row.highest else "",
            f"{row.doubtful:.1%}",
            str(row.wrong),
            str(row.wrong_unmarked),
        )
    return table


# ---------------------------------------------------------------- large trees


@dataclass(frozen=True)
class ProposalCost:
    """What proposing one large tree took, reading WordNet included; the memory is that of the whole process."""

    what: str
    classes: int
    seconds: float
    gigabytes: float


def large(num: int) -> list[ProposalCost]:
    """Measure a proposal of so many ids and of so many names, each in a process of its own."""
    costs = []
    for what in ("ids", "names"):
        command = [sys.executable, __file__, "--large", str(num), "--only", what]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        costs.append(ProposalCost(**json.loads(text)))
    return costs


def propose_large(what: str, num: int) -> ProposalCost:
    """Propose a tree for ids or names of ImageNet-22k, in this process."""
    start = time.perf_counter()
    every = photographed_synsets()
    ids = random.Random(0).sample(every, len(every))
    labels = ids if what == "ids" else list(dict.fromkeys(wordnet.known(one).lemmas[0] for one in ids))
    proposal = propose([(label,) for label in labels[:num]], name="large")
    seconds = round(time.perf_counter() - start, 1)
    return ProposalCost(what, len(proposal.taxonomy.leaves), seconds, round(_peak(), 2))


def _peak() -> float:
    """Most memory that this process has held, in gigabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the process was before it started Python, too
        return int(status.read_text("utf-8").partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Random samples of each size.")] = 5,
    large_size: Annotated[
        int, typer.Option("--large", min=0, help="Also propose a tree of so many ids, and of so many names.")
    ] = 0,
    only: Annotated[str, typer.Option(hidden=True)] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure how often names are read as meant."""
    if only:
        print(json.dumps(asdict(propose_large(only, large_size))))
        return
    console = Console()
    groups = {group: on_public_sets(group) for group in ("eleven", "others", "late")}
    for group, rows in groups.items():
        console.print(draw(f"Public sets: {group}", rows))
    groups["imagenet-1k"] = on_imagenet(seeds)
    console.print(draw("ImageNet-1k, without the list of photographed synsets", groups["imagenet-1k"]))
    costs = large(large_size) if large_size else []
    for cost in costs:
        console.print(f"{cost.classes} {cost.what}: {cost.seconds} s, {cost.gigabytes} GB")
    if json_file:
        report = {group: [asdict(row) for row in rows] for group, rows in groups.items()}
        report["large"] = [asdict(cost) for cost in costs]
        json_file.write_text(json.dumps({"seeds": seeds, **report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
