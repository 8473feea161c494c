"""Four structures and separate networks, side by side: `python benchmarks/structures.py --data FOLDER`.

Each row is trained with the product's own training code on the same images, for as many epochs, with the same recipe;
`benchmarks/structures_rows.py` says what the rows are. Every finished row is kept in the JSON file at once, so that
the command can be repeated after an interruption: it goes on where it stopped. Two processes with `--threads 1` and
other `--only` rows may share the file; that is faster than one with two threads. Times of the levels are measured in
a last step, all networks in one process in shuffled rounds; `--times-only` repeats that step alone, on a quiet
machine say, and needs the JSON file, and the trained networks for what compressing saves. `--markdown` prints the
tables of docs/structures.md from the JSON file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markdown import Markdown
from structures_compress import measure_compressed
from structures_report import put_into, report
from structures_rows import ROWS, Bench
from structures_settings import Settings
from structures_times import measure_times
from timing import describe_machine

from hierclass.errors import BackboneError, HierclassError
from hierclass.files import replacing
from taxonomy.terminal import PlainConsole

OUT = Path(__file__).parent / "results" / "structures.json"
WORK = Path("runs") / "structures"


def read_results(out: Path, settings: Settings | None) -> dict[str, Any]:
    """What the JSON file holds, empty if there is none; refuse one of other settings."""
    if not out.exists():
        return {"settings": settings.to_dict() if settings else {}, "rows": []}
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if settings and results["settings"] != json.loads(json.dumps(settings.to_dict())):
        raise typer.BadParameter(f"{out} holds results of other settings; name another file with --out")
    return results


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Replace the JSON file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def train_rows(bench: Bench, out: Path, names: list[str], seeds: list[int]) -> None:
    """Train every row that the JSON file does not hold yet, for every seed."""
    for seed in seeds:
        for name in names:
            results = read_results(out, bench.settings)
            if any((row["name"], row["seed"]) == (name, seed) for row in results["rows"]):
                bench.console.print(f"{name}, seed {seed}: done already")
                continue
            bench.console.print(f"{name}, seed {seed} …")
            try:
                row = ROWS[name].train(bench, name, seed)
            except BackboneError as error:
                bench.console.print(f"{name} is left out: {error}")
                continue
            # Read again: another process may have finished a row meanwhile.
            results = read_results(out, bench.settings)
            machine = describe_machine("cpu")
            results["rows"].append({"name": name, "seed": seed, **row, "machine": machine})
            write_results(out, results)
            accuracies = " / ".join(f"{level['accuracy']:.1%}" for level in row["levels"])
            bench.console.print(f"{name}, seed {seed}: {accuracies}")


def check_names(only: list[str] | None) -> list[str]:
    """The names of the rows asked for, in the order of `ROWS`."""
    unknown = sorted(set(only or ()) - ROWS.keys())
    if unknown:
        raise typer.BadParameter(f"--only {unknown[0]}: there are {', '.join(ROWS)}")
    return [name for name in ROWS if not only or name in only]


def show(results: dict[str, Any], document: Path | None, *, plain: bool) -> None:
    """Show the tables, plain as Markdown, and put them into a document."""
    text = report(results)
    if document:
        changed = put_into(document, text)
        with replacing(document) as file:
            file.write_text(changed, encoding="utf-8")
    if plain:
        print(text)
    else:
        PlainConsole().print(Markdown(text))


Data = Annotated[list[str] | None, typer.Option(help="Images, as hierclass-train takes them.")]
Tree = Annotated[str, typer.Option(help="A bundled tree or a file, of 3 tiers.")]
DevFrom = Annotated[int, typer.Option(help="Images numbered from here are held out; -1: a tenth.")]
Limit = Annotated[int, typer.Option(min=2, help="Training images.")]
Count = Annotated[int, typer.Option(min=1)]
Size = Annotated[int, typer.Option(min=8, help="Pixels per side.")]
Channels = Annotated[int, typer.Option(min=12, help="Of the first of four stages.")]
Blocks = Annotated[int, typer.Option(min=1, help="Residual blocks per stage.")]
Seeds = Annotated[list[int] | None, typer.Option(min=0, help="May be given again.")]
Only = Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ROWS)}; may be given again.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; all cores if left out.")]
Rounds = Annotated[int, typer.Option(min=2, help="How often everything is timed.")]
Work = Annotated[Path, typer.Option(help="Folder for the trained networks.")]
Out = Annotated[Path, typer.Option(help="JSON file of the results.")]
Document = Annotated[
    Path | None, typer.Option(help="Markdown file to put the tables into, between its markers.")
]
Times = Annotated[bool, typer.Option(help="Measure times after training.")]
TimesOnly = Annotated[bool, typer.Option("--times-only", help="Measure times again, train nothing.")]
Plain = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown and do nothing else.")]


def main(
    data: Data = None,
    taxonomy: Tree = "tiny-imagenet",
    dev_from: DevFrom = 450,
    epochs: Count = 4,
    limit: Limit = 20_000,
    size: Size = 32,
    batch_size: Count = 64,
    channels: Channels = 24,
    blocks: Blocks = 3,
    seed: Seeds = None,
    only: Only = None,
    threads: Threads = None,
    rounds: Rounds = 30,
    work: Work = WORK,
    out: Out = OUT,
    document: Document = None,
    times: Times = True,
    times_only: TimesOnly = False,
    markdown: Plain = False,
) -> None:
    """Compare the structures and separate networks."""
    names = check_names(only)
    if threads is not None:
        torch.set_num_threads(threads)
    if not (markdown or times_only):
        held_out = None if dev_from < 0 else dev_from
        settings = Settings(
            tuple(data or ()), taxonomy, held_out, size, epochs, limit, batch_size, channels, blocks
        )
        try:
            train_rows(Bench(settings, work, PlainConsole(soft_wrap=True)), out, names, seed or [0])
        except HierclassError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(2) from None
    results = read_results(out, None)
    if times and not markdown:
        results["times"] = measure_times(results, rounds)
        compressed = measure_compressed(results, work)
        if compressed["rows"] or "compressed" not in results:
            results["compressed"] = compressed
        write_results(out, results)
    show(results, document, plain=markdown)


if __name__ == "__main__":
    typer.run(main)
