"""Which models of timm nest: `python benchmarks/backbones.py [PATTERN] [--results FILE] [--retry] [--write]`.

Every name is cut without memory for its weights; of each family the smallest model that nests is built with weights
and proves itself in every structure. Results are lines of JSON, appended to FILE one by one: a second run goes on
where the first was stopped, and a model that ended the process is noted as one that did. `--write` makes the
table that ships with hierclass and docs/backbones.md of them.
"""

from __future__ import annotations

import gc
import json
import resource
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hierclass.nested import STRUCTURES
from hierclass.timm_models.backbone_probe import family_of, probe_backbone, prove_model
from hierclass.timm_models.backbone_table import BackboneFamily, BackboneTable, to_markdown

ROOT = Path(__file__).parent.parent
TABLE, PAGE = ROOT / "hierclass" / "data" / "backbones.json", ROOT / "docs" / "backbones.md"

Row = dict[str, Any]


def survey(
    pattern: Annotated[str, typer.Argument(help="Models to try, like resnet*.")] = "*",
    results: Annotated[Path, typer.Option(help="File that results are appended to.")] = Path(
        "backbones.jsonl"
    ),
    retry: Annotated[bool, typer.Option("--retry", help="Try those again that failed.")] = False,
    memory: Annotated[int, typer.Option(help="Limit of memory in GiB.")] = 12,
    proofs: Annotated[bool, typer.Option(help="Prove one model of each family.")] = True,
    write: Annotated[bool, typer.Option("--write", help="Write the table and the page.")] = False,
) -> None:
    """Try every model whose name matches, and write down what came of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory << 30, memory << 30))
    done = read(results)
    if retry:
        done = {key: row for key, row in done.items() if not row["reason"]}
    names = [name for name in timm.list_models(pattern) if (name, "") not in done]
    run(names, "", cut, results)
    found = read(results)
    if proofs:
        for structure in STRUCTURES:
            tried = {family_of(name) for name, kind in done if kind == structure}
            chosen = [name for name in smallest(found) if family_of(name) not in tried]
            run(chosen, structure, partial(prove, structure=structure), results)
    if write:
        backbones = collect(read(results))
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(backbones.to_json(), encoding="utf-8")
        PAGE.write_text(to_markdown(backbones), encoding="utf-8")
        print(backbones.summary())


def cut(name: str) -> Row:
    """What came of cutting a model."""
    return asdict(probe_backbone(name, count=False))


def prove(name: str, structure: str) -> Row:
    """What came of nesting a model with weights."""
    return {"reason": prove_model(name, structure)}


def run(names: list[str], structure: str, act: Callable[[str], Row], results: Path) -> None:
    """Try models one by one; a line is written before and after each."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    failed = 0
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        results.open("a", encoding="utf-8") as file,
    ):
        task = progress.add_task("", total=len(names), rate="")
        for name in names:
            progress.update(task, description=f"{structure} {name}".strip()[:40].ljust(40))
            key: Row = {"name": name, "structure": structure}
            for row in ({"reason": "it ended the process that tried it"}, act(name)):
                print(json.dumps(key | row), file=file, flush=True)
            failed += bool(row["reason"])
            task_now = progress.tasks[0]
            rate = f"{task_now.speed * 60:.0f}/min" if task_now.speed else ""
            progress.update(task, advance=1, rate=f"{rate} {failed} failed")
            gc.collect()


def read(results: Path) -> dict[tuple[str, str], Row]:
    """Results by name and structure; the last line of each counts."""
    if not results.exists():
        return {}
    rows = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    return {(row["name"], row["structure"]): row for row in rows}


def smallest(found: dict[tuple[str, str], Row]) -> list[str]:
    """Of each family, the model with the fewest weights among those that nest."""
    nesting = [row for (_, structure), row in found.items() if not structure and not row["reason"]]
    best: dict[str, Row] = {}
    for row in sorted(nesting, key=lambda row: (row["parameters"][-1], row["name"])):
        best.setdefault(family_of(row["name"]), row)
    return [best[family]["name"] for family in sorted(best)]


def collect(found: dict[tuple[str, str], Row]) -> BackboneTable:
    """The table of all families."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(family_of(name), []).append(name)
    return BackboneTable(
        timm.__version__, tuple(_family(name, families[name], found) for name in sorted(families))
    )


def _family(family: str, names: Iterable[str], found: dict[tuple[str, str], Row]) -> BackboneFamily:
    untried: Row = {"reason": "not tried"}
    reasons = {name: found.get((name, ""), untried)["reason"] for name in names}
    proven: dict[str, str] = {}
    failed: dict[str, str] = {}
    for structure in STRUCTURES:
        for name in reasons:
            if (name, structure) in found:
                reason = found[name, structure]["reason"]
                (failed if reason else proven)[structure] = f"{name}: {reason}" if reason else name
    return BackboneFamily(
        family,
        tuple(name for name, reason in reasons.items() if not reason),
        {name: reason for name, reason in reasons.items() if reason},
        proven,
        {structure: reason for structure, reason in failed.items() if structure not in proven},
    )


if __name__ == "__main__":
    typer.run(survey)
