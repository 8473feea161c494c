"""What hostile files cost: `python benchmarks/bounds.py [PART] [--package DIR] [--json FILE]`.

Each file of `benchmarks/hostile/` whose kind or name holds PART is written and given to the command that reads such
files, in a process of its own: pictures, tar and Parquet files and sidecars to `hierclass label`, model folders to
`hierclass predict`, zip files to what the page unpacks them with; at last a folder of a thousand damaged pictures to
`hierclass label`. A table says for each the seconds, the peak memory of the processes together, and what was said. The
exit code is 1 if one was not bounded. `--package` measures another version, such as an earlier one: the folder of its
repository.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer
from fuzzing import make_case
from hostile import HostileFile
from hostile.archives import TARS, ZIPS
from hostile.graphs import GRAPHS
from hostile.kinds import OTHER_PICTURES
from hostile.models import MODELS
from hostile.pictures import PICTURES
from hostile.seeds import write_pictures
from hostile.sidecars import SIDECARS
from hostile.tables import TABLES
from labelling import used_memory
from rich.table import Table
from timing import describe_machine

from taxonomy.terminal import PlainConsole

ROOT = Path(__file__).parent.parent
SECONDS = 60.0
MEGABYTES = 8192
BOUND_SECONDS = 25.0
"""A picture may take 20 s to read, and the command a few to start."""
BOUND_MEGABYTES = 3072
NUM_DAMAGED = 1000
_LABEL = ("-m", "hierclass", "label", "{file}", "--format", "csv")
_KEYWORDS = (*_LABEL, "--keywords", "xmp")
_PREDICT = ("-m", "hierclass", "predict", "examples/{example}", "--model", "{file}")
_UNPACK = (
    "-c",
    "import sys, tempfile; from pathlib import Path; from hierclass.images.discovery import PassedOver\n"
    "from hierclass.page.unpacking import ByteBudget, unpack\n"
    "from hierclass.errors import HierclassError\n"
    "with tempfile.TemporaryDirectory() as place:\n"
    "    try: print(*(each.error or 'read' for each in unpack("
    "Path(sys.argv[1]), 'x.zip', Path(place), ByteBudget(1 << 30), 500, PassedOver())), sep='\\n')\n"
    "    except HierclassError as error: print('error:', error)\n",
    "{file}",
)


class Measured(NamedTuple):
    """What reading a hostile file cost."""

    kind: str
    name: str
    seconds: float
    megabytes: float
    said: str
    bounded: bool


def measure(kind: str, hostile: HostileFile, command: tuple[str, ...], package: Path) -> Measured:
    """Write a hostile file, run a command on it and measure its processes."""
    with tempfile.TemporaryDirectory() as place:
        file = hostile.write(Path(place))
        example = min((ROOT / "examples").glob("*.jpg")).name
        arguments = [each.replace("{file}", str(file)).replace("{example}", example) for each in command]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        start = time.perf_counter()
        with open(Path(place) / "said", "w+", encoding="utf-8", errors="replace") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=out,
                stderr=out,
                cwd=package,  # where Python looks for modules first
                env=environment,
                start_new_session=True,
            )
            peak, fault = watch(process, start)
            seconds = time.perf_counter() - start
            out.seek(0)
            said = fault or _said(out.read(1 << 24).replace(f"{place}/", ""))
    held = not fault and "Traceback" not in said and "unexpected" not in said
    if kind == "folder":
        held = held and hostile.says in said  # a row per picture
    bounded = held and seconds < BOUND_SECONDS and peak < BOUND_MEGABYTES
    return Measured(kind, hostile.name, seconds, peak, said, bounded)


def watch(process: subprocess.Popen[bytes], start: float) -> tuple[float, str]:
    """Wait for a process; return its peak memory in megabytes, with its children, and why it was ended."""
    peak, fault = 0.0, ""
    while process.poll() is None:
        peak = max(peak, used_memory(process.pid))
        if time.perf_counter() - start > SECONDS:
            fault = f"ended after {SECONDS:.0f} s"
        elif peak > MEGABYTES:
            fault = f"ended at {MEGABYTES:,} MB"
        if fault:
            os.killpg(process.pid, 9)
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.wait()
            break
        time.sleep(0.05)
    return peak, fault


def _said(text: str) -> str:
    """The errors of the rows of a table, or what stands in place of a table."""
    lines = text.splitlines()
    at = next((number for number, line in enumerate(lines) if line.startswith("path,error,")), None)
    if at is None:
        return " ".join(lines[-8:])[-300:]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[at:]))))
    found = [row["error"] or "read" for row in rows if None not in row.values()]  # others are messages
    return f"{len(found)} rows: {found[0]}" if len(found) > 1 else "".join(found[:1])


def write_folder(folder: Path) -> Path:
    """Write a thousand damaged pictures into a folder, and return it."""
    pictures, scratch = folder / "pictures", folder / "scratch"
    for each in (pictures, scratch):
        each.mkdir()
    seeds = write_pictures(scratch)
    for number in range(NUM_DAMAGED):
        chance = random.Random(f"bounds {number}")
        made = make_case(chance.choice(seeds), seeds, folder, chance)
        made.rename(pictures / f"{number:04}{made.suffix}")
    return pictures


KINDS: dict[str, tuple[list[HostileFile], tuple[str, ...]]] = {
    "picture": ([*PICTURES, *OTHER_PICTURES], _LABEL),
    "tar": (TARS, _LABEL),
    "Parquet": (TABLES, _LABEL),
    "XMP": (SIDECARS, _KEYWORDS),
    "zip": (ZIPS, _UNPACK),
    "model": ([*MODELS, *GRAPHS], _PREDICT),
    "folder": ([HostileFile(f"{NUM_DAMAGED} damaged pictures", write_folder, f"{NUM_DAMAGED} rows")], _LABEL),
}


def measure_all(part: str, package: Path) -> Iterator[Measured]:
    """Measure all hostile files with `part` in their kind or name."""
    for kind, (files, command) in KINDS.items():
        for hostile in files:
            if part.casefold() in f"{kind} {hostile.name}".casefold():
                yield measure(kind, hostile, command, package)


def main(
    part: Annotated[str, typer.Argument(help="Part of a kind or name.")] = "",
    package: Annotated[Path, typer.Option(help="Folder of the repository to measure.")] = ROOT,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
) -> None:
    """Measure what hostile files cost."""
    console, found = PlainConsole(width=150), list[Measured]()
    table = Table()
    for title in ("kind", "file", "s", "MB", "said"):
        table.add_column(title, justify="right" if title in ("s", "MB") else "left")
    for one in measure_all(part, package.resolve()):
        found.append(one)
        mark = "" if one.bounded else "NOT BOUNDED: "
        table.add_row(
            one.kind, one.name, f"{one.seconds:.1f}", f"{one.megabytes:,.0f}", mark + one.said[:160]
        )
        if console.is_terminal:
            console.print(f"{len(found)} files", end="\r")
    console.print(table)
    faults = sum(not one.bounded for one in found)
    console.print(
        f"{len(found)} hostile files, {faults} not bounded by {BOUND_SECONDS:.0f} s and {BOUND_MEGABYTES:,} MB"
    )
    if json_ is not None:
        what: dict[str, Any] = {"machine": describe_machine(), "package": package.name}
        text = json.dumps({**what, "files": [one._asdict() for one in found]}, indent=1)
        json_.write_text(text + "\n", encoding="utf-8")
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
