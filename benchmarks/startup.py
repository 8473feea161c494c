"""How long commands take from start to end: `python benchmarks/startup.py [--rounds 5] [--json OUT]`.

Each is a process of its own: `import hierclass`, `hierclass --help`, one photograph by `predict` and by `label`, and
the page until it answers. They are run in rounds, in an order shuffled anew, after one round that is not counted.
"""

from __future__ import annotations

import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from timing import describe_machine

ROOT = Path(__file__).parent.parent
PHOTOGRAPH = ROOT / "examples" / "cat.jpg"
PATIENCE = 120

Run = Callable[[], float]
"""Runs something; returns the seconds that it took."""


def command(*words: str) -> Run:
    """Return what runs a command and is over when the command is."""

    def run() -> float:
        began = time.perf_counter()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed: {done.stderr}")
        return seconds

    return run


def page(*options: str) -> Run:
    """Return what starts the page and is over when the page can be read."""

    def run() -> float:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began = time.perf_counter()
        command = [sys.executable, "app.py", "--port", str(port), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while not answers(f"http://127.0.0.1:{port}/"):
                if process.poll() is not None or time.perf_counter() > began + PATIENCE:
                    raise SystemExit("the page did not start")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(PATIENCE)

    return run


def answers(address: str) -> bool:
    """Return whether something can be read there."""
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as page:
            return bool(page.read())
    except (urllib.error.URLError, ConnectionError):
        return False


def runs(model: Path | None, *, with_page: bool) -> dict[str, Run]:
    """Name → what is timed."""
    python, options = sys.executable, ["--model", str(model)] if model else []
    hierclass = [python, "-m", "hierclass"]
    label = [*hierclass, "label", str(PHOTOGRAPH), *options]
    found = {
        "python -c pass": command(python, "-c", "pass"),
        "import hierclass": command(python, "-c", "import hierclass"),
        "hierclass --help": command(*hierclass, "--help"),
        "hierclass predict": command(*hierclass, "predict", str(PHOTOGRAPH), *options),
        "hierclass label, one photograph": command(*label),
    }
    return {**found, "page ready": page(*options)} if with_page else found


def measure(found: dict[str, Run], rounds: int) -> list[dict[str, Any]]:
    """Run everything once per round, after one round that fills caches."""
    for run in found.values():
        run()
    order, shuffler = list(found), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            seconds[name].append(found[name]())
    return [
        {"what": name, "seconds": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in seconds.items()
    ]


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is timed.")] = 5,
    with_page: Annotated[bool, typer.Option("--page/--no-page", help="Start the page as well.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Time commands as processes."""
    machine = describe_machine()
    rows = measure(runs(model, with_page=with_page), rounds)
    table = Table(title="From start to end")
    for column in ("what", "s (median)", "range"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(row["what"], f"{row['seconds']:.2f}", f"{row['low']:.2f} – {row['high']:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"Medians of {rounds} interleaved rounds after one that is not counted, on {machine['device']} with "
        f"{machine['threads']} cores. Load of the machine before the run: {machine['load_before']}."
    )
    if json_file:
        report = {"machine": machine, "rounds": rounds, "rows": rows}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
